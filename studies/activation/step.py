"""Time of a training step with an activation, against the same step with ReLU. A clock is read here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from depthgauge import data, drawing, models, stats, timing
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, above, enumerated
from depthgauge.studies.activation import functions, turns
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.timing.clocks import Work
from depthgauge.verdict import Claim

SIMPLE = Claim("N12", "ReLU is preferred because it is simple: no exponential to compute")

MARGIN = 1.05  # a step that takes up to 5 % longer costs the same
# Those whose formula has an exponential or a function made of some (tanh, erf).
EXPONENTIAL = frozenset(
    {"celu", "elu", "gelu", "logsigmoid", "mish", "selu", "sigmoid", "silu", "softplus", "tanh", "tanhshrink"}
)
SIZES = {
    "quick": {
        "activations": ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "selu"), "batch": 16,
        "blocks": 13,
    },
    "standard": {"activations": functions.names(), "batch": 64, "blocks": 15},
    "full": {"activations": functions.names(), "batch": 128, "blocks": 31},
    "tiny": {"activations": ("relu", "tanh"), "batch": 2, "blocks": 8},
}  # fmt: skip


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
        yield from turns.rows_of(case, turns.in_turns(clock, with_it, with_relu, case.integer("blocks")), "step")


def _step(case: Case, spec: str, device: str) -> Work:
    x, y = data.load("mnist5k").train[: case.integer("batch")]
    x, y = x.to(device), y.to(device)
    model = models.build(
        case.text("model"), preset="small", input_shape=(1, 28, 28), classes=10, activation=functions.handed(spec),
        device=device,
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()

    return step


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N12: the time of a training step against the same step with ReLU."""
    params = params_of(functions.once(rows, timed=True), "activation", "spec", "model", "batch")
    exponential = set(params.loc[params["spec"].isin(EXPONENTIAL), "activation"])
    asked, further = {}, {}
    for model, cases in groups(params, "model"):
        blur = turns.resolution(rows, cases.index[cases["spec"] == "relu"], "step")
        for case, row in cases[cases["spec"] != "relu"].iterrows():
            a, b = turns.durations(rows, str(case), "step")
            key = (row["activation"], model)
            asked[key] = stats.time_ratio(a, b, resolution=blur, margin=MARGIN, confidence=turns.CONFIDENCE)
            further[key] = {
                "step_ms": 1e3 * float(np.median(a)), "relu_step_ms": 1e3 * float(np.median(b)), "resolution": blur,
                "batch": row["batch"],
            }  # fmt: skip
    question = Question.of(
        "step_cost", ("activation", "model"), asked, label="{activation} in {model}", reference="relu", counted="blocks",
        family=lambda activation, model: activation in exponential,  # noqa: ARG005 - it is given all columns
    )  # fmt: skip
    if not question:
        return
    yield question.table(further)
    if slow := question.where(activation=tuple(exponential)):
        yield from _answers(question, slow, max(columns["resolution"] for columns in further.values()))


def _answers(question: Question, slow: Question, resolution: float) -> Iterator[Answer]:
    """Does an exponential make a step longer than one with ReLU by more than the margin?"""
    said = list(slow.read(above).values())
    longer, others = (
        [f"{question.words(key)} {c.effect.value:.2f}" for key, c in question.members.items() if c.above and (
            key in slow.members) is wanted]
        for wanted in (True, False)
    )  # fmt: skip
    yield slow.verdict(
        SIMPLE, above, unit="times a step with ReLU",
        why=f"with an exponential a training step takes more than {MARGIN - 1:.0%} longer than with ReLU in "
        f"{said.count(True)} of {len(said)} comparisons, no longer in {said.count(False)}"
        + (f"; times that with ReLU: {enumerated(longer, 9)}" if longer else "")
        + (f"; without an exponential, too: {enumerated(others, 9)}" if others else ""),
        method=f"A B B A on one thread, median of paired log-ratios, order statistics, resolution by ReLU against itself "
        f"({resolution:.3g} at the worst), margin {MARGIN:g}",
    )  # fmt: skip
    yield (
        f"Of {len(said)} training steps with an exponential, {said.count(True)} take more than {MARGIN - 1:.0%} longer "
        f"than with ReLU, {said.count(False)} do not, and {said.count(None)} cannot be told apart at this machine's "
        f"resolution of {resolution - 1:.1%}."
    )


@drawing.figure(
    "scatter", "Accuracy against cost: which activations are worth their time",
    lambda _, training: f"Median test accuracy of {training['n'].min()} runs at depth {_depth(training)}, own gain and "
    "tuned learning rate, with 95 % intervals, against the time of a training step of a multilayer perceptron "
    f"(4 layers of 128 units), times that with ReLU, with {100 * turns.CONFIDENCE:g} % intervals.",
)  # fmt: skip
def draw_scatter(step_cost: pd.DataFrame, training: pd.DataFrame) -> Any:
    """Accuracy and cost, a point an activation."""
    cost = step_cost[step_cost["model"] == "mlp"]
    low, high = drawing.interval(cost)
    cost = cost.rename(columns={"value": "cost", low: "cost_low", high: "cost_high"})
    deep = training[(training["init"] == "gain") & (training["depth"] == _depth(training))]
    both = cost[["activation", "cost", "cost_low", "cost_high"]].merge(deep, on="activation")
    axes = {"xlabel": "time of a training step, times that with ReLU", "ylabel": "median test accuracy"}
    return drawing.panels(both, "", _crosses, by="activation", axes=axes) if len(both) > 1 else None


def _depth(training: pd.DataFrame) -> int:
    depths = sorted(training["depth"].unique())
    return int(depths[len(depths) // 2])


def _crosses(axis: Any, rows: pd.DataFrame, by: str, looks: Any) -> None:
    for name, look in looks.items():
        row = rows[rows[by] == name]
        x, y = row["cost"].to_numpy(), row["median_accuracy"].to_numpy()
        reach = [
            np.nan_to_num(np.abs(row[ends].to_numpy(float).T - middle), posinf=0.0)
            for ends, middle in (
                (["cost_low", "cost_high"], x), (["median_accuracy_low_95", "median_accuracy_high_95"], y))
        ]  # fmt: skip
        axis.errorbar(x, y, xerr=reach[0], yerr=reach[1], fmt=look.marker, color=look.colour, lw=0.8, label=name)


PART = Part(
    "step",
    claims=(SIMPLE,),
    sizes=SIZES,
    grids=grids,
    run=run,
    analyse=analyse,
    figures=(draw_scatter,),
    preflight=lambda case: case.but(blocks=1),
)
