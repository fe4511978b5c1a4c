"""Optimizers with weight decay, what they are given to train, and how far they are from shrinking a weight first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge import data, models, replicas
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization.invariant import Invariant
from depthgauge.study import Case

USUAL = 4.0**-5  # the grid's value for 0.001
LR, DECAY, WEIGHTS, STEPS = 0.01, 0.1, 200, 50  # of the shrinkage
TASKS = {"few": "100 examples", "noisy": "300, a fifth mislabelled", "many": "1,154 examples"}
OVERFITTING = ("few", "noisy")
WRONG = 0.2  # share of the noisy task's labels


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of replicas, the same of `torch.optim`, and the map of its rates and decays."""

    stacked: Callable[..., replicas.SGD | replicas.Adam]
    single: Callable[[list[Tensor], float], torch.optim.Optimizer]
    rates: tuple[float, ...] = ()
    decays: tuple[float, ...] = ()


def _powers(first: int, last: int) -> tuple[float, ...]:
    return tuple(4.0**k for k in range(first, last + 1))


OPTIMIZERS = {
    "SGD": Optimizer(
        replicas.SGD, lambda p, decay: torch.optim.SGD(p, LR, weight_decay=decay), _powers(-5, -1),
        (0.0, *_powers(-6, -1)),
    ),
    "SGD with momentum": Optimizer(
        replicas.SGD, lambda p, decay: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=decay)
    ),
    "Adam with L2": Optimizer(
        replicas.Adam, lambda p, decay: torch.optim.Adam(p, LR, weight_decay=decay), _powers(-6, -2),
        (0.0, *_powers(-7, -2)),
    ),
    "AdamW": Optimizer(
        replicas.AdamW, lambda p, decay: torch.optim.AdamW(p, LR, weight_decay=decay), _powers(-6, -2),
        (0.0, *_powers(-2, 3)),
    ),
}  # fmt: skip


def off(name: str, seed: int) -> float:
    """Distance of a weight from where shrinking before undecayed steps takes it, over decay's whole effect."""
    draws = generator(seed, Purpose.INPUTS)
    start = torch.randn(WEIGHTS, generator=draws, dtype=torch.float64)
    gradients = torch.randn(STEPS, WEIGHTS, generator=draws, dtype=torch.float64)
    ends = []
    for own, shrink in ((DECAY, 1.0), (0.0, 1 - LR * DECAY), (0.0, 1.0)):
        weight = start.clone()
        optimizer = OPTIMIZERS[name].single([weight], own)
        for gradient in gradients:
            weight.mul_(shrink)
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight)
    decayed, shrunk, free = ends
    return float((decayed - shrunk).norm() / (shrunk - free).norm())


def examples(fit: data.Examples, task: str) -> data.Examples:
    """The training examples of a task."""
    if task != "noisy":
        return data.Examples(*fit[: 100 if task == "few" else len(fit)])
    x, y = fit[:300]
    draws = generator(0, Purpose.SAMPLE)
    wrong = torch.randperm(len(y), generator=draws)[: int(WRONG * len(y))].to(y.device)
    y = y.clone()
    y[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=draws).to(y)) % 10
    return data.Examples(x, y)


def network(case: Case) -> nn.Module:
    """The template of a case's networks: plain, or with every layer normalized."""
    width = case.integer("width")
    if case.text("net") == "normalized":
        return Invariant((64, width, width, 10))
    return models.build("mlp", depth=2, width=width, input_shape=(1, 8, 8), classes=10)
