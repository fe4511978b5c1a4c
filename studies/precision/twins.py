"""Two runs that should be one: other batches, one unit in the last place of one weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import data, drawing, models, precision, stats
from depthgauge.conditions import undecided
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, enumerated, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

REPEATABLE = Claim("N48", "training of neural networks is hardly repeatable")
PARTING = Claim("precision/parting", "trainings that differ by one ulp of one weight part exponentially, step by step")
INVARIANT = Claim("precision/batch_invariance", "an output has the same bits, however many examples share its batch")


ACCURACY = 0.01  # test accuracies nearer to each other than this are the same
GROWTH = 2.0  # times the slope of a distance that grows in proportion to the steps: more is exponential


ENDS = ("accuracy", "twin", "exponent", "proportional", "final", "again")

LEAST = 1e-11  # relative distance at which the axis ends: one ulp of a small weight
POINTS = 60  # steps at which a distance is stored, at most
FORMATS = ("float32", "bfloat16", "float16", "float64")
SUBJECTS = ("matrix product", "mlp", "lenet5")


SIZES = sizes(
    "batch depths rates pairs steps",
    quick=(0, (), (), 0, 0), standard=(256, (2, 8), (0.01, 0.05, 0.1), 40, 200),
    full=(256, (2, 4, 8, 16), (0.01, 0.02, 0.05, 0.1, 0.2), 40, 1000), tiny=(5, (2,), (0.2,), 5, 20),
)  # fmt: skip


def grids(
    *, batch: int, depths: tuple[int, ...], rates: tuple[float, ...], pairs: int, steps: int
) -> Iterator[Grid]:  # fmt: skip
    """Batches of all sizes, and pairs of trainings; at quick there are none."""
    if not pairs:
        return
    yield Grid({"subject": SUBJECTS, "dtype": FORMATS}, {"batch": batch}, 5, ("seed",), 5)
    yield Grid({"depth": depths, "lr": rates}, {"steps": steps}, pairs, ("seed",), 5)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The rows of one kind of cases."""
    params = dict(cases[0].params)
    measure = _invariance if "subject" in params else _training
    for case in cases:
        yield from measure(case, context.device)


class Product(nn.Module):
    """x @ b."""

    def __init__(self, b: Tensor) -> None:
        super().__init__()
        self.b = nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, M)."""
        return x.flatten(1) @ self.b


def _invariance(case: Case, device: str) -> Iterator[Rows]:
    """Distance of the first k examples' outputs, alone, from theirs in the whole batch."""
    seed, subject, dtype = case.random_seed("subject", "seed"), case.text("subject"), getattr(torch, case.text("dtype"))
    images = data.load("mnist5k").train.x
    x = images[torch.randperm(len(images), generator=generator(seed, Purpose.SAMPLE))[: case.integer("batch")]]
    if subject == "matrix product":
        module: nn.Module = Product(torch.randn(784, 256, generator=generator(seed, Purpose.WEIGHTS)))
    else:
        module = models.build(subject, input_shape=(1, 28, 28), classes=10, seed=seed)
    found = precision.batch_invariance(module.eval().to(device, dtype), x.to(device, dtype))
    for metric in ("largest_ulp", "equal"):
        yield case.rows(metric, found[metric].to_numpy(float), layer_index=found["k"].to_numpy())


