"""One-hot targets and smoothed ones: what softmax reaches of them, at which logits, and whether networks need it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

from depthgauge import data, drawing, models, replicas, stats, theory, training
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, listed
from depthgauge.studies.regularization import softmax
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

NEEDED = Claim(
    "N41", "an exponential can hardly reach one-hot targets of 0 and 1, so that they need special treatment (label "
    "smoothing)",
)  # fmt: skip
GROWTH = Claim(
    "regularization/one_hot_growth", "with one-hot targets of separable classes the loss falls as 1 / steps, and the "
    "smallest gap between logits grows as the logarithm of the steps",
)  # fmt: skip
GAP = Claim(
    "regularization/smoothing_gap", "label smoothing e sets the gap between the right logit and each other one to "
    "ln((1 - e + e/K) / (e/K))",
)  # fmt: skip
CALIBRATED = Claim("regularization/smoothing_calibration", "label smoothing improves a network's calibration")
RATE = 0.1  # a power of the steps this close to the predicted one is the predicted one
WITHIN = 0.05  # relative, of a gap
POINTS = 0.005  # of accuracy, and of calibration error: as far as two or three test images
LAST = 8  # growth: over this factor of steps before the last
METRICS = ("validation_accuracy", "test_accuracy", "fitted", "gap", "calibration", "test_loss", "diverged")
SIZES = sizes(
    "smoothings seeds linear_steps width steps rates",
    quick=((0.0, 0.1), 10, 8192, 32, 400, (0.1, 0.3, 1.0)),
    standard=((0.0, 0.03, 0.1, 0.3), 20, 16384, 64, 2000, (0.03, 0.1, 0.3, 1.0)),
    full=((0.0, 0.01, 0.03, 0.1, 0.3), 30, 32768, 64, 4000, (0.01, 0.03, 0.1, 0.3, 1.0)),
    tiny=((0.0, 0.1), 5, 32, 8, 30, (0.3,)),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    smoothings: tuple[float, ...], seeds: int, linear_steps: int, width: int, steps: int, rates: tuple[float, ...]
) -> Iterator[Grid]:
    """A linear classifier of few images, and a network of all, at every smoothing."""
    yield Grid(
        {"smoothing": smoothings}, {"network": "linear", "steps": linear_steps}, seeds, ("seed",), 40,
        claims=(GROWTH.id, GAP.id),
    )  # fmt: skip
    yield Grid(
        {"smoothing": smoothings, "lr": rates}, {"network": "mlp", "steps": steps, "width": width}, seeds,
        ("seed", "lr"), 400, selection=3, claims=(NEEDED.id, CALIBRATED.id),
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Losses and gaps of linear classifiers by step; accuracy, gap and calibration of networks at their end."""
    shared = cases[0]
    if shared.text("network") == "mlp":
        yield from _networks(cases, context)
        return
    seeds = [case.random_seed("seed") for case in cases]  # of all smoothings: the same images
    for step, loss, gaps in softmax.linear(seeds, shared.number("smoothing"), shared.integer("steps"), context.device):
        for metric, values in (("loss", loss), ("gap", gaps.mean((1, 2))), ("least_gap", gaps.amin((1, 2)))):
            yield from (case.rows(metric, value, step=step) for case, value in zip(cases, values.tolist(), strict=True))


