"""Depth against width at equal size: is the deeper network easier to train, and does it end better?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import data, drawing, models, stats, theory, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, agrees, listed, side, spelled
from depthgauge.studies.activation import tuning
from depthgauge.studies.activation.functions import make, phi
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Status

DEEP = Claim("N15", "a deep network is easier to train, and ends better, than a shallow wide one of the same capacity")

MARGIN = 0.02  # test accuracy
KEYS = ["activation", "depth"]
DIGITS = {"digits": (64, 10), "mnist5k": (784, 10)}  # inputs and classes
SIZES = {
    "quick": {
        "dataset": "digits", "depths": (1, 3, 8), "width": 64, "steps": 150, "seeds": 8,
        "rates": (0.003, 0.01, 0.03, 0.1),
    },
    "standard": {
        "dataset": "mnist5k", "depths": (1, 2, 4, 8, 16), "width": 128, "steps": 250, "seeds": 8,
        "rates": (0.001, 0.003, 0.01, 0.03, 0.1),
    },
    "full": {
        "dataset": "mnist5k", "depths": (1, 2, 4, 8, 16, 32), "width": 256, "steps": 1500, "seeds": 12,
        "rates": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    },
    "tiny": {"dataset": "digits", "depths": (1, 2), "width": 8, "steps": 25, "seeds": 5, "rates": (0.03, 0.1)},
}  # fmt: skip


def grids(
    dataset: str, depths: tuple[int, ...], width: int, steps: int, seeds: int, rates: tuple[float, ...]
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
    shared = cases[0]
    spec = shared.text("activation")
    dataset = data.load(shared.text("data")).to(context.device)
    template = models.build(
        "mlp", depth=shared.integer("depth"), width=shared.integer("width"), activation=make(spec),
        input_shape=dataset.input_shape, classes=dataset.classes,
    )  # fmt: skip
    draw = training.Draw([case.random_seed("seed") for case in cases], tuning.at_gain(theory.gain(phi(spec)).forward))
    yield from training.outcomes(cases, template, dataset, tuning.recipe(cases), draw)
    size = sum(parameter.numel() for parameter in template.parameters())
    for case in cases:
        yield case.rows("size", size)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Every depth against one hidden layer, seed by seed: steps to the target, and accuracy at the end."""
    every = tuning.runs(rows, "depth", "width", "steps", "target", metrics=(*training.METRICS, "size"))
    reported = tuning.tuned(every, KEYS)
    edges = tuning.at_edge(reported, KEYS)
    asked, further, shallowest = {}, {}, reported["depth"].min()
    for activation, runs in groups(reported, "activation"):
        by_depth = {int(depth): own.set_index("seed") for depth, own in groups(runs, "depth")}
        shallow = by_depth.pop(shallowest, None)
        for depth, deep in by_depth.items() if shallow is not None else ():
            both = shallow.index.intersection(deep.index)
            a, b = deep.loc[both], shallow.loc[both]
            accuracy, pace = ((activation, depth, quantity) for quantity in ("accuracy", "steps saved"))
            asked[accuracy] = stats.paired(a["test_accuracy"], b["test_accuracy"], margin=MARGIN, test="t")
            # a run that never arrived has taken the whole budget: means within it, as in `stats.restricted_mean`
            asked[pace] = stats.paired(b["steps_to_target"], a["steps_to_target"], test="t")
            at_edge = bool({(activation, depth), (activation, shallowest)} & edges)
            further |= dict.fromkeys((accuracy, pace), {"at_edge": at_edge})
    question = Question.of(
        "depth_against_width", (*KEYS, "quantity"), asked, label="{quantity}, {activation} at depth {depth}",
        reference="one hidden layer",
    )  # fmt: skip
    if not question:
        return
    yield question.table(further)
    cells = [_cell(dict(zip(KEYS, key, strict=True)), runs) for key, runs in groups(reported, KEYS)]
    yield "shape", pd.DataFrame(cells)
    yield from _answers(question, {key[:2] for key, columns in further.items() if columns["at_edge"]}, cells)


