"""Networks and optimizers of the sweep, the rule of their coarse grids of learning rates, and their budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn

from depthgauge import data, models, replicas
from depthgauge.study import Case, Value

STEP = 2.0  # between a learning rate of the coarse grid and the next
POWERS = range(-4, 4)  # of `STEP`, about the grid's centre
TURN = 24.0  # examples: the centre of a grid bends here, from B or its root to a constant
BUDGET = 3.0  # times the steps that were expected; a run that takes more is censored
HORIZON = 2.0  # times the expected steps over which the cosine falls to 0: that optimizer's budget
EVALUATED = 1500  # examples over which the loss is measured, at most


@dataclass(frozen=True)
class Net:
    """A network with its data, and what was expected of its steps: least + examples / B.

    Attributes:
        model: its name.
        images: name of the data set.
        target: loss over fixed training examples to be reached.
        least: expected steps at a large batch.
        examples: expected examples at a small one.
        rates: optimizer -> centre of the coarse grid at a large batch; `other` for those not named.
        arguments: of the model.
        some: the number of training examples that are used; 0: all.
        pooled: images are averaged over squares of so many pixels a side.
    """

    model: str
    images: str
    target: float
    least: float
    examples: float
    rates: Mapping[str, float]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    some: int = 0
    pooled: int = 1

    def expected(self, batch: int) -> float:
        """Steps that were expected."""
        return self.least + self.examples / batch

    def load(self, device: str) -> data.Examples:
        """The training examples."""
        return _examples(self.images, self.some, self.pooled).to(device)

    def build(self, fit: data.Examples) -> nn.Module:
        """The architecture; replicas are drawn over it."""
        arguments = {"preset": "small", "input_shape": tuple(fit.x.shape[1:]), "classes": 10, **self.arguments}
        return models.build(self.model, **arguments).to(fit.x.device)


@cache
def _examples(name: str, some: int, pooled: int) -> data.Examples:
    train = data.load(name).train
    x, y = train.x[: some or None], train.y[: some or None]
    if pooled > 1:
        x = nn.functional.avg_pool2d(x, pooled)
        x = x / x.std()
    return data.Examples(x, y)


# Targets, expectations and centres: from a pilot of three seeds a rate, none of them one of the study's.
NETS: Mapping[str, Net] = {
    "softmax": Net(
        "softmax_regression", "digits", 0.1, 40, 3000,
        {"sgd": 4.0, "cosine": 4.0, "momentum": 0.4, "other": 0.08},
    ),
    "mlp": Net(
        "mlp", "digits", 0.1, 60, 3200, {"sgd": 0.5, "cosine": 0.7, "momentum": 0.12, "other": 0.02},
        {"depth": 2, "width": 32},
    ),
    "lenet5": Net(
        "lenet5", "mnist5k", 0.5, 80, 2500, {"sgd": 0.8, "cosine": 0.8, "momentum": 0.1, "other": 0.01},
        {"activation": "tanh"}, 1000, 2,
    ),
    "resnet18": Net(
        "resnet18", "digits", 0.1, 40, 3000, {"sgd": 0.5, "cosine": 0.5, "momentum": 0.1, "other": 0.01},
    ),
    "few": Net(  # for tests
        "softmax_regression", "digits", 0.7, 6, 100, {"sgd": 4.0, "cosine": 4.0, "momentum": 0.4, "other": 0.2}, {}, 200
    ),
}  # fmt: skip
OPTIMIZERS: Mapping[str, Callable[[Sequence[float]], replicas.SGD | replicas.Adam]] = {
    "sgd": replicas.SGD,
    "cosine": replicas.SGD,
    "momentum": lambda lr: replicas.SGD(lr, momentum=0.9),
    "adam": replicas.Adam,
    "adamw": replicas.AdamW,
}
ADAPTIVE = ("adam", "adamw")


def rates(net: str, optimizer: str, batch: int) -> tuple[float, ...]:
    """The coarse grid: `POWERS` of two about a centre that grows with B, for Adam with its root, up to `TURN`."""
    bend = 1 + TURN / batch
    largest = NETS[net].rates.get(optimizer, NETS[net].rates["other"])
    centre = largest / (math.sqrt(bend) if optimizer in ADAPTIVE else bend)
    return tuple(float(f"{centre * STEP**power:.3g}") for power in POWERS)


def budget(net: str, optimizer: str, batch: int) -> int:
    """Steps after which a run is censored; those of the cosine are its horizon."""
    return math.ceil((HORIZON if optimizer == "cosine" else BUDGET) * NETS[net].expected(batch))


def group(net: str, optimizer: str, batch: int) -> dict[str, Value]:
    """Parameters of one group of runs, which has learning rates of its own."""
    return {"net": net, "optimizer": optimizer, "batch": batch, "steps": budget(net, optimizer, batch)}


@dataclass(frozen=True)
class Prepared:
    """Replicas of one chunk, ready to be trained.

    Attributes:
        stack: one replica a case; those of one seed begin alike, whatever the optimizer and the batch.
        fit: what they are trained on.
        on: the fixed examples over which the loss is measured, the first of `fit`.
        optimizer: with one learning rate a case.
        settings: fields of `replicas.Loop`.
        target: loss to be reached.
    """

    stack: replicas.Stack
    fit: data.Examples
    on: data.Examples
    optimizer: replicas.SGD | replicas.Adam
    settings: Mapping[str, Any]
    target: float


def prepared(cases: Sequence[Case], device: str) -> Prepared:
    """The replicas of a chunk's cases."""
    net, steps, name = NETS[cases[0].text("net")], cases[0].integer("steps"), cases[0].text("optimizer")
    fit = net.load(device)
    stack = replicas.stack(net.build(fit), [case.random_seed("net", "seed") for case in cases], device=device)
    settings: dict[str, Any] = {"batch": min(cases[0].integer("batch"), len(fit)), "steps": steps}
    if name == "cosine":
        settings["schedule"] = lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    most = 500 if net.some else EVALUATED
    on = data.Examples(fit.x[:most], fit.y[:most])
    return Prepared(stack, fit, on, OPTIMIZERS[name]([case.number("lr") for case in cases]), settings, net.target)


def step_of(net: str, batch: int, device: str) -> Callable[[], None]:
    """One step of SGD, as plain PyTorch makes it."""
    fit = NETS[net].load(device)
    model = NETS[net].build(fit)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x, y = fit.x[:batch], fit.y[:batch]

    def step() -> None:
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()

    return step
