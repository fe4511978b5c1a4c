"""Smoothness along training: whether the curvature grows with the norm of the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import arrival, curvature, data, drawing, models, replicas, stats
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above
from depthgauge.replicas import mapped
from depthgauge.replicas.objective import Objective
from depthgauge.studies.stabilizers.clipped import norms
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

GROWS = Claim(
    "stabilizers/smoothness",
    "along training the largest curvature grows with the norm of the gradient (Zhang et al. 2020)",
)
MARGIN = 0.1  # of the power of the gradient's norm with which curvature grows; a bounded curvature has 0
SHAPES = {"mlp": {"depth": 3, "width": 16}, "lstm": {"depth": 1, "width": 12}}
RATES = {"mlp": (0.03, 0.3), "lstm": (0.1, 1.0)}
SIZES = sizes("seeds steps examples", quick=(0, 0, 0), standard=(8, 200, 128), full=(16, 1000, 512), tiny=(5, 3, 10))


def grids(seeds: int, steps: int, examples: int) -> Iterator[Grid]:
    """Both networks at a small and a large rate; at quick there are none."""
    for network in SHAPES if seeds else ():
        yield Grid(
            {"lr": RATES[network]},
            {"network": network, "steps": steps, "examples": examples},
            seeds,
            ("lr", "seed"),
            64,
        )


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on 8 x 8 digits (the LSTM reads them row by row): gradient's norm and sharpness of the loss along the way."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    network, steps, count = shared.text("network"), shared.integer("steps"), shared.integer("examples")
    template = models.build(
        network,
        input_shape=digits.input_shape,
        classes=digits.classes,
        activation="tanh",
        **dict[str, Any](SHAPES[network]),
    )
    seeds = [case.random_seed("seed", "network") for case in cases]  # of both rates: paired
    stack = replicas.stack(template, seeds, device=context.device) if network == "mlp" else replicas.stack(
        template, seeds, _uniform, device=context.device
    )  # fmt: skip
    x, y = digits.train.x[:count], digits.train.y[:count]
    found: list[tuple[int, slice, Tensor, list[float]]] = []

    def inspect(step: int, rows: slice, part: replicas.Stack) -> None:
        found.append((step, rows, gradient_norms(part, x, y), [
            each.value for each in curvature.of_replicas(part, x, y, tolerance=0.05)
        ]))  # fmt: skip

    places = (0, *arrival.checkpoints(steps, 1.6))
    sgd = replicas.SGD([case.number("lr") for case in cases])
    replicas.train(
        stack, digits.train.x, digits.train.y, sgd, batch=32, steps=steps, checkpoints=places, inspect=inspect
    )
    for step, rows, slopes, sharpness in found:
        for case, slope, sharp in zip(cases[rows], slopes, sharpness, strict=True):
            yield case.rows("gradient", float(slope), step=step)
            yield case.rows("sharpness", float(sharp), step=step)


def _uniform(module: torch.nn.Module, generator: torch.Generator) -> None:
    bound = SHAPES["lstm"]["width"] ** -0.5
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)


def gradient_norms(stack: replicas.Stack, x: Tensor, y: Tensor) -> Tensor:
    """Norms (R,) of the gradients of the cross-entropy over all given examples."""
    leaves = mapped.leaves(stack)
    with torch.enable_grad():
        outputs = mapped.outputs(stack.fresh(), leaves, x.expand(len(stack), *x.shape))
    _, cotangent = Objective("cross_entropy").stacked(outputs, y.expand(len(stack), *y.shape))
    return norms(list(mapped.gradients(leaves, outputs, cotangent).values()))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The power of the gradient's norm with which sharpness grows along each training."""
    if rows.empty:
        return
    whole = rows.assign(value=rows["value"].fillna(np.inf))  # a pivot would leave out what is no number
    wide = whole.pivot_table(index=["case", "step"], columns="metric", values="value").reset_index()
    lines = wide.join(params_of(rows, "network", "lr", "seed"), on="case")
    asked = {}
    for (network, lr), own in groups(lines, ["network", "lr"]):
        powers = [_power(run["gradient"], run["sharpness"]) for _, run in groups(own, "case")]
        asked[network, lr] = stats.against(powers, 0.0, margin=MARGIN)
    question = Question.of(
        "smoothness", ("network", "lr"), asked, label="{network} at rate {lr:g}", reference="bounded"
    )
    if not question:
        return
    yield question.table()
    yield (
        "smooth_paths",
        lines[lines["seed"].astype(int) < 2][["network", "lr", "seed", "step", "gradient", "sharpness"]],
    )
    words = {True: "grows with", False: "does not grow with", None: "is undecided for"}
    yield question.verdict(
        GROWS, above, unit="power of the gradient's norm", why=f"the curvature {question.listed(above, words, 6)}",
        method=f"slope of ln sharpness on ln gradient norm over the steps of each training, t over seeds, margin "
        f"{MARGIN:g}; a training that diverges leaves its condition undecided",
    )  # fmt: skip
    found = {key: c.effect.value for key, c in question.members.items() if math.isfinite(c.effect.value)}
    if found:
        told = ", ".join(f"{value:.2g} ({question.words(key)})" for key, value in found.items())
        yield Sentence(
            f"Along training the curvature goes as the gradient's norm to the power {told}.", figure="smooth_paths",
            claims=(GROWS.id,),
        )  # fmt: skip


def _power(gradient: pd.Series[float], sharpness: pd.Series[float]) -> float:
    """Slope of the logarithms; NaN of a training that diverged, or that has no three points with a logarithm."""
    told = (gradient > 0) & (sharpness > 0)
    if told.sum() < 3 or not np.isfinite([*gradient, *sharpness]).all():
        return math.nan
    return float(np.polyfit(np.log(gradient[told]), np.log(sharpness[told]), 1)[0])


@drawing.figure(
    "smooth_paths", "Curvature against the gradient's norm along training",
    "Largest eigenvalue of the Hessian and norm of the gradient, over the same examples, of two trainings a rate.",
)  # fmt: skip
def draw_paths(smooth_paths: pd.DataFrame) -> Any:
    """Points of the paths, a panel a network, by rate."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "norm of the gradient"}
    shown = smooth_paths[np.isfinite(smooth_paths[["gradient", "sharpness"]]).all(axis=1)]
    shown = shown.assign(training=shown["lr"].map("{:g}".format) + ", seed " + shown["seed"].astype(str))
    return drawing.panels(
        shown, "network", drawing.lines, x="gradient", y="sharpness", by="training", axes=axes, shared=""
    )


METHOD = f"""**Smoothness.** A tanh network of three layers, and an LSTM that reads an image row by row, SGD on 8 x 8
digits with batches of 32, at a small and a large rate. At steps that grow by factors of 1.6 the norm of the gradient
and the largest eigenvalue of the Hessian are taken over the same first examples. Zhang et al. (2020,
arXiv:1905.11881) assume a curvature of at most L0 + L1 times the gradient's norm, and saw the two rise together in
language models; a curvature that does not follow the gradient has power 0, L0 = 0 has 1. Margin {MARGIN:g}."""
PART = Part("smoothness", (GROWS,), SIZES, grids, run, analyse, (draw_paths,), METHOD)