def _cell(key: dict[str, object], runs: pd.DataFrame) -> dict[str, Any]:
    steps = stats.median(runs["steps_to_target"].where(runs["reached"] > 0, math.inf).to_numpy())
    return {
        **key, "width": runs["width"].iloc[0], "parameters": int(runs["size"].iloc[0]), "n": len(runs),
        **spelled("accuracy", stats.mean(runs["test_accuracy"].to_numpy())), **spelled("median_steps", steps),
        "reached": int(runs["reached"].sum()), "lr": runs["lr"].iloc[0], "at_edge": runs["at_edge"].iloc[0],
        "budget": runs["steps"].max(),
    }  # fmt: skip


def _answers(question: Question, edges: set[Any], cells: list[dict[str, Any]]) -> Iterator[Answer]:
    """N15 says two things, easier and better: it holds where both do, and fails where one is refuted."""
    answers: dict[str, bool | None] = {}
    for activation, depth, _ in question.where(quantity="accuracy").members:
        better, pace = (question.members[activation, depth, quantity] for quantity in ("accuracy", "steps saved"))
        refuted = better.inside or better.below or pace.below
        answer = False if refuted else True if better.above and pace.above else None
        answers[f"{activation} at depth {depth}"] = None if (activation, depth) in edges else answer
    size = f"{cells[0]['parameters']:,} parameters"
    words = {True: "easier and better", False: "not both easier and better", None: "undecided"}
    told = listed(answers, words, 9)
    gains = question.where(quantity="accuracy")
    verdict = gains.verdict(
        DEEP, agrees, why=f"against one hidden layer of about {size}: {told}", unit="test accuracy gained",
        shown=min(gains.members, key=lambda key: gains.members[key].effect.value),
        method=f"paired t by seed of accuracy (margin {MARGIN:g}) and of steps to the target within the budget; at a "
        "learning rate that ends its grid nothing is concluded",
    )  # fmt: skip
    yield replace(verdict, status=Status(stats.combine(answers.values())))
    best = max(cells, key=lambda cell: cell["accuracy"])
    sides = [side(comparison) for comparison in gains.members.values()]
    yield (
        f"At about {size}, {sides.count(1)} of {len(sides)} deeper networks end better than one hidden layer, "
        f"{sides.count(0)} the same within {MARGIN:.0%} of test accuracy, {sides.count(-1)} worse; the highest mean "
        f"is that of {best['activation']} at depth {best['depth']}, {best['accuracy']:.1%}."
    )


@drawing.figure(
    "shape", "Depth against width, with the same number of parameters",
    lambda shape: f"Networks of about {int(shape['parameters'].median()):,} parameters, own gain and tuned learning "
    f"rate, {shape['n'].min()} runs each: mean test accuracy, and the median of the steps to the target, with 95 % "
    "intervals. Without a point: fewer than half of the runs had reached the target when the steps were spent.",
)  # fmt: skip
def draw_shape(shape: pd.DataFrame) -> Any:
    """Accuracy and steps to the target against depth at equal size."""
    shown = pd.concat(
        shape[KEYS].assign(
            what=words, value=shape[name], low_95=shape[f"{name}_low_95"], high_95=shape[f"{name}_high_95"]
        )
        for name, words in (("accuracy", "test accuracy"), ("median_steps", "median steps to the target"))
    )  # fmt: skip
    shown = shown[np.isfinite(shown["value"])]
    axes = {"xscale": "log", "xlabel": "hidden layers", "ylabel": " "}
    return drawing.panels(shown, "what", drawing.estimates, at="depth", by="activation", shared="", axes=axes)


PART = Part(
    "shape",
    claims=(DEEP,),
    sizes=SIZES,
    grids=grids,
    run=run,
    analyse=analyse,
    figures=(draw_shape,),
    second=tuning.further_rates(*KEYS),
)