def _training(case: Case, device: str) -> Iterator[Rows]:
    """A pair of trainings that differ by one ulp, and one that differs by nothing."""
    steps, digits, seed = case.integer("steps"), data.load("mnist5k").to(device), case.random_seed("depth", "seed")
    made: list[nn.Module] = []
    make = _maker(case, digits, device, made)
    parted = precision.twins(make, [seed], steps)
    scores = [float((module(digits.test.x).argmax(1) == digits.test.y).float().mean()) for module in made]
    again = precision.twins(make, [seed], steps // 4, ulps=0)
    at = np.unique(np.linspace(0, steps, POINTS).astype(int))
    yield case.rows("distance", parted.distance[0, at], step=at)
    lines = parted.slopes(), parted.proportional()
    ends = (*scores, *(line.slope[0] for line in lines), parted.distance[0, -1], np.nanmax(again.distance))
    for metric, value in zip(ENDS, ends, strict=True):
        yield case.rows(metric, float(value))


def _maker(
    case: Case, digits: data.Dataset, device: str, made: list[nn.Module]
) -> Callable[[int], tuple[nn.Module, Callable[[], object]]]:
    def make(seed: int) -> tuple[nn.Module, Callable[[], object]]:
        shape: dict[str, Any] = {"input_shape": (1, 28, 28), "depth": case.integer("depth"), "width": 64}
        model = models.build("mlp", **shape, init="he", seed=seed, device=device)
        optimizer = torch.optim.SGD(model.parameters(), lr=case.number("lr"))
        order = generator(seed, Purpose.ORDER)
        made.append(model)

        def step() -> None:
            chosen = torch.randint(len(digits.train), (32,), generator=order).to(device)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(digits.train.x[chosen]), digits.train.y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()

        return model, step

    return make


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Changes that other batches and one ulp make."""
    for parameter, answer in (("subject", invariant), ("lr", parted)):
        if parameter in rows and len(own := rows[rows[parameter].notna()]):
            yield from answer(own)


def invariant(rows: pd.DataFrame) -> Iterator[Answer]:
    """Sizes at which an output has other bits than in the whole batch."""
    rows = rows.rename(columns={"layer_index": "k"}).astype({"k": int})
    worst = rows.pivot_table("value", ["subject", "dtype", "k"], "metric", ["min", "max"], sort=False)
    found = {"equal": worst["min", "equal"] == 1, "largest_ulp": worst["max", "largest_ulp"]}
    frame = pd.DataFrame(found).reset_index().assign(draws=rows["seed"].nunique())
    yield "invariance", frame
    same = {" in ".join(key): bool(own["equal"].all()) for key, own in groups(frame, ["subject", "dtype"])}
    at = enumerated(map(str, sorted(frame["k"][~frame["equal"]].unique())), 12)
    share = Question.share("invariant", sum(same.values()), len(same), counted="combinations")
    yield share.table()
    yield share.verdict(
        INVARIANT, same, unit="share of combinations",
        why=f"the bits are the same at every size in {sum(same.values())} of {len(same)} combinations; others in "
        f"{enumerated((name for name in same if not same[name]), 12) or 'none'}, at sizes {at or 'none'}",
        method=f"outputs of the first k examples alone against those of {rows['batch'].max():.0f}, k the powers of two "
        "and their neighbours; one other bit in one draw refutes it; exact binomial interval",
    )  # fmt: skip


def parted(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth of the distance, and what it means for the accuracy."""
    params = params_of(rows, "depth", "lr", "seed").astype({"depth": int})
    for metric in ENDS:
        params[metric] = only(rows, metric)
    distance = rows[rows["metric"] == "distance"].pivot_table(index="case", columns="step", values="value", sort=False)
    tracks, grows, differs, exponents, further = [], {}, {}, {}, {}
    for key, own in groups(params, ["depth", "lr"]):
        lines = distance.reindex(own.index).dropna()  # of what stays finite
        track = {"depth": key[0], "lr": key[1], "step": lines.columns, **stats.band(lines.to_numpy())}
        tracks.append(pd.DataFrame(track))
        lively = own.dropna(subset="exponent")  # not those that one ulp leaves as they are, nor what is not finite
        ratio = (lively["exponent"] / lively["proportional"]).to_numpy()
        grows[key] = stats.against(ratio, 1.0, margin=GROWTH, log=True)
        exponents[key] = spelled("exponent", stats.mean(lively["exponent"].to_numpy()))
        differs[key] = stats.against((own["accuracy"] - own["twin"]).abs().to_numpy(), 0.0, margin=ACCURACY)
        seeds = stats.mean(np.abs([b - a for a, b in pairwise(own["accuracy"])]))
        ends = {"accuracy": own["accuracy"].mean(), "final_distance": own["final"].median()}
        further[key] = {**ends, "between_seeds": seeds.value, "same_bits_again": bool((own["again"] == 0).all())}
    yield "tracks", pd.concat(tracks, ignore_index=True)
    by, label = ("depth", "lr"), "depth {depth}, learning rate {lr:g}"
    growth = Question.of("parting", by, grows, label=label, reference="in proportion", counted="pairs of trainings")
    yield growth.table(exponents)
    said = growth.listed(above, {True: "grows exponentially at", False: "does not at", None: "undecided at"})
    yield growth.verdict(
        PARTING, above, unit="times the slope of growth in proportion to the steps",
        why=f"the distance of the weights {said}",
        method="slope of ln distance on the step, to a tenth of the largest distance, over that of a distance in "
        f"proportion to the steps, log scale, margin a factor of {GROWTH:g}; t over pairs",
    )  # fmt: skip
    accuracy = Question.of("twins", by, differs, label=label, reference="no difference", counted="pairs of trainings")
    yield accuracy.table(further)
    same = {key: columns["same_bits_again"] for key, columns in further.items()}
    said = accuracy.listed(above, {True: "more at", False: "less at", None: "an undecided amount at"})
    yield accuracy.verdict(
        REPEATABLE, {key: above(c) if same[key] else True for key, c in accuracy.members.items()},
        unit="difference of test accuracies",
        why=f"the same seed gives the same bits again under {sum(same.values())} of {len(same)} conditions; against a "
        f"margin of {ACCURACY:g}, one ulp of one weight moves the test accuracy by {said}",
        method="not repeatable: a second run with the same seed has other bits, or one ulp moves the accuracy by more "
        f"than {ACCURACY:g}; mean distance of the accuracies, t over pairs",
    )  # fmt: skip
    key = max(further, key=lambda each: further[each]["final_distance"])
    moved = [*accuracy.read(above).values()]
    yield Sentence(
        f"One unit in the last place of one weight moves the test accuracy by more than {100 * ACCURACY:g} point in "
        f"{moved.count(True)} of {len(accuracy)} combinations of depth and learning rate; by "
        f"{100 * accuracy.members[key].effect.value:.1f} at {accuracy.words(key)} "
        f"(another seed by {100 * further[key]['between_seeds']:.1f}){undecided(moved)}.",
        claims=(REPEATABLE.id,),
    )


@drawing.figure(
    "invariance", "Whether an example's output depends on how many share its batch",
    lambda invariance: "Largest distance of the outputs of k examples alone from theirs in the whole batch, "
    f"{invariance['draws'].min()} draws of weights and images. 0: the same bits.",
)  # fmt: skip
def draw_invariance(invariance: pd.DataFrame) -> Any:
    """Distance by size of the batch."""
    axes = {"xscale": "log", "yscale": "symlog", "xlabel": "examples", "ylabel": "largest distance, ulps"}
    return drawing.panels(invariance, "subject", drawing.lines, by="dtype", x="k", y="largest_ulp", axes=axes)


@drawing.figure(
    "parting", "How trainings part that differ by one unit in the last place of one weight",
    "Distance of a pair's weights over their norm, by depth and learning rate. Median and middle 90 % of pairs.",
)  # fmt: skip
def draw_tracks(tracks: pd.DataFrame) -> Any:
    """Distance by step."""
    axes = {"yscale": "log", "ylabel": "relative distance", "xlabel": "step"}
    shown = tracks.assign(low=tracks["low"].clip(lower=LEAST))[tracks["median"] > 0]  # 0 where rounding ate the ulp
    return drawing.panels(shown, "depth", drawing.profile, by="lr", x="step", axes=axes)


@drawing.figure(
    "twin_accuracy", "What one unit in the last place does to the accuracy",
    lambda twins: f"Mean distance of the test accuracies of {twins['n'].min()} pairs that differ by one ulp of one "
    "weight, with 95 % intervals that hold at once.",
)  # fmt: skip
def draw_accuracy(twins: pd.DataFrame) -> Any:
    """Accuracies of twins, by condition."""
    named = twins.assign(training=twins["depth"].astype(str) + " layers, rate " + twins["lr"].astype(str))
    axes = {"xlabel": "distance of the test accuracies"}
    return drawing.panels(named, "", drawing.forest, at="training", margin=ACCURACY, axes=axes)


METHOD = """
**Two runs.** Batch invariance: outputs of the first k examples alone against theirs in the whole batch, bit by bit.
Twins: two trainings (SGD, batch 32) from the same seed, one weight of one moved to the next float32 value; the exponent
is the slope of ln distance, from step 10 until a tenth of the largest distance. Roundings that only add up make a
distance grow in proportion to the steps, which has a slope too: the two are compared. Rates, and this comparison, were
chosen after a pilot with the same pairs.
"""
PART = Part(
    "twins", (REPEATABLE, PARTING, INVARIANT), SIZES, grids, run, analyse,
    (draw_invariance, draw_tracks, draw_accuracy), METHOD,
)  # fmt: skip
