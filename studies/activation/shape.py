"""Depth against width at equal size: is the deeper network easier to train, and does it end better?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, listed, spelled
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

DEEP = Claim("N15", "a deep network is easier to train, and ends better, than a shallow wide one of the same capacity")

MARGIN = 0.02  # test accuracy
KEYS = ["activation", "depth"]
QUANTITIES = ("accuracy", "steps saved")
DIGITS = {"digits": (64, 10), "mnist5k": (784, 10)}  # inputs and classes
SIZES = sizes(
    "depths width dataset steps seeds rates", quick=((1, 3, 8), 64, *tuning.QUICK),
    standard=((1, 2, 4, 8, 16), 128, *tuning.STANDARD), full=((1, 2, 4, 8, 16, 32), 256, *tuning.FULL),
    tiny=((1, 2), 8, *tuning.TINY),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    depths: tuple[int, ...], width: int, dataset: str, steps: int, seeds: int, rates: tuple[float, ...]
) -> Iterator[Grid]:
    """Networks of as many parameters as one hidden layer of that width, by depth."""
    inputs, classes = DIGITS[dataset]
    parameters = (inputs + 1) * width + (width + 1) * classes
    for depth in depths:
        size = {"depth": depth, "width": width_for(parameters, depth, inputs, classes)}
        yield Grid(
            {"activation": ("relu", "tanh"), "lr": rates}, {**tuning.sgd(dataset, steps), **size}, seeds,
            tuning.TOGETHER, tuning.most_replicas, selection=tuning.SELECTION,
        )  # fmt: skip


def width_for(parameters: int, depth: int, inputs: int, classes: int) -> int:
    """The width at which `depth` hidden layers come closest to that many parameters, biases included."""
    # (inputs + 1) w + (depth - 1) (w^2 + w) + (w + 1) classes = parameters
    square, linear, constant = depth - 1, inputs + depth + classes, classes - parameters
    if square == 0:
        return max(1, round(-constant / linear))
    return max(1, round((-linear + math.sqrt(linear**2 - 4 * square * constant)) / (2 * square)))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train on real digits; replicas differ in learning rate and seed."""
    template, *others = tuning.prepared(cases, context, "seed")
    yield from training.outcomes(cases, template, *others)
    yield from (case.rows("size", sum(p.numel() for p in template.parameters())) for case in cases)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Every depth against one hidden layer, seed by seed: steps to the target, and accuracy at the end."""
    every = tuning.runs_of(rows, "depth", "width", "steps", "target", metrics=(*training.METRICS, "size"))
    lines = dict(groups(tuning.tuned(every, KEYS), KEYS))
    asked, shallowest = {}, min((depth for _, depth in lines), default=0)
    for (activation, depth), deep in lines.items():
        shallow = lines.get((activation, shallowest))
        if depth == shallowest or shallow is None:
            continue
        # a run that never arrived has taken the whole budget: means within it, as in `stats.restricted_mean`
        pace = tuning.paired(shallow, deep, "steps_to_target")
        gains = zip(QUANTITIES, (tuning.paired(deep, shallow, margin=MARGIN), pace), strict=True)
        asked |= {(activation, depth, quantity): gain for quantity, gain in gains}
    label = "{quantity}, {activation} at depth {depth}"
    question = Question.of("depth_against_width", (*KEYS, "quantity"), asked, label=label, reference="one layer")
    if not question:
        return
    yield question.table()
    cells = pd.DataFrame(_cell(dict(zip(KEYS, key, strict=True)), runs) for key, runs in lines.items())
    yield "shape", cells
    yield _verdict(question, f"about {int(cells['parameters'].median()):,} parameters")


def _cell(key: dict[str, object], runs: pd.DataFrame) -> dict[str, Any]:
    steps = stats.median(runs["steps_to_target"].where(runs["reached"] > 0, math.inf).to_numpy())
    return {
        **key, "width": runs["width"].iloc[0], "parameters": int(runs["size"].iloc[0]), "n": len(runs),
        **spelled("accuracy", stats.mean(runs["test_accuracy"].to_numpy())), **spelled("median_steps", steps),
        "reached": int(runs["reached"].sum()), "lr": runs["lr"].iloc[0], "at_edge": runs["at_edge"].iloc[0],
    }  # fmt: skip


def _verdict(question: Question, size: str) -> Answer:
    """N15 says two things, easier and better: it holds where both do, and fails where one is refuted."""
    gains = question.where(quantity="accuracy")
    answers: dict[tuple[Any, ...], bool | None] = {}
    for activation, depth, quantity in gains.members:
        better, pace = (question.members[activation, depth, name] for name in QUANTITIES)
        refuted = better.inside or better.below or pace.below
        answers[activation, depth, quantity] = False if refuted else True if better.above and pace.above else None
    said = {f"{activation} at depth {depth}": answer for (activation, depth, _), answer in answers.items()}
    words = {True: "both easier and better", False: "not both", None: "undecided"}
    return gains.verdict(
        DEEP, answers, unit="test accuracy gained over one hidden layer",
        why=f"against one hidden layer of {size} the deeper network is: {listed(said, words, 9)}",
        shown=min(gains.members, key=lambda key: gains.members[key].effect.value),
        method=f"paired t by seed of accuracy (margin {MARGIN:g}) and steps to the target within the budget; "
        f"{tuning.METHOD}",
    )  # fmt: skip


@drawing.figure(
    "shape", "Depth against width, with the same number of parameters",
    lambda shape: f"Networks of about {int(shape['parameters'].median()):,} parameters, own gain and tuned learning "
    f"rate, {shape['n'].min()} runs each: mean test accuracy, and the median of the steps to the target, with 95 % "
    "intervals. Without a point: fewer than half of the runs had reached the target when the steps were spent.",
)  # fmt: skip
def draw_shape(shape: pd.DataFrame) -> Any:
    """Accuracy and steps to the target against depth at equal size."""
    columns = {"accuracy": "test accuracy", "median_steps": "median steps to the target"}
    ends = {name: [name, f"{name}_low_95", f"{name}_high_95"] for name in columns}
    shown = pd.concat(
        shape[[*KEYS, *ends[name]]].set_axis([*KEYS, "value", "low_95", "high_95"], axis=1).assign(quantity=words)
        for name, words in columns.items()
    )
    shown = shown[np.isfinite(shown["value"])]
    axes = {"xscale": "log", "xlabel": "hidden layers", "ylabel": " "}
    return drawing.panels(shown, "quantity", drawing.estimates, at="depth", by="activation", shared="", axes=axes)


METHOD = """**Depth against width.** Every depth, at the width at which it has as many parameters as one hidden layer,
is trained as above and compared with that layer seed by seed, in accuracy and in steps to the target."""
PART = Part("shape", (DEEP,), SIZES, grids, run, analyse, (draw_shape,), METHOD, tuning.further_rates(*KEYS))
