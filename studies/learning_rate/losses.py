"""Squared, absolute and Huber loss in linear regression: how far a step goes, where it ends, and what outliers do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below
from depthgauge.studies.learning_rate import regression
from depthgauge.studies.learning_rate.regression import DELTA
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

STEADY = Claim(
    "N39",
    "squared loss moves far points too fast and slows near the target; absolute loss is steady; Huber joins them (as "
    "the notes print it, without the constant, it has a jump)",
)
LAW = Claim(
    "learning_rate/step_length",
    "a step of gradient descent on linear regression goes as far as the loss's slopes, averaged over residuals, say",
)
CYCLE = Claim(
    "learning_rate/oscillation",
    "at a constant learning rate absolute loss ends in steps back and forth across the target, of the size of the rate",
)
ROBUST = Claim(
    "learning_rate/outliers", "where a tenth of the targets is off, absolute and Huber loss end nearer to the truth"
)
RANGES = {"near": (0.03, 0.32), "far": (10.0, 100.0)}  # distances well inside and outside of DELTA, above the noise
PLACES = {"near": "near", "far": "far from"}  # the target
DISTANCES = tuple(float(f"{10 ** (k / 4):.3g}") for k in range(-8, 9))
SLOPE = 0.1  # log-log slopes nearer to 0 or 1 than this are those
LENGTH = 1.1  # steps within 10 % of their prediction have it
SIZE = 1.2  # oscillations within 20 % of the predicted size have it
NEARER = 1.5  # times nearer to the truth
ROUNDING = 1e-14  # of delta²: what a difference of two losses may be off by
FORMS = ("printed", "huber", "smooth_l1")
EXPONENTS = {
    "squared": {"near": 1.0, "far": 1.0}, "absolute": {"near": 0.0, "far": 0.0}, "huber": {"near": 1.0, "far": 0.0}
}  # fmt: skip
DELTAS = (0.1, 0.5, 1.0, 2.0, 10.0)
SHAPE = {"rows": 1000, "inputs": 2, "noise": 0.01}
OFF = {"outliers": 0.1, "shift": 20.0}
SIZES = sizes(
    "distances rates steps seeds", quick=(DISTANCES[::2], (0.1,), 80, 20),
    standard=(DISTANCES, (0.03, 0.1, 0.3), 200, 20), full=(DISTANCES, (0.01, 0.03, 0.1, 0.3), 1000, 100),
    tiny=((0.03, 0.1, 0.3, 10.0, 30.0, 100.0), (0.1,), 20, 5),
)  # fmt: skip


def grids(
    *, distances: tuple[float, ...], rates: tuple[float, ...], steps: int, seeds: int
) -> Iterator[Grid]:  # fmt: skip
    """One step from many distances; descents; descents with outliers, at several rates; Huber's loss at its delta."""
    losses = tuple(regression.LOSSES)
    yield Grid(
        {"loss": losses, "distance": distances}, SHAPE, seeds, ("distance", "seed"), 5000, claims=(LAW.id, STEADY.id)
    )
    yield Grid(
        {"loss": losses, "lr": rates}, {**SHAPE, "steps": steps}, seeds, ("lr", "seed"), 5000, claims=(CYCLE.id,)
    )
    off = {**SHAPE, **OFF, "steps": steps}
    yield Grid(
        {"loss": losses, "lr": (0.03, 0.1, 0.3, 1.0)},
        off,
        seeds,
        ("lr", "seed"),
        5000,
        claims=(ROBUST.id,),
        selection=3,
    )
    yield Grid({"delta": DELTAS}, claims=(STEADY.id,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Rows of one kind of cases."""
    if "delta" in dict(cases[0].params):
        for case in cases:
            yield from (case.rows(name, value) for name, value in regression.jumps(case.number("delta")).items())
        return
    yield from regression.descend(cases, context)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Lengths of steps, Huber's loss at its delta, ends of descents, and outliers."""
    smooth = yield from joined(rows[rows["metric"].isin(FORMS)])
    yield from stepped(rows[rows["metric"] == "length"], smooth)
    ends = rows[rows["metric"] == "end"]
    off = ends["outliers"].notna() if "outliers" in ends else ends["case"] != ends["case"]
    if len(lines := rows[rows["metric"] == "distance_left"]):
        yield "descents", pd.concat(_descents(lines), ignore_index=True)
    yield from ended(ends[~off])
    yield from robust(ends[off])


def joined(rows: pd.DataFrame) -> Any:
    """Jumps of each form at delta; returns whether the printed form jumps and torch's two do not."""
    found, answers = [], []
    for form, own in groups(rows, "metric"):
        delta, jump = own["delta"].to_numpy(float), own["value"].to_numpy(float)
        predicted = delta**2 / 2 if form == "printed" else np.zeros_like(delta)
        right = np.abs(jump - predicted) <= ROUNDING * delta**2
        words = np.where(jump > ROUNDING * delta**2, "jumps", "continuous")
        found.append(pd.DataFrame({"form": form, "delta": delta, "jump": jump, "predicted": predicted, "found": words}))
        answers.append(bool(right.all()))
    if not found:
        return None
    yield "jumps", pd.concat(found, ignore_index=True)
    yield "huber", regression.forms()
    return all(answers)


def stepped(rows: pd.DataFrame, smooth: bool | None) -> Iterator[Answer]:
    """The length of a step against its prediction, and how it grows with the distance (N39)."""
    if rows.empty:
        return
    lengths, slopes = {}, {}
    for loss, lines in groups(rows, "loss"):
        by_distance = lines.pivot_table(index="seed", columns="distance", values="value")
        at, noise = by_distance.columns.to_numpy(float), float(lines["noise"].iloc[0])
        for distance, length in zip(at.tolist(), by_distance.to_numpy().T, strict=True):
            predicted = regression.predicted_length(loss, distance, noise)
            lengths[loss, distance] = stats.against(length, predicted, log=True, margin=LENGTH)
        for where, (low, high) in RANGES.items():
            if (inside := (at >= low) & (at <= high)).sum() > 2:
                slope = stats.slopes(np.log(at[inside]), np.log(by_distance.to_numpy()[:, inside])).slope
                slopes[loss, PLACES[where]] = stats.against(slope, EXPONENTS[loss][where], margin=SLOPE)
    question = Question.of("lengths", ["loss", "distance"], lengths, label="{loss} loss {distance:.3g} from the target")
    yield question.table()
    yield question.prediction(LAW, "lengths", within=f"a factor of {LENGTH:g}", unit="distance, for a rate of 1")
    question = Question.of("exponents", ["loss", "where"], slopes, label="{loss} loss {where} the target")
    if not question:
        return
    yield question.table()
    said = "; ".join(f"{name} {value:.2g}" for name, value in question.read(lambda c: c.effect.value).items())
    yield question.verdict(
        STEADY, {**{key: agrees(c) for key, c in question.members.items()}, "jump": smooth},
        unit="log-log slope of a step's length on the distance",
        why=f"a step's length grows with this power of the distance: {said}. Without its constant Huber's loss jumps "
        "by delta²/2 at delta; torch's HuberLoss and SmoothL1Loss do not. Whether squared loss is too "
        "fast is asked of outliers (learning_rate/outliers); below 1 / curvature it does not pass a far target",
        method=f"one step, t by seed against 1 (in proportion) and 0 (steady), margin {SLOPE:g}; "
        f"near: {RANGES['near'][0]:g} to {RANGES['near'][1]:g}, far: {RANGES['far'][0]:g} to {RANGES['far'][1]:g}, in "
        f"units in which Huber's delta is {DELTA:g}",
    )  # fmt: skip


def _descents(lines: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for (loss, lr), own in groups(lines, ["loss", "lr"]):
        by_step = own.pivot_table(index="seed", columns="step", values="value", dropna=False)
        yield pd.DataFrame({"loss": loss, "lr": lr, "n": len(by_step), "step": by_step.columns, **stats.band(by_step)})


def ended(ends: pd.DataFrame) -> Iterator[Answer]:
    """Ends of descents at a constant rate; absolute loss against the oscillation that is predicted."""
    if ends.empty:
        return
    asked = {}
    for lr, own in groups(ends[ends["loss"] == "absolute"], "lr"):
        cycle = regression.predicted_cycle(lr, float(own["noise"].iloc[0]))
        if cycle > 0:
            asked[(lr,)] = stats.against(own["value"], cycle, log=True, margin=SIZE)
    question = Question.of("oscillation", ["lr"], asked, label="a rate of {lr:g}")
    if not question:
        return
    yield question.table()
    yield question.prediction(CYCLE, "distances", within=f"a factor of {SIZE:g}", unit="distance from the target")


def robust(ends: pd.DataFrame) -> Iterator[Answer]:
    """Distance from the truth with outliers, each loss at the rate that other seeds choose, against squared loss."""
    if ends.empty:
        return
    runs = ends[["loss", "lr", "seed", "value"]].assign(seed=ends["seed"].astype(int), score=-np.log(ends["value"]))
    if (runs := training.tunable(runs, ["loss"])).empty:
        return
    by_loss = {
        loss: own.set_index("seed") for loss, own in groups(training.tuned(runs, ["loss"], score="score"), "loss")
    }
    squared, asked, further = by_loss.pop("squared", None), {}, {}
    for loss, own in by_loss.items():
        if squared is not None:
            both = own.index.intersection(squared.index)
            pair = own.loc[both, "value"], squared.loc[both, "value"]
            asked[(loss,)] = stats.paired(*pair, log=True, margin=NEARER, test="t")
            left = {"end": pair[0].median(skipna=False), "squared_end": pair[1].median(skipna=False)}
            further[(loss,)] = {**left, "lr": own["lr"].iloc[0], "squared_lr": squared["lr"].iloc[0]}
    question = Question.of("outliers", ["loss"], asked, label="{loss} loss", reference="squared loss")
    if question:
        yield question.table(further)
        (best,), nearest = min(question.members.items(), key=lambda pair: pair[1].effect.value)
        yield Sentence(
            f"With {OFF['outliers']:.0%} of the targets far off, {best} loss ends {1 / nearest.effect.value:.0f} times "
            "nearer to the truth than squared loss.",
            claims=(ROBUST.id,),
        )
        words = {True: "ending nearer to the truth than squared loss:", False: "not nearer:", None: "undecided:"}
        yield question.verdict(
            ROBUST, below, unit="times the distance of squared loss",
            why=f"with {OFF['outliers']:.0%} of the targets off by {OFF['shift']:g}, {question.listed(below, words)}",
            method=f"distance from the weights that made the targets, over the last {2 * regression.LAST} steps; "
            f"rates chosen by other seeds; paired log ratio, margin {NEARER:g}",
        )  # fmt: skip


@drawing.figure(
    "lengths", "How far a step goes, by the loss and the distance from the target",
    lambda lengths: f"One step of gradient descent at a rate of 1 on linear regression: mean of {lengths['n'].min()} "
    "seeds, intervals that hold at once; dashed: theory.",
)  # fmt: skip
def draw_lengths(lengths: pd.DataFrame) -> Any:
    """Length of a step against the distance."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "distance from the target", "ylabel": "length of a step"}
    return drawing.panels(lengths, "", drawing.estimates, at="distance", by="loss", axes=axes)


@drawing.figure(
    "descents", "The way to the target at a constant learning rate, by the loss",
    lambda descents: f"Linear regression, full batch; median and middle 90 % of {descents['n'].min()} seeds.",
)  # fmt: skip
def draw_descents(descents: pd.DataFrame) -> Any:
    """Distance by step, a panel a rate."""
    axes = {"yscale": "log", "ylabel": "distance from the target"}
    return drawing.panels(descents, "lr", drawing.profile, by="loss", x="step", axes=axes)


@drawing.figure(
    "huber", "Huber's loss without its constant jumps",
    f"The loss of one point against its distance; delta is {DELTA:g}. Without the constant -delta²/2 it jumps by "
    "delta²/2.",
)  # fmt: skip
def draw_huber(huber: pd.DataFrame) -> Any:
    """Both forms around delta."""
    axes = {"xlabel": "distance of a point", "ylabel": "loss"}
    return drawing.panels(huber, "", _forms, by="form", axes=axes)


def _forms(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.lines(axis, rows, x="distance", y="loss", marks=False, **options)


METHOD = f"""**Losses.** Linear regression with normal inputs, {SHAPE["rows"]} rows, noise of {SHAPE["noise"]:g},
full-batch gradient descent in float64; squared loss is half the square, Huber's delta {DELTA:g}. The predicted step is
that of infinitely many rows. An absolute loss's step of rate lr is sqrt(2/pi) lr long where the target is far, and ends
in a cycle at the distance of which it is twice: sqrt(lr²/(2 pi) - noise²). With outliers, {OFF["outliers"]:.0%} of the
targets are shifted by {OFF["shift"]:g}."""
PART = Part(
    "losses", (STEADY, LAW, CYCLE, ROBUST), SIZES, grids, run, analyse, (draw_lengths, draw_descents, draw_huber),
    METHOD,
)  # fmt: skip