def _networks(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """A ReLU network of two hidden layers on 8 x 8 digits."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    template = models.build(
        "mlp", input_shape=digits.input_shape, classes=digits.classes, depth=2, width=shared.integer("width")
    )
    recipe = training.Recipe(
        replicas.SGD([case.number("lr") for case in cases]), steps=shared.integer("steps"), batch=32, target=0.99,
        loss=partial(softmax.smoothed, smoothing=shared.number("smoothing")),
    )  # fmt: skip
    seeds = [case.random_seed("seed", "width", "steps") for case in cases]  # of all smoothings and rates: paired
    draw = training.Draw(seeds)

    def inspect(stack: replicas.Stack, fit: data.Examples) -> dict[str, list[float]]:
        ends: dict[str, list[float]] = {"gap": [], "calibration": [], "test_loss": [], "fitted": []}
        with torch.no_grad():
            for i in range(len(stack)):
                module = stack.module(i)
                logits, test = module(fit.x), module(digits.test.x)
                ends["gap"].append(float(softmax.gaps(logits, fit.y).mean()))
                ends["fitted"].append(float((logits.argmax(1) == fit.y).double().mean()))
                ends["calibration"].append(softmax.calibration_error(test.softmax(1), digits.test.y))
                ends["test_loss"].append(float(functional.cross_entropy(test, digits.test.y)))
        return ends

    yield from training.outcomes(cases, template, digits, recipe, draw, inspect=inspect)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth without smoothing, gaps with it, and what either makes of a network."""
    params = params_of(rows, "network", "smoothing").astype({"smoothing": float})
    own = rows[rows["case"].isin(params.index[params["network"] == "linear"])]
    if len(own):
        curves = own.pivot_table(index="case", columns=["metric", "step"], values="value")
        yield from _reached(curves, params["smoothing"])
    runs = training.table(rows[~rows["case"].isin(own["case"])], "smoothing", "lr", "seed", metrics=METRICS)
    if len(runs):
        runs = training.tunable(runs.astype({"seed": int, "smoothing": float}), ["smoothing"])
        yield from _needed(training.tuned(runs, ["smoothing"]))


def _reached(curves: pd.DataFrame, smoothings: pd.Series[float]) -> Iterator[Answer]:
    lines, powers, gaps = [], {}, {}
    steps = sorted({int(column[1]) for column in curves.columns})
    last, before = steps[-1], steps[max(0, len(steps) - 1 - int(np.log2(LAST)))]
    for e, cases in groups(smoothings.loc[curves.index].to_frame(), "smoothing"):
        own, goal = curves.loc[cases.index], theory.smoothed_gap(e, 10)
        for step in steps:
            value = stats.mean(own["gap", step].to_numpy())
            lines.append({
                "smoothing": e, "step": step, "n": value.n, "value": value.value, "low_95": value.low,
                "high_95": value.high, "predicted": goal if e else np.nan, "loss": own["loss", step].mean(),
                "least_gap": own["least_gap", step].mean(),
            })  # fmt: skip
        if e:
            gaps[e,] = stats.against((own["gap", last] / goal).to_numpy(), 1.0, margin=WITHIN)
            continue
        spans = np.log(last / before)
        fallen = np.log(own["loss", before] / own["loss", last]) / spans
        grown = (own["least_gap", last] - own["least_gap", before]) / spans
        powers["power of the loss",] = stats.against(fallen.to_numpy(), 1.0, margin=RATE)
        powers["smallest gap per ln of steps",] = stats.against(grown.to_numpy(), 1.0, margin=RATE)
    yield "gaps", pd.DataFrame(lines)
    if powers:
        growth = Question.of("one_hot_growth", ("figure",), powers, label="{figure}", counted="sets of images")
        yield growth.table()
        yield growth.prediction(GROWTH, "figures", within=f"{RATE:g}", unit="measured, where theory has 1")
    if gaps:
        question = Question.of(
            "smoothing_gap", ("smoothing",), gaps, label="e = {smoothing:g}", counted="sets of images"
        )
        yield question.table()
        yield question.prediction(GAP, "gaps", within=f"{WITHIN:.0%}", unit="mean gap over the predicted one")
    end = next((line for line in lines if line["step"] == last and not line["smoothing"]), None)
    if end and powers and agrees(growth.members["power of the loss",]):
        yield Sentence(
            f"Softmax comes as near to one-hot targets as there are steps: the loss of a linear classifier is "
            f"{end['loss']:.2g} after {last:,} and falls as 1 / steps, with logits that grow as their logarithm.",
            figure="gaps", claims=(NEEDED.id, GROWTH.id),
        )  # fmt: skip


def _needed(runs: pd.DataFrame) -> Iterator[Answer]:
    one_hot = runs[runs["smoothing"] == 0].set_index("seed")
    need = {("training images right with one-hot targets", 0.0): stats.against(one_hot["fitted"], 1.0, margin=POINTS)}
    lines: list[dict[str, Any]] = []
    calibrations: dict[tuple[str, float], stats.Comparison] = {}
    for e, found in groups(runs, "smoothing"):
        own = found.set_index("seed")
        both = own.index.intersection(one_hot.index)
        figures = {"gap": own["gap"].mean(), "test_loss": own["test_loss"].mean(), "lr": own["lr"].iloc[0]}
        for what, column in (("test accuracy", "test_accuracy"), ("calibration error", "calibration")):
            value = stats.mean(own[column].to_numpy())
            lines.append({
                "what": what, "smoothing": e, "n": value.n, "value": value.value, "low_95": value.low,
                "high_95": value.high, **figures, "predicted_gap": theory.smoothed_gap(e, 10),
            })  # fmt: skip
            if e:
                pair = stats.paired(own[column][both], one_hot[column][both], margin=POINTS, test="t")
                pair = training.unsettled(pair, training.open_ended(pd.concat([own, one_hot]), POINTS).any())
                (need if column == "test_accuracy" else calibrations)[f"{what} with smoothing", e] = pair
    yield "smoothed", pd.DataFrame(lines)
    label = "{what}, e = {smoothing:g}"
    question = Question.of("need", ("what", "smoothing"), need, label=label, reference="no need", counted="networks")
    yield question.table()
    answers = {
        question.words(key): below(c) if key[1] == 0 else above(c) for key, c in question.members.items()
    }  # fmt: skip
    smoothed = question.select(lambda smoothing, **_: smoothing > 0)
    gained = smoothed.listed(above, {True: "accuracy rises for", False: "no rise for", None: "undecided:"}, 5)
    right = question.members["training images right with one-hot targets", 0.0].effect.value
    said = listed(answers, {True: "true for", False: "false for", None: "undecided for"})
    yield question.verdict(
        NEEDED, answers, unit="share of images", says=said if len(set(answers.values())) > 1 else "",
        why=f"with one-hot targets {right:.2%} of training images are right; {gained}",
        method="true where one-hot targets leave training images wrong, or smoothing raises the test accuracy, by more "
        f"than {POINTS:g}; rates chosen by other seeds, paired t",
    )  # fmt: skip
    if not calibrations:
        return
    calibration = Question.of(
        "smoothing_calibration", ("what", "smoothing"), calibrations, label="e = {smoothing:g}",
        reference="one-hot targets", counted="networks",
    )  # fmt: skip
    yield calibration.table()
    yield calibration.verdict(
        CALIBRATED, below, unit="calibration error less that with one-hot targets",
        why=calibration.listed(below, {True: "better at", False: "not better at", None: "undecided:"}, 5),
        method=f"expected calibration error on test images, {softmax.BINS} equal bins; less by more than {POINTS:g}",
    )  # fmt: skip
    most = max(e for _, e in calibrations)
    told = {(line["what"], line["smoothing"]): line["value"] for line in lines}
    yield Sentence(
        f"Label smoothing of {most:g} leaves the test accuracy at {told['test accuracy', most]:.1%}, where one-hot "
        f"targets have {told['test accuracy', 0.0]:.1%}, and the calibration error at "
        f"{told['calibration error', most]:.3f} in place of {told['calibration error', 0.0]:.3f} (a network of two "
        "hidden layers on 8 x 8 digits).",
        figure="smoothed", claims=(NEEDED.id, CALIBRATED.id),
    )  # fmt: skip


@drawing.figure(
    "gaps", "The gap between logits over the steps, with one-hot and with smoothed targets",
    lambda gaps: f"Mean gap of a linear classifier, {gaps['n'].min()} sets of {softmax.IMAGES} images, 95 % intervals. "
    "Dashed: the gap at which the softmax is the target.",
)  # fmt: skip
def draw_gaps(gaps: pd.DataFrame) -> Any:
    """Gap over steps, a line a smoothing."""
    axes = {"xscale": "log", "xlabel": "step", "ylabel": "right logit less another"}
    return drawing.panels(gaps, "", drawing.estimates, at="step", by="smoothing", joined=True, axes=axes)


@drawing.figure(
    "smoothed", "Accuracy and calibration of a network by label smoothing",
    lambda smoothed: f"Mean of {smoothed['n'].min()} networks with 95 % intervals, test images, each smoothing at its "
    "own learning rate.",
)  # fmt: skip
def draw_smoothed(smoothed: pd.DataFrame) -> Any:
    """Test accuracy and calibration error over the smoothing."""
    axes = {"xlabel": "label smoothing"}
    return drawing.panels(smoothed, "what", drawing.estimates, at="smoothing", joined=True, axes=axes, shared="x")


METHOD = f"""**One-hot and smoothed targets.** A softmax of a linear function with bias, in float64, on
{softmax.IMAGES} of the 8 x 8 digits, other ones for each seed, by full-batch descent from zero with momentum
{softmax.MOMENTUM:g}: it can reach any targets. That the loss falls as 1 / steps and logits grow as their logarithm:
Soudry et al. 2018, Nacson et al. 2019. Gap of smoothed targets (Szegedy et al. 2016): `theory.smoothed_gap`. Networks:
two hidden layers of ReLU, SGD of batch 32 on all training digits, rates chosen by the validation accuracy of seeds that
are not reported. Müller, Kornblith and Hinton 2019 find that smoothing improves the calibration of larger networks.
Sizes were set with trial runs in view; those had other seeds."""
PART = Part(
    "targets", (NEEDED, GROWTH, GAP, CALIBRATED), SIZES, grids, run, analyse, (draw_gaps, draw_smoothed), METHOD
)  # fmt: skip
