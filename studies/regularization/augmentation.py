"""Noise on inputs against Tikhonov's penalty; augmented images and small batches against explicit regularizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from depthgauge import data, drawing, models, replicas, stats, training
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, not_below
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization import images
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

TIKHONOV = Claim(
    "regularization/input_noise", "noise of variance s^2 on the inputs adds s^2 times the mean squared derivative of "
    "the outputs to the squared error, as Tikhonov's penalty does",
)  # fmt: skip
AUGMENTED = Claim(
    "regularization/augmentation", "shifted, rotated or noisy training images each raise the accuracy on new images"
)
BATCH = Claim(
    "regularization/batch_noise", "at equal steps small batches regularize as well as dropout, weight decay or noise "
    "on the inputs do with large ones",
)  # fmt: skip
WITHIN = 0.05  # relative, of the error that noise adds
POINTS = 0.01  # of accuracy: as far as three or four test images
NETWORKS = {"linear": (0, "relu"), "tanh": (2, "tanh"), "ReLU": (2, "relu")}  # hidden layers and activation
PLAIN, SMALL = "batch 256", "batch 8"
METRICS = ("validation_accuracy", "test_accuracy", "train_accuracy", "diverged")


@dataclass(frozen=True)
class Variant:
    """A batch, one regularizer beside it, and how the training images are made more."""

    batch: int = 256
    dropout: float = 0.0
    decay: float = 0.0
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None


VARIANTS: Mapping[str, Variant] = {
    PLAIN: Variant(), SMALL: Variant(batch=8), "dropout 0.3": Variant(dropout=0.3), "decay 0.01": Variant(decay=0.01),
    "noise 0.5": Variant(augment=images.noisy), "shifts": Variant(augment=images.shifted),
    "rotations": Variant(augment=images.rotated),
}  # fmt: skip
EXPLICIT = ("dropout 0.3", "decay 0.01", "noise 0.5")
SIZES = sizes(
    "dataset seeds width fitted steps rates",
    quick=("digits", 8, 32, 200, 0, ()),
    standard=("digits", 30, 32, 300, 1000, (0.01, 0.03, 0.1, 0.3, 1.0)),
    full=("mnist5k", 20, 64, 500, 1000, (0.01, 0.03, 0.1, 0.3, 1.0)),
    tiny=("digits", 5, 8, 20, 6, (0.1,)),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    dataset: str, seeds: int, width: int, fitted: int, steps: int, rates: tuple[float, ...]
) -> Iterator[Grid]:
    """Networks whose error with noise is measured; and, but for quick, those that are compared."""
    shared: dict[str, Value] = {"dataset": dataset, "width": width}
    yield Grid(
        {"network": tuple(NETWORKS)}, {**shared, "asked": "noise", "steps": fitted}, seeds, ("seed",), 40,
        claims=(TIKHONOV.id,),
    )  # fmt: skip
    if steps:
        yield Grid(
            {"variant": tuple(VARIANTS), "lr": rates}, {**shared, "asked": "variants", "steps": steps}, seeds,
            ("seed", "lr"), 200, selection=3, claims=(AUGMENTED.id, BATCH.id),
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Error that noise adds, over the predicted one; or how each network ended."""
    dataset = data.load(cases[0].text("dataset")).to(context.device)
    seeds = [case.random_seed("seed", "dataset", "width", "steps") for case in cases]  # paired where shapes agree
    if cases[0].text("asked") == "noise":
        yield from _noise(cases, dataset, seeds)
    else:
        yield from _variants(cases, dataset, seeds)


def _noise(cases: Sequence[Case], dataset: data.Dataset, seeds: Sequence[int]) -> Iterator[Rows]:
    """Networks trained by the squared error of one-hot targets at a fixed rate."""
    shared, (depth, activation) = cases[0], NETWORKS[cases[0].text("network")]
    template = models.build(
        "mlp", input_shape=dataset.input_shape, classes=dataset.classes, depth=depth, activation=activation,
        width=shared.integer("width"),
    )  # fmt: skip
    stack = replicas.stack(template, seeds, device=str(dataset.train.x.device))
    x, targets = dataset.train.x, functional.one_hot(dataset.train.y, dataset.classes).float()
    sgd = replicas.SGD(0.05, momentum=0.9)
    trained = replicas.train(stack, x, targets, sgd, batch=32, steps=shared.integer("steps"), loss="mse").stack
    for i, case in enumerate(cases):
        draws = generator(case.random_seed("seed"), Purpose.INPUTS, "noise")
        for size, ratio in images.noise_ratios(trained.module(i), dataset.test.x, dataset.test.y, draws):
            yield case.rows("ratio", ratio, layer=f"{size:g}")


