"""Steps to a target against batch size at several widths: does width move the critical batch size?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import arrival, drawing, planning, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, spelled
from depthgauge.studies.batch_size import perceptrons
from depthgauge.studies.batch_size.hyperbola import averaged
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

WIDTH = Claim("batch_size/width", "the width of a network does not move its critical batch size")

MARGIN = 2.0  # factor between two critical batch sizes: closer ones are called the same
FLAT = 0.05  # ln of the steps: where the last step to an end of the grid won less, a further one would not matter
METRICS = ("steps", "reached", "score")
KEYS = ["width", "batch"]
SIZES = sizes(
    "dataset widths batches target epochs least rates seeds",
    quick=("digits", (), (), 0.2, 6, 200, 0, 0),
    standard=("digits", (16, 64, 256), (2, 8, 32, 128), 0.2, 6, 200, 5, 8),
    full=("mnist5k", (16, 64, 256, 1024), (2, 8, 32, 128, 512), 0.2, 6, 400, 7, 12),
    tiny=("digits", (8, 16), (16, 64, 256), 2.0, 1, 40, 3, 5),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    dataset: str, widths: tuple[int, ...], batches: tuple[int, ...], target: float, epochs: int, least: int, rates: int,
    seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """Every batch size at every width, at rates in factors of two about where a best one is expected; none at quick."""
    examples = {"digits": 1154, "mnist5k": 3200}[dataset]
    for width in widths:
        for batch in batches:
            middle = -5.5 + min(math.log2(batch), 4.5)  # in proportion to the batch, to the largest that is stable
            lr = tuple(2.0 ** math.floor(middle + k - (rates - 1) / 2) for k in range(rates))
            steps = max(least, epochs * examples // batch)
            size: dict[str, Value] = {
                "data": dataset,
                "width": width,
                "depth": 2,
                "batch": batch,
                "budget": steps,
                "target": target,
            }
            yield Grid(
                {"lr": lr}, {**perceptrons.MODEL, **size}, seeds, perceptrons.TOGETHER, perceptrons.most_replicas,
                selection=perceptrons.SELECTION,
            )  # fmt: skip


def second(rows: pd.DataFrame, **_: Any) -> Iterator[Grid]:
    """Two rates more for each width and batch size: between the best and its neighbours, or beyond it at the edge."""
    runs = training.tunable(perceptrons.runs_of(rows, "width", "batch", metrics=METRICS), KEYS)
    if runs.empty:
        return
    for row in training.choices(runs, KEYS, score="score").sort_values(KEYS).to_dict("records"):
        own = runs[(runs["width"] == row["width"]) & (runs["batch"] == row["batch"])]
        case = Case.read(own["run"].iloc[0])
        fixed = {name: value for name, value in case.params if name not in perceptrons.TOGETHER}
        steps = (-0.5, 0.5) if not row["outward"] else (-0.5 * row["outward"], row["outward"])
        lr = tuple(float(f"{row['lr'] * 2.0**step:.4g}") for step in steps)
        yield Grid(
            {"lr": lr}, fixed, int(own["seed"].max()) + 1, perceptrons.TOGETHER, perceptrons.most_replicas,
            selection=perceptrons.SELECTION,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train until the loss over all training examples is at the target, by plain SGD."""
    task, shared = perceptrons.task(cases[0], context), cases[0]
    sgd, budget = replicas.SGD([case.number("lr") for case in cases]), shared.integer("budget")
    found = arrival.steps_to(
        task.drawn(cases), task.fit, sgd, target=shared.number("target"), batch=shared.integer("batch"), steps=budget
    )
    for i, case in enumerate(cases):
        steps, reached = float(found.steps[i]), bool(found.reached[i])
        score = -math.log(steps) if reached else -math.log(2 * budget)
        ends = {"steps": steps, "reached": float(reached), "score": score}
        yield from (case.rows(metric, value) for metric, value in ends.items())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Critical batch size of every width, fitted to the steps at tuned rates; ratios to the narrowest's."""
    runs = training.tunable(perceptrons.runs_of(rows, *KEYS, metrics=METRICS), KEYS)
    if runs.empty:
        return
    tuned = training.tuned(runs.sort_values([*KEYS, "lr", "seed"]), KEYS, score="score")
    tuned = tuned.assign(at_edge=training.open_ended(tuned, FLAT))
    fits = {width: found for width, own in groups(tuned, "width") if (found := fitted(own)) is not None}
    edge = {width: bool(own["at_edge"].any()) for width, own in groups(tuned, "width")}
    yield "width_steps", steps(tuned, fits)
    yield "width_fits", pd.DataFrame(list(_fits(fits, edge)))
    yield from answer(fits, edge)


