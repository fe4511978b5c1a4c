"""XOR: what a perceptron can reach, and how often a hidden layer finds the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from depthgauge import data, drawing, models, replicas, stats, theory, training
from depthgauge.conditions import tallied
from depthgauge.frames import groups
from depthgauge.initialization import at_gain
from depthgauge.models.activations import make, phi
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

XOR = Claim("N16", "a perceptron cannot learn XOR; a hidden layer can")

CLEAR = 0.01  # by which a score must be on its side to be right: nearer the line its rounding decides
KEYS = ["activation", "width"]
SIZES = sizes("steps seeds", quick=(500, 20), standard=(500, 50), full=(500, 200), tiny=(20, 5))


def grids(steps: int, seeds: int) -> Iterator[Grid]:
    """A perceptron, and one hidden layer of three widths, without and with activation."""
    every = ("identity", "relu", "tanh", "sigmoid", "gelu")
    for names, widths in ((("identity",), (0,)), (every, (2, 4, 8))):
        yield Grid(
            {"activation": names, "width": widths, "lr": (0.03, 0.1, 0.3)}, {"steps": steps, "momentum": 0.9}, seeds,
            tuning.TOGETHER, 1000, selection=max(5, seeds // 5),
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The four corners of a square; width 0 is a perceptron trained by its own rule, else one hidden layer."""
    shared, width = cases[0], cases[0].integer("width")
    corners = data.load("xor", n=4, n_test=4, noise=0.0).to(context.device).train
    optimizer = replicas.SGD([case.number("lr") for case in cases], momentum=shared.number("momentum"))
    loss: Callable[[Tensor, Tensor], Tensor] | str = perceptron_loss
    if width == 0:
        template, gain, targets = models.build("perceptron"), 1.0, corners.y[:, None] * 2.0 - 1.0
    else:
        spec = shared.text("activation")
        template = models.build("mlp", depth=1, width=width, activation=make(spec), input_shape=(2,), classes=2)
        gain, targets, loss = theory.gain(phi(spec)).forward, corners.y, "cross_entropy"
    stack = replicas.stack(template, [case.random_seed("seed") for case in cases], at_gain(gain), device=context.device)
    steps = shared.integer("steps")
    trained = replicas.train(stack, corners.x, targets, optimizer, batch=4, steps=steps, loss=loss)
    for i, case in enumerate(cases):
        with torch.no_grad():
            outputs = trained.stack.module(i)(corners.x.cpu())
        score = outputs[:, 0] if width == 0 else outputs[:, 1] - outputs[:, 0]
        yield case.rows("accuracy", float((score * (2.0 * corners.y.cpu() - 1.0) > CLEAR).double().mean()))


def perceptron_loss(scores: Tensor, signs: Tensor) -> Tensor:
    """max(0, -y score), whose gradient is Rosenblatt's rule (1958)."""
    return torch.relu(-signs * scores).mean()


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Share of runs that end with all four corners right, at the rate with which other runs get most right."""
    every = tuning.runs_of(rows, "width", metrics=("accuracy",))
    asked, further = {}, {}
    for key, runs in groups(tuning.tuned(every, KEYS, "accuracy"), KEYS):
        solved, n, edge = int((runs["accuracy"] == 1).sum()), len(runs), runs["at_edge"].any()
        asked[key] = training.unsettled(stats.coverage(solved, n, 0.5), edge and 2 * solved < n)
        further[key] = {"solved": solved, "most_right": 4 * runs["accuracy"].max(), "at_edge": edge}
    label = "{width} {activation} units"
    question = Question.of("xor", KEYS, asked, label=label, reference="half of them", counted="runs", family=_is_linear)
    yield question.table(further)
    hidden = question.select(lambda **key: not _is_linear(**key))
    linear = max((further[key]["most_right"] for key in asked if _is_linear(*key)), default=0)
    if not hidden:
        return
    members = hidden.members
    counts = ", ".join(f"{hidden.words(key)} in {further[key]['solved']} of {c.effect.n}" for key, c in members.items())
    rarest = min(members, key=lambda key: members[key].effect.value)
    yield hidden.verdict(
        XOR, above, unit="share of runs that learn XOR", shown=rarest,
        says=tallied(hidden.read(above), "hidden layers"),
        why="no line has more than three of the four corners on their sides: a perceptron cannot learn XOR, by "
        f"arithmetic (linear models had at most {linear:.0f} right); training finds all four with {counts} runs",
        method="all four corners right at the end, share of runs against 1/2, exact binomial; the score that chooses a "
        f"rate is the share of corners right; {tuning.METHOD}",
    )  # fmt: skip
    widest = max(width for activation, width in members if activation == rarest[0])
    few, many = (
        f"{further[rarest[0], width]['solved']} of {members[rarest[0], width].effect.n}"
        for width in (rarest[1], widest)
    )
    yield Sentence(
        f"{rarest[1]} {rarest[0]} units learn XOR in {few} runs"
        + f", {widest} in {many}" * (widest > rarest[1])
        + "; a perceptron cannot.",
        "xor",
        (XOR.id,),
    )


def _is_linear(activation: str, width: int) -> bool:
    return width == 0 or activation == "identity"


@drawing.figure(
    "xor", "Two hidden units can represent XOR; how often gradient descent finds it, by width",
    lambda xor: f"Share of {xor['n'].min()} runs that learn all four corners, with exact intervals that hold at once; "
    "rates tuned for each. Identity: no activation.",
)  # fmt: skip
def draw_xor(xor: pd.DataFrame) -> Any:
    """Share of runs that learn XOR, by width and activation."""
    hidden = xor[xor["width"] > 0].assign(units=lambda table: table["width"].map("{} hidden units".format))
    return drawing.panels(hidden, "", drawing.estimates, at="units", by="activation", axes={"xlabel": "share of runs"})


METHOD = "**XOR.** A perceptron is trained by Rosenblatt's rule, a hidden layer by SGD, on all four corners at once."
FURTHER = tuning.further_rates(*KEYS, score="accuracy")
PART = Part("xor", (XOR,), SIZES, grids, run, analyse, (draw_xor,), METHOD, FURTHER)
