"""Time of a training step with an activation, against the same step with ReLU. A clock is read here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from depthgauge import data, drawing, models, stats, timing
from depthgauge.frames import groups, params_of, records
from depthgauge.models.activations import FEW, handed, names, once
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, enumerated
from depthgauge.studies.activation import elementwise
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.timing.clocks import Work
from depthgauge.verdict import Claim, Sentence

SIMPLE = Claim("N12", "ReLU is preferred because it is simple: no exponential to compute")

MARGIN = 1.05  # a step that takes up to 5 % longer costs the same
# Those whose formula has an exponential or a function made of some (tanh, erf).
EXPONENTIAL = {"celu", "elu", "gelu", "logsigmoid", "mish", "selu", "sigmoid", "silu", "softplus", "tanh", "tanhshrink"}
NAMES = {"mlp": "multilayer perceptron", "plain_cnn": "convolutional network"}
SIZES = sizes(
    "activations batch blocks", quick=(FEW, 16, 13), standard=(names(), 64, 15),
    full=(names(), 128, 31), tiny=(("relu", "tanh"), 2, 8),
)  # fmt: skip


def grids(activations: tuple[str, ...], batch: int, blocks: int) -> Iterator[Grid]:
    """A step of two models with every activation; nothing runs beside."""
    timed = ("relu", *(name for name in activations if name != "relu"))
    yield Grid(
        {"model": ("mlp", "plain_cnn"), "activation": timed}, {"batch": batch, "blocks": blocks},
        together=("activation", "model"), chunk=1000, exclusive=True, architecture=("activation",),
    )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """A whole training step, in turns with the same step of the same model with ReLU."""
    clock = timing.clock(context.device)
    for case in cases:
        with_it, with_relu = (_step(case, spec, context.device) for spec in (case.text("activation"), "relu"))
        yield from timing.rows_of(case, timing.in_turns(clock, with_it, with_relu, case.integer("blocks")), "step")


def _step(case: Case, spec: str, device: str) -> Work:
    x, y = data.load("mnist5k").train[: case.integer("batch")]
    x, y = x.to(device), y.to(device)
    model = models.build(
        case.text("model"), preset="small", input_shape=(1, 28, 28), classes=10, activation=handed(spec), device=device
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return step


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N12: the time of a training step against the same step with ReLU."""
    params = once(params_of(rows, "activation", "model", "batch").reset_index(), timed=True)
    exponential = set(params.loc[params["spec"].isin(EXPONENTIAL), "activation"])
    asked, further = {}, {}
    for model, cases in groups(params.set_index("case", drop=False), "model"):
        blur = elementwise.resolution(rows, cases.index[cases["spec"] == "relu"], "step")
        for row in records(cases[cases["spec"] != "relu"]):
            a, b = timing.durations(rows, row.case, "step")
            key = (row.activation, model)
            asked[key] = stats.time_ratio(a, b, resolution=blur, margin=MARGIN, confidence=elementwise.CONFIDENCE)
            times = {name: 1e3 * float(np.median(each)) for name, each in (("step_ms", a), ("relu_step_ms", b))}
            further[key] = {**times, "resolution": blur, "batch": row.batch}
    question = Question.of(
        "step_cost", ("activation", "model"), asked, label="{activation} in {model}", reference="a step with ReLU",
        counted="blocks", family=lambda activation, **_: activation in exponential,
    )  # fmt: skip
    yield question.table(further)
    longer = [f"{question.words(key)} {c.effect.value:.2f}" for key, c in question.members.items() if c.above]
    if slow := question.where(activation=tuple(exponential)):
        blur = max(columns["resolution"] for columns in further.values())
        said = list(slow.read(above).values())
        yield slow.verdict(
            SIMPLE, above, unit="times a step with ReLU",
            why=f"with an exponential a training step takes more than {MARGIN - 1:.0%} longer than with ReLU in "
            f"{said.count(True)} of {len(said)} comparisons, no longer in {said.count(False)}, at a resolution of "
            f"{blur - 1:.1%}. Longer, with or without an exponential: {enumerated(longer, 9) or 'none'}",
            method="A B B A on one thread, median of paired log-ratios, order statistics, beyond the resolution, which "
            f"is that of ReLU against itself; margin {MARGIN:g}",
        )  # fmt: skip
        (activation, model), most = max(question.members.items(), key=lambda member: member[1].effect.value)
        if most.above:
            yield Sentence(
                f"A training step of a small {NAMES.get(model, model)} takes {most.effect.value:.2f} times as long "
                f"with {activation} as with ReLU.",
                claims=(SIMPLE.id,),
            )


@drawing.figure(
    "scatter", "Accuracy against cost: which activations are worth their time",
    lambda _, training: f"Median test accuracy of {training['n'].min()} runs {_deepest(training)} layers deep at own "
    "gain and tuned learning rate, with 95 % intervals, against the time of a training step of a multilayer perceptron "
    "(4 layers of 128 units).",
)  # fmt: skip
def draw_scatter(step_cost: pd.DataFrame, training: pd.DataFrame) -> Any:
    """Accuracy of the deepest networks and cost, a point an activation."""
    cost = step_cost[step_cost["model"] == "mlp"].rename(columns={"value": "cost"})[["activation", "cost"]]
    deep = training[(training["init"] == "gain") & (training["depth"] == _deepest(training))]
    both = deep.merge(cost, on="activation")
    axes = {"xlabel": "time of a step, times that with ReLU", "ylabel": "median test accuracy"}
    return drawing.panels(both, "", drawing.estimates, at="cost", by="activation", value="median_accuracy", axes=axes)


def _deepest(training: pd.DataFrame) -> int:
    return int(training["depth"].max())


METHOD = "**Steps.** A whole training step in turns with the same step with ReLU, timed as an activation by itself is."
PART = Part(
    "step", (SIMPLE,), SIZES, grids, run, analyse, (draw_scatter,), METHOD,
    preflight=lambda case: case.but(blocks=1), topic="cost",
)  # fmt: skip
