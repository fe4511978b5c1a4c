"""The study's networks on real digits: how they are built, drawn, trained as replicas, and how each ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from depthgauge import data, models, replicas, training
from depthgauge.initialization import at_gain
from depthgauge.study import Case, Context, Value

MODEL: dict[str, Value] = {"model": "mlp", "activation": "relu"}
SELECTION = 3  # seeds that choose a learning rate, and are not reported
TOGETHER = ("lr", "seed")
METRICS = ("validation_accuracy", "validation_loss", "test_accuracy", "test_loss", "train_loss", "diverged")


@dataclass(frozen=True)
class Task:
    """A network and its data.

    Attributes:
        template: the architecture.
        fit: examples to train on.
        validation: examples that choose learning rates.
        test: examples that report.
    """

    template: nn.Module
    fit: data.Examples
    validation: data.Examples
    test: data.Examples

    def drawn(self, cases: Sequence[Case]) -> replicas.Stack:
        """One replica a case; cases of one seed and shape have the same weights and order of the data."""
        seeds = [case.random_seed("width", "depth", "seed") for case in cases]
        return replicas.stack(self.template, seeds, at_gain(math.sqrt(2)), device=str(self.fit.x.device))

    def ends(self, stack: replicas.Stack) -> Mapping[str, Sequence[float]]:
        """`METRICS` of trained replicas, one value each; `train_loss` is over all examples that they were fitted to."""
        parts = {"train": self.fit, "validation": self.validation, "test": self.test}
        found = {name: replicas.evaluate(stack, part.x, part.y) for name, part in parts.items()}
        ends = {
            f"{name}_{metric}": getattr(of, metric) for name, of in found.items() for metric in ("accuracy", "loss")
        }
        return {**ends, "diverged": (~np.isfinite(found["train"].loss)).astype(float)}


def task(case: Case, context: Context) -> Task:
    """The network and the data of a case."""
    dataset = data.load(case.text("data")).to(context.device)
    fit, validation = data.hold_out(dataset.train, training.HELD_OUT)
    template = models.build(
        case.text("model"), activation=case.text("activation"), input_shape=dataset.input_shape,
        classes=dataset.classes, depth=case.integer("depth"), width=case.integer("width"),
    )  # fmt: skip
    return Task(template, fit, validation, dataset.test)


def most_replicas(case: Case) -> int:
    """Replicas a chunk, bounded by memory."""
    width, pixels = case.integer("width"), 64 if case.text("data") == "digits" else 784
    return replicas.most_members(pixels * width + case.integer("depth") * width**2 + 10 * width)


def runs_of(rows: pd.DataFrame, *params: str, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """One row a run: its case, parameters, learning rate, seed and metrics; numbers are numbers."""
    table = training.table(rows.assign(run=rows["case"]), "run", *params, *TOGETHER, metrics=metrics)
    whole = [name for name in ("batch", "steps", "width", "seed", "factor") if name in table]
    return table.assign(
        lr=pd.to_numeric(table["lr"]), **{name: pd.to_numeric(table[name]).astype(int) for name in whole}
    )