def fitted(runs: pd.DataFrame) -> planning.Hyperbola | None:
    """The hyperbola of one width; None of fewer than three batch sizes, or two seeds."""
    wide = {name: runs.pivot_table(index="seed", columns="batch", values=name) for name in ("steps", "reached")}
    whole = wide["steps"].dropna()
    if len(whole) < 2 or whole.shape[1] < 3:
        return None
    return planning.fit(
        [float(b) for b in whole.columns], whole.to_numpy(), wide["reached"].loc[whole.index].to_numpy() == 0
    )


def steps(tuned: pd.DataFrame, fits: Mapping[int, planning.Hyperbola]) -> pd.DataFrame:
    """One row a width and batch size: the rate, runs that arrived, their steps, and those of the fit."""
    return pd.DataFrame([
        {
            "width": key[0], "batch": key[1], "n": len(own), "lr": own["lr"].iloc[0], "at_edge": own["at_edge"].any(),
            "reached": int(own["reached"].sum()),
            **_plain(arrival.usual(own["steps"].to_numpy(float), own["reached"].to_numpy(float) > 0)),
            "predicted": float(fits[key[0]].steps(key[1])) if key[0] in fits else math.nan,
        }
        for key, own in groups(tuned, KEYS)
    ])  # fmt: skip


def _plain(steps: stats.Estimate) -> dict[str, float]:
    return {"value": steps.value, "low_95": steps.low, "high_95": steps.high}


def _fits(fits: Mapping[int, planning.Hyperbola], edge: Mapping[int, bool]) -> Iterator[dict[str, Any]]:
    for width, found in fits.items():
        yield {
            "width": width, **spelled("critical_batch", found.critical_batch),
            **spelled("least_steps", found.least_steps), "furthest_residual": float(np.abs(found.residuals).max()),
            "censored": found.censored, "at_edge": edge[width],
        }  # fmt: skip


def answer(fits: Mapping[int, planning.Hyperbola], edge: Mapping[int, bool]) -> Iterator[Answer]:
    """Critical batch sizes over that of the narrowest network, from fits that leave out the same seeds."""
    if not fits:
        return
    narrow = min(fits)
    asked = {}
    for width, found in fits.items():
        if width != narrow and len(found.pseudo) == len(fits[narrow].pseudo):
            ratio = np.exp(found.pseudo[:, 1] - fits[narrow].pseudo[:, 1])
            compared = stats.against(ratio, 1.0, log=True, margin=MARGIN)
            asked[(width,)] = training.unsettled(compared, edge[width] or edge[narrow])
    question = Question.of("width", ("width",), asked, label="width {width}", reference="same")
    if not question:
        return
    yield question.table()
    words = {True: "the same within the margin:", False: "different by more:", None: "undecided:"}
    critical = ", ".join(f"{found.critical_batch.value:.0f} at width {width}" for width, found in fits.items())
    yield question.verdict(
        WIDTH, agrees, unit=f"times the critical batch size at width {narrow}",
        why=f"critical batch sizes are {critical}; {question.listed(agrees, words)}",
        method=f"hyperbola through the steps to the target at tuned rates, ratio of critical batch sizes over the same "
        f"seeds, jackknife, margin a factor of {MARGIN:g}",
    )  # fmt: skip
    wide, most = max(fits), question.members[(max(width for (width,) in asked),)].effect
    yield Sentence(
        f"A network {wide / narrow:g} times as wide has {most.told('.2f')} times the critical batch size.",
        claims=(WIDTH.id,),
    )


@drawing.figure(
    "width_steps", "Steps to the target against batch size, by width",
    lambda width_steps: f"Steps until the training loss is at the target, at the rate tuned for batch and width; "
    f"{averaged(width_steps)} of {width_steps['n'].min()} seeds with 95 % intervals. Dashed: the fitted hyperbola.",
)  # fmt: skip
def draw_steps(width_steps: pd.DataFrame) -> Any:
    """Steps by batch size and width, with the fits."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size", "ylabel": "steps to the target"}
    return drawing.panels(width_steps, "", drawing.estimates, at="batch", by="width", axes=axes)


METHOD = f"""**Width.** Multilayer perceptrons with one hidden layer, plain SGD, to a fixed loss over all training
examples; the rate of each width and batch size is tuned by other seeds, first in factors of two, then between the best
and its neighbours, or beyond it. The critical batch size is that of the hyperbola (McCandlish et al. 2018,
arXiv:1812.06162). Zhang et al. (2024, arXiv:2410.21676) find that the amount of data moves it and the size of
the model hardly does; data are not varied here. Margin: a factor of {MARGIN:g}."""
PART = Part("width", (WIDTH,), SIZES, grids, run, analyse, (draw_steps,), METHOD, second, shown=("width_fits",))
