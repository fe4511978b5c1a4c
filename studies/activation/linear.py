"""A network without activation: its rank, its distance from an affine map, its accuracy against a linear model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from depthgauge import replicas, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

NONLINEAR = Claim("N13", "activations exist to bring in nonlinearity: without them a deep network is still linear")

MARGIN = 0.02  # test accuracy
FIGURES = ("rank", "input_rank", "residual")
KEYS = ["activation", "depth"]
SIZES = sizes("steps seeds", quick=(150, 8), standard=(250, 8), full=(1500, 12), tiny=(20, 5))


def grids(steps: int, seeds: int) -> Iterator[Grid]:
    """A linear model, and three hidden layers without activation and with ReLU."""
    for activation, depths in (("identity", (0, 3)), ("relu", (3,))):
        yield Grid(
            {"activation": (activation,), "depth": depths, "lr": (0.003, 0.01, 0.03, 0.1)},
            {**tuning.sgd("digits", steps), "width": 128}, seeds, tuning.TOGETHER, tuning.most_replicas,
            selection=tuning.SELECTION,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train, and see how far the trained network is from an affine map of the training examples."""
    made = tuning.prepared(cases, context, "seed")
    yield from training.outcomes(cases, *made, inspect=lambda stack, fit: vars(replicas.affinity(stack, fit.x)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N13: accuracy of deep networks against a linear model's; rank and affinity beside it."""
    every = tuning.runs_of(rows, "depth", "width", metrics=(*training.METRICS, *FIGURES))
    lines = dict(groups(tuning.tuned(every, KEYS), KEYS))
    linear = lines.pop(("identity", 0), None)
    if linear is None or not lines:
        return
    asked, further = {}, {}
    for key, runs in lines.items():
        asked[key] = tuning.paired(runs, linear, margin=MARGIN)
        edge = runs["at_edge"].any() or linear["at_edge"].any()
        further[key] = {**{name: runs[name].max() for name in ("width", *FIGURES)}, "at_edge": edge}
    question = Question.of(
        "linear", KEYS, asked, label="{activation} at depth {depth}", reference="linear model",
        family=lambda activation, **_: activation == "identity",
    )  # fmt: skip
    yield question.table(further)
    words = "; ".join(
        f"{question.words(key)}: {lines[key]['test_accuracy'].mean():.1%} of the test examples right, a linear model "
        f"{linear['test_accuracy'].mean():.1%}, rank {of['rank']:.0f} of {of['width']:.0f} units on inputs of rank "
        f"{of['input_rank']:.0f}, {of['residual']:.1g} of the output not affine"
        for key, of in further.items()
    )
    if plain := question.where(activation="identity"):
        yield plain.verdict(
            NONLINEAR, agrees, unit="test accuracy above a linear model's",
            why="without activation a network is an affine map, which is arithmetic, and so is its rank; what can fail "
            f"is that it ends like a linear model. {words}",
            method=f"paired t by seed, margin {MARGIN:g}; {tuning.METHOD}",
        )  # fmt: skip
        (key,) = list(plain.members)[:1]
        yield Sentence(
            f"{key[1]} layers without activation end at {lines[key]['test_accuracy'].mean():.1%} test accuracy, a "
            f"linear model at {linear['test_accuracy'].mean():.1%}.",
            claims=(NONLINEAR.id,),
        )


METHOD = "**Linear networks.** Rank and distance from an affine map of trained networks, by `replicas.affinity`."
PART = Part("linear", (NONLINEAR,), SIZES, grids, run, analyse, (), METHOD, tuning.further_rates(*KEYS))
