"""A network without activation: its rank, its distance from an affine map, its accuracy against a linear model's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from depthgauge import data, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, agrees
from depthgauge.studies.activation import tuning
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

NONLINEAR = Claim("N13", "activations exist to bring in nonlinearity: without them a deep network is still linear")

MARGIN = 0.02  # test accuracy
FIGURES = ("rank", "input_rank", "residual")
KEYS = ["activation", "depth"]
SIZES = {
    "quick": {"steps": 150, "seeds": 8},
    "standard": {"steps": 250, "seeds": 8},
    "full": {"steps": 1500, "seeds": 12},
    "tiny": {"steps": 20, "seeds": 5},
}


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
    reported = tuning.tuned(every, KEYS)
    edges = tuning.edges(reported, KEYS)
    linear = reported[reported["depth"] == 0].set_index("seed")["test_accuracy"]
    asked, further = {}, {}
    for key, runs in groups(reported[reported["depth"] > 0], KEYS):
        accuracy = runs.set_index("seed")["test_accuracy"]
        both = accuracy.index.intersection(linear.index)
        asked[key] = stats.paired(accuracy[both], linear[both], margin=MARGIN, test="t")
        figures = {name: runs[name].max() for name in ("width", *FIGURES)}
        edge = bool({key, ("identity", 0)} & edges)
        further[key] = {"accuracy": accuracy.mean(), "linear": linear.mean(), **figures, "at_edge": edge}
    question = Question.of(
        "linear", KEYS, asked, label="{activation} at depth {depth}", reference="linear model",
        family=lambda activation, depth: activation == "identity",  # noqa: ARG005 - it is given all columns
    )  # fmt: skip
    if not question:
        return
    yield question.table(further)
    words = "; ".join(f"{question.words(key)}: {_words(figures)}" for key, figures in further.items())
    yield f"After training, {words}."
    if plain := question.where(activation="identity"):
        yield tuning.verdict(
            plain, NONLINEAR, agrees, {key for key in further if further[key]["at_edge"]},
            unit="test accuracy above a linear model's",
            why="without activation a network is an affine map, which is arithmetic; so is its rank. What can fail is "
            f"that it ends like a linear model. {words}",
            method=f"paired t by seed, margin {MARGIN:g}",
        )  # fmt: skip


def _words(figures: dict[str, float]) -> str:
    return (
        f"{figures['accuracy']:.1%} of the test examples right, a linear model {figures['linear']:.1%}; rank "
        f"{figures['rank']:.0f} of {figures['width']:.0f} units on inputs of rank {figures['input_rank']:.0f}, "
        f"{figures['residual']:.1g} of the output not affine"
    )


PART = Part("linear", (NONLINEAR,), SIZES, grids, run, analyse, second=tuning.further_rates(*KEYS))
