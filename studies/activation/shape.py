"""Depth against width at equal size: is the deeper network easier to train, and does it end better?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.conditions import tallied
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, every, listed
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

DEEP = Claim("N15", "a deep network is easier to train, and ends better, than a shallow wide one of the same capacity")

MARGIN = 0.02  # test accuracy
KEYS = ["activation", "depth"]
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
    made = tuning.prepared(cases, context, "seed")
    yield from training.outcomes(cases, *made)
    yield from (case.rows("size", sum(p.numel() for p in made[0].parameters())) for case in cases)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Every depth against one hidden layer, seed by seed: steps to the target, and accuracy at the end."""
    runs = tuning.runs_of(rows, "depth", "width", "steps", "target", metrics=(*training.METRICS, "size"))
    reported = tuning.tuned(runs.rename(columns={"size": "parameters"}), KEYS)
    lines = dict(groups(reported, KEYS))
    asked, shallowest = {}, min((depth for _, depth in lines), default=0)
    for (activation, depth), deep in lines.items():
        shallow = lines.get((activation, shallowest))
        if depth == shallowest or shallow is None:
            continue
        asked[activation, depth, "accuracy"] = tuning.paired(deep, shallow, margin=MARGIN)
        # a run that never arrived has taken the whole budget: means within it, as in `stats.restricted_mean`
        asked[activation, depth, "steps saved"] = tuning.paired(shallow, deep, "steps_to_target")
    label = "{quantity}, {activation} at depth {depth}"
    question = Question.of("depth_against_width", (*KEYS, "quantity"), asked, label=label, reference="one layer")
    if not question:
        return
    yield question.table()
    yield "shape", tuning.cells(reported, KEYS, stats.mean, "width", "parameters")
    gains = question.where(quantity="accuracy")
    answers = {  # the claim says two things, easier and better
        f"{of} at depth {depth}": every(map(above, question.where(activation=of, depth=depth).members.values()))
        for of, depth, _ in gains.members
    }
    words = {True: "both easier and better", False: "not both", None: "undecided"}

    def _gain(key: tuple[str, int, str]) -> float:
        return gains.members[key].effect.value

    worst = min(gains.members, key=_gain)
    open_ones = [key for key in gains.members if answers[f"{key[0]} at depth {key[1]}"] is None]
    yield gains.verdict(
        DEEP, answers, unit="test accuracy gained over one hidden layer", says=tallied(answers, "deeper networks"),
        why=f"against one hidden layer of about {int(reported['parameters'].median()):,} parameters the deeper network "
        f"is: {listed(answers, words, 9)}",
        shown=min(open_ones, key=_gain) if open_ones and True not in answers.values() else worst,
        method=f"paired t by seed, accuracy (margin {MARGIN:g}) and steps to the target in the budget; {tuning.METHOD}",
    )  # fmt: skip
    if (lost := gains.members[worst]).beyond:
        yield Sentence(
            f"With the same {int(reported['parameters'].median()):,} parameters {worst[1]} {worst[0]} layers end "
            f"{100 * abs(lost.effect.value):.0f} points of test accuracy {'above' if lost.above else 'below'} one wide "
            "layer.",
            "shape",
            (DEEP.id,),
        )


@drawing.figure(
    "shape", "Depth against width, with the same number of parameters",
    lambda shape: f"Networks of about {int(shape['parameters'].median()):,} parameters, own gain and tuned learning "
    f"rate, {shape['n'].min()} runs each: mean test accuracy, and the median of the steps to the target, with 95 % "
    "intervals. Without a point: fewer than half of the runs had reached the target when the steps were spent.",
)  # fmt: skip
def draw_shape(shape: pd.DataFrame) -> Any:
    """Accuracy and steps to the target against depth at equal size."""
    columns = {"mean_accuracy": "test accuracy", "median_steps": "median steps to the target"}
    shown = pd.concat(
        shape.set_axis([str(each).replace(name, "value") for each in shape], axis=1).assign(quantity=words)
        for name, words in columns.items()
    )
    look: dict[str, Any] = {"shared": "", "axes": {"xscale": "log", "xlabel": "hidden layers", "ylabel": " "}}
    shown = shown[np.isfinite(shown["value"])]
    return drawing.panels(shown, "quantity", drawing.estimates, at="depth", by="activation", joined=True, **look)


METHOD = "**Depth against width.** Each depth has the width that gives it as many parameters as one hidden layer."
PART = Part("shape", (DEEP,), SIZES, grids, run, analyse, (draw_shape,), METHOD, tuning.further_rates(*KEYS))
