"""A network without activation: its rank, its distance from an affine map, its accuracy against a linear model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from depthgauge import data, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

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
            {**tuning.sgd("digits", steps), "width": 128}, seeds, tuning.TOGETHER, selection=tuning.SELECTION,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train, and see, in float64, what the trained network does to the training examples.

    `rank`: of its last hidden layer's centred activations (of its outputs where there is no hidden layer);
    `input_rank`: of the centred inputs; `residual`: what the best affine map of the inputs leaves of its outputs.
    """
    dataset, template, draw = tuning.networks(cases, context, "seed")
    fit, _ = data.hold_out(dataset.train, training.HELD_OUT)
    recipe = tuning.recipe(cases)
    yield from training.outcomes(cases, template, dataset, recipe, draw, inspect=lambda stack: inspect(stack, fit.x))


@torch.no_grad()
def inspect(stack: replicas.Stack, inputs: torch.Tensor) -> dict[str, list[float]]:
    """Rank of the last hidden layer, and distance of the whole from an affine map."""
    x = inputs.flatten(1).double().cpu()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    basis, singular, _ = torch.linalg.svd(design, full_matrices=False)
    basis = basis[:, singular > singular[0] * len(x) * torch.finfo(x.dtype).eps]
    input_rank = _rank(x)
    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for i in range(len(stack)):
        module = stack.module(i).double().eval()
        hidden = module.get_submodule("hidden")(x)
        outputs = module(x)
        left = outputs - basis @ (basis.mT @ outputs)
        figures["rank"].append(_rank(hidden if hidden is not x else outputs))
        figures["input_rank"].append(input_rank)
        figures["residual"].append(float(left.norm() / outputs.norm()))
    return figures


def _rank(features: torch.Tensor) -> float:
    """Singular values of the centred features above rounding: shape (N, d)."""
    centred = features - features.mean(0)
    if not torch.isfinite(centred).all():
        return float("nan")
    singular = torch.linalg.svdvals(centred)
    # rounding of a few dozen layers, as a share of the largest singular value
    return float((singular > singular[0] * max(features.shape) * 1e2 * torch.finfo(features.dtype).eps).sum())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N13: accuracy of deep networks against a linear model's; rank and affinity beside it."""
    every = tuning.runs_of(rows, "depth", "width", metrics=(*training.METRICS, *FIGURES))
    lines = {key: runs.set_index("seed") for key, runs in groups(tuning.tuned(every, KEYS), KEYS)}
    linear = lines.pop(("identity", 0), None)
    if linear is None or not lines:
        return
    asked, further = {}, {}
    for key, runs in lines.items():
        both = runs.index.intersection(linear.index)
        a, b = (line.loc[both, "test_accuracy"] for line in (runs, linear))
        edge = runs["at_edge"].any() or linear["at_edge"].any()
        asked[key] = tuning.unsettled(stats.paired(a, b, margin=MARGIN, test="t"), edge)
        further[key] = {**{name: runs[name].max() for name in ("width", *FIGURES)}, "at_edge": edge}
    question = Question.of(
        "linear", KEYS, asked, label="{activation} at depth {depth}", reference="linear model",
        family=lambda activation, depth: activation == "identity",  # noqa: ARG005 - it is given all columns
    )  # fmt: skip
    yield question.table(further)
    words = "; ".join(
        f"{question.words(key)}: {lines[key]['test_accuracy'].mean():.1%} of the test examples right, a linear model "
        f"{linear['test_accuracy'].mean():.1%}, rank {of['rank']:.0f} of {of['width']:.0f} units on inputs of rank "
        f"{of['input_rank']:.0f}, {of['residual']:.1g} of the output not affine"
        for key, of in further.items()
    )
    yield f"After training, {words}."
    if plain := question.where(activation="identity"):
        yield plain.verdict(
            NONLINEAR, agrees, unit="test accuracy above a linear model's",
            why="without activation a network is an affine map, which is arithmetic, and so is its rank; what can fail "
            f"is that it ends like a linear model. {words}",
            method=f"paired t by seed, margin {MARGIN:g}; {tuning.METHOD}",
        )  # fmt: skip


PART = Part("linear", (NONLINEAR,), SIZES, grids, run, analyse, second=tuning.further_rates(*KEYS))
