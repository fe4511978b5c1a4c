"""Networks with and without skips and batch normalization, trained with a falling rate, their statistics frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from depthgauge import data, models, replicas, training
from depthgauge.initialization import scheme
from depthgauge.models.slots import batch_statistics
from depthgauge.study import Case, Context, Grid, Rows

M = TypeVar("M", bound=nn.Module)
MOMENTUM = 0.9
BATCH = 32
TOGETHER = ("lr", "seed")
KEYS = ("kind", "depth")
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
OUTCOMES = ("train_accuracy", "validation_accuracy", "test_accuracy", "diverged")


@dataclass(frozen=True)
class Kind:
    """A network's shortcuts and normalization, and how it is drawn."""

    skips: bool
    normed: bool

    @property
    def scheme(self) -> str:
        """He's draws; without normalization, branches of a sum start divided by the square root of their number."""
        return "depth_scaled" if self.skips and not self.normed else "he"


KINDS = {
    "plain": Kind(skips=False, normed=False), "plain_normed": Kind(skips=False, normed=True),
    "skips": Kind(skips=True, normed=False), "skips_normed": Kind(skips=True, normed=True),
}  # fmt: skip
NAMES = {
    "plain": "plain", "plain_normed": "plain with batch norm", "skips": "skips",
    "skips_normed": "skips with batch norm",
}  # fmt: skip


def perceptron(kind: Kind, dataset: data.Dataset, *, depth: int, width: int) -> nn.Module:
    """A multilayer perceptron in pre-activation order: an embedding and depth - 1 blocks of one layer."""
    return models.build(
        "mlp", input_shape=dataset.input_shape, classes=dataset.classes, depth=depth, width=width, order="pre",
        residual=kind.skips, norm=batch_statistics if kind.normed else "none",
    )  # fmt: skip


def trained(
    template: nn.Module, kind: Kind, cases: Sequence[Case], seeds: Sequence[int], fit: data.Examples, *, steps: int
) -> replicas.Run:
    """SGD with momentum, one replica a case at its own learning rate, which falls to 0 in equal steps."""
    stack = replicas.stack(template, seeds, scheme(kind.scheme), device=fit.x.device)
    sgd = replicas.SGD([case.number("lr") for case in cases], momentum=MOMENTUM)
    loop = replicas.Loop(batch=BATCH, steps=steps, schedule=lambda step: 1 - step / steps)
    return replicas.train(stack, fit.x, fit.y, sgd, loop)


@torch.no_grad()
def frozen(module: M, x: Tensor) -> M:
    """The module in evaluation, its batch normalization by the statistics of x (N, ...), layer by layer."""
    module = copy.deepcopy(module).to(x.device)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.track_running_stats, norm.momentum = True, None  # an average over the one call below
            norm.running_mean = torch.zeros(norm.num_features, device=x.device)
            norm.running_var = torch.ones(norm.num_features, device=x.device)
            norm.num_batches_tracked = torch.tensor(0, device=x.device)
    module.train()(x)
    return module.eval()


@torch.no_grad()
def accuracy(outputs: Tensor, y: Tensor) -> float:
    """Share of outputs (N, classes) that are right; 0 where one is not finite, as of a run that diverged."""
    return float((outputs.argmax(-1) == y).double().mean()) if bool(torch.isfinite(outputs).all()) else 0.0


def accuracies(run: replicas.Run, fit: data.Examples, *parts: data.Examples) -> np.ndarray[Any, Any]:
    """Accuracy (parts, R) of every replica, batch normalization by the statistics of the examples it was fitted to."""
    ends = np.zeros((len(parts), len(run.stack)))
    for i in range(len(run.stack)):
        module = frozen(run.stack.module(i), fit.x)
        with torch.no_grad():
            ends[:, i] = [accuracy(module(part.x), part.y) for part in parts]
    return ends


def grids(*, dataset: str, depths: tuple[int, ...], width: int, steps: int, **_: Any) -> Iterator[Grid]:
    """Runs that choose the rates of perceptrons, of every kind at every depth; none where there is no depth."""
    if depths:
        yield Grid(
            {"kind": tuple(KINDS), "depth": depths, "lr": RATES}, {"data": dataset, "width": width, "steps": steps},
            0, TOGETHER, 60, selection=2,
        )  # fmt: skip


def second(rows: pd.DataFrame, seeds: int, **_: Any) -> Iterator[Grid]:
    """The runs that are reported, at the rates that the others chose."""
    yield from reported(rows, KEYS, seeds, 60)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train perceptrons; accuracies at the end on all training, validation and test examples, and what diverged."""
    shared, dataset = cases[0], data.load(cases[0].text("data")).to(context.device)
    fit, validation = data.hold_out(dataset.train, training.HELD_OUT)
    kind = KINDS[shared.text("kind")]
    template = perceptron(kind, dataset, depth=shared.integer("depth"), width=shared.integer("width"))
    seeds = [case.random_seed("seed", "width", "steps") for case in cases]  # of all kinds and depths: paired
    found = trained(template, kind, cases, seeds, fit, steps=shared.integer("steps"))
    ends = [*accuracies(found, fit, fit, validation, dataset.test), found.diverged_at >= 0]
    for i, case in enumerate(cases):
        yield from (case.rows(name, float(end[i])) for name, end in zip(OUTCOMES, ends, strict=True))


def runs_of(rows: pd.DataFrame, by: Sequence[str], *metrics: str) -> pd.DataFrame:
    """One row a case, its id in the column `run`: numbers as numbers, networks by their names."""
    own = rows[rows["metric"].isin(list(metrics))]
    runs = training.table(own.assign(run=own["case"]), "run", *by, *TOGETHER, metrics=metrics)
    return runs.astype({"seed": int, "lr": float}).assign(network=runs["kind"].map(NAMES))


def tuned(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """The reported runs at the rates that others chose; `at_edge`: a better one may lie outside; empty without any."""
    runs = training.tunable(runs_of(rows, KEYS, *OUTCOMES), KEYS)
    if runs.empty:
        return runs
    found = training.tuned(runs, KEYS).astype({"depth": int})
    return found.assign(at_edge=training.open_ended(found, margin))


def reported(rows: pd.DataFrame, by: Sequence[str], seeds: int, chunk: int | Callable[[Case], int]) -> Iterator[Grid]:
    """The second stage of a part: each group's seeds that are reported, at the rate that the others chose."""
    runs = runs_of(rows, by, "validation_accuracy")
    if runs.empty:
        return
    for row in training.choices(runs, by, reported=False).sort_values(list(by)).to_dict("records"):
        same = (runs[list(by)] == [row[name] for name in by]).all(axis=1)
        case = Case.read(min(runs["run"][same & (runs["lr"] == row["lr"])]))
        fixed = {name: value for name, value in case.params if name not in TOGETHER}
        yield Grid({"lr": (case.number("lr"),)}, fixed, seeds, TOGETHER, chunk)