def _variants(cases: Sequence[Case], dataset: data.Dataset, seeds: Sequence[int]) -> Iterator[Rows]:
    """SGD on the images of one variant; validation, test and the original training images say how it ended."""
    shared, variant = cases[0], VARIANTS[cases[0].text("variant")]
    fit, validation = data.hold_out(dataset.train, training.HELD_OUT)
    fit = data.Examples(*fit[: images.FITTED])
    pool = fit
    if variant.augment is not None:
        draws = generator(shared.random_seed("variant", "dataset"), Purpose.INPUTS, "augmentation")
        copies = [variant.augment(fit.x, draws) for _ in range(images.COPIES)]
        pool = data.Examples(torch.cat(copies), fit.y.repeat(images.COPIES))
    template = models.build(
        "mlp", input_shape=dataset.input_shape, classes=dataset.classes, depth=2, width=shared.integer("width"),
        dropout=variant.dropout,
    )  # fmt: skip
    stack = replicas.stack(template, seeds, device=str(fit.x.device))
    sgd = replicas.SGD([case.number("lr") for case in cases], momentum=0.9, weight_decay=variant.decay)
    run = replicas.train(stack, pool.x, pool.y, sgd, batch=variant.batch, steps=shared.integer("steps"))
    run.stack.template.eval()
    parts = (validation, dataset.test, fit)
    ends = [replicas.evaluate(run.stack, part.x, part.y).accuracy for part in parts]
    for metric, values in zip(METRICS, (*ends, run.diverged_at >= 0), strict=True):
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, values, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Added errors over the predicted ones, and each variant against others."""
    ratios = rows[rows["metric"] == "ratio"]
    if len(ratios):
        yield from _added(ratios)
    runs = training.table(rows[rows["metric"] != "ratio"], "variant", "lr", "seed", metrics=METRICS)
    runs = training.tunable(runs.astype({"seed": int, "variant": str}), ["variant"]) if len(runs) else runs
    if runs.empty:  # at quick
        yield "regularized", pd.DataFrame(columns=["variant", "n", "value", "low_95", "high_95"])
        return
    yield from _compared(training.tuned(runs, ["variant"]))


def _added(ratios: pd.DataFrame) -> Iterator[Answer]:
    networks = params_of(ratios, "network")["network"]
    values = ratios.pivot_table(index="case", columns="layer", values="value", dropna=False)  # NaN: it diverged
    asked = {
        (network, size): stats.against(values.loc[cases.index, f"{size:g}"].to_numpy(), 1.0, margin=WITHIN)
        for network, cases in groups(networks.to_frame(), "network")
        for size in images.NOISES
    }
    question = Question.of("input_noise", ("network", "s"), asked, label="{network}, s = {s:g}", counted="networks")
    yield question.table()
    yield question.prediction(
        TIKHONOV, "added errors", within=f"{WITHIN:.0%}", unit="added error over the predicted one"
    )
    found = {key: c.effect.value for key, c in question.members.items()}
    others = [key for key, c in question.members.items() if key[0] != "linear" and c.beyond]
    if others and all(agrees(question.members["linear", size]) for size in images.NOISES):
        network, size = max(others, key=lambda key: abs(found[key] - 1))
        yield Sentence(
            f"Noise on the inputs of a linear network adds what Tikhonov's penalty predicts; in a {network} network "
            f"noise of {size:g} times the pixels' scatter adds {found[network, size]:.2f} of what it predicts.",
            figure="input_noise", claims=(TIKHONOV.id,),
        )  # fmt: skip


def _compared(tuned: pd.DataFrame) -> Iterator[Answer]:
    runs = {name: own.set_index("seed") for name, own in groups(tuned, "variant")}
    lines = []
    for name, own in runs.items():
        value = stats.mean(100 * own["test_accuracy"].to_numpy())
        lines.append({
            "variant": name, "open_ended": bool(training.open_ended(own, POINTS).any()),
            "n": value.n, "value": value.value, "low_95": value.low, "high_95": value.high,
            "gap": 100 * (own["train_accuracy"] - own["test_accuracy"]).mean(), "lr": own["lr"].iloc[0],
        })  # fmt: skip
    yield "regularized", pd.DataFrame(lines)

    def question(name: str, pairs: Sequence[tuple[str, str]]) -> Question:
        asked = {}
        for one, other in pairs:
            both = runs[one].index.intersection(runs[other].index)
            values = (runs[each]["test_accuracy"][both] for each in (one, other))
            pair = stats.paired(*values, margin=POINTS, test="t")
            open_end = training.open_ended(pd.concat([runs[one], runs[other]]), POINTS).any()
            asked[one, other] = training.unsettled(pair, open_end)
        return Question.of(name, ("variant", "against"), asked, label="{variant} against {against}", reference="equal")

    augmented = [name for name, variant in VARIANTS.items() if variant.augment and {name, PLAIN} <= set(runs)]
    method = f"test accuracy at equal steps, each at a rate chosen by other seeds; paired t, margin {POINTS:g}"
    if augmented:
        gains = question("augmentation", [(name, PLAIN) for name in augmented])
        yield gains.table()
        words = {True: "more accurate with", False: "not more with", None: "undecided:"}
        yield gains.verdict(AUGMENTED, above, unit="of accuracy", why=gains.listed(above, words, 5), method=method)
    explicit = [name for name in EXPLICIT if {name, SMALL} <= set(runs)]
    if explicit:
        noise = question("batch_noise", [(SMALL, name) for name in explicit])
        yield noise.table()
        words = {True: "as good:", False: "worse:", None: "undecided:"}
        yield noise.verdict(BATCH, not_below, unit="of accuracy", why=noise.listed(not_below, words, 5), method=method)
        best = max(lines, key=lambda line: line["value"])
        told = {line["variant"]: line for line in lines}
        open_ones = [line["variant"] for line in lines if line["open_ended"]]
        edge = f"; rates at the end of their grid, which may not be the best: {', '.join(open_ones)}"
        yield Sentence(
            f"At equal steps {best['variant']} ends at {best['value']:.1f} % of test images right, batches of 8 at "
            f"{told[SMALL]['value']:.1f} % and plain batches of 256 at {told[PLAIN]['value']:.1f} % ({images.FITTED} "
            f"training images at most, a ReLU network of two hidden layers{edge if open_ones else ''}).",
            figure="regularized", claims=(AUGMENTED.id, BATCH.id),
        )  # fmt: skip


@drawing.figure(
    "input_noise", "Noise on the inputs against Tikhonov's penalty",
    lambda input_noise: f"Squared error that noise adds over s² times the squared derivative; mean of "
    f"{input_noise['n'].min()} networks, intervals of 95 % at once.",
)  # fmt: skip
def draw_noise(input_noise: pd.DataFrame) -> Any:
    """Ratio over the noise, a line a network."""
    shown = input_noise.assign(activation=input_noise["network"].str.lower())
    axes = {"xscale": "log", "xlabel": "noise s, standard deviations of the pixels", "ylabel": "added over predicted"}
    return drawing.panels(shown, "", drawing.estimates, at="s", by="activation", joined=True, axes=axes)


@drawing.figure(
    "regularized", "Test accuracy by regularizer, at equal steps",
    lambda regularized: f"Mean of {regularized['n'].min()} networks with 95 % intervals; batches of 256 but for one.",
)  # fmt: skip
def draw_regularized(regularized: pd.DataFrame) -> Any:
    """Test accuracy, a row a variant."""
    axes = {"xlabel": "test images right, %"}
    return drawing.panels(regularized, "", drawing.estimates, at="variant", axes=axes)


METHOD = f"""**Input noise.** Networks trained by the squared error of one-hot targets; on test images,
{images.DRAWN} draws of noise, each with its opposite, so that what is odd in it cancels. Bishop 1995: to second order
noise adds s² |J|², exactly so in a linear network, and otherwise a term of second derivatives times the error.

**Regularizers.** {images.FITTED} training images at most; augmentation draws {images.COPIES} copies of each, shifted by
up to an eighth of the side, rotated by up to {images.DEGREES:g} degrees, or with noise of {images.NOISE:g}; SGD with
momentum 0.9, the same steps for all, so that batches of 8 see 1/32 of the examples. Strengths are fixed; only rates are
tuned, by seeds that are not reported. Sizes were set with trial runs in view; those had other seeds."""
PART = Part(
    "augmentation", (TIKHONOV, AUGMENTED, BATCH), SIZES, grids, run, analyse, (draw_noise, draw_regularized), METHOD
)  # fmt: skip
