"""Sum against mean of a batch's losses, with torch's own optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from depthgauge import data
from depthgauge.seeding import Purpose, generator, seed_torch

RATE_ONLY, UNCHANGED, UNDONE = CHANGES = ("rate/N", "unchanged", "undone")
ADAM, LARGE_EPS, HALF = "Adam", "Adam at eps 0.001", "loss scale"  # the last trains in float16
SETTINGS = ("SGD", "momentum", "weight decay", "clipping", ADAM, LARGE_EPS, HALF)
WIDTH = 16
INTERVAL = 10_000  # steps without an overflow after which the loss scale would grow


@dataclass(frozen=True)
class Recipe:
    """Settings that see a gradient; what a setting does not name is off.

    Attributes:
        rate: learning rate.
        momentum: of SGD.
        decay: L2 weight decay, added to the gradient.
        clip: largest norm of the gradient; 0 clips nothing.
        eps: of Adam; 0 for SGD.
        scale: of the loss, in float16; 0 for float64 without one.
    """

    rate: float = 0.1
    momentum: float = 0.0
    decay: float = 0.0
    clip: float = 0.0
    eps: float = 0.0
    scale: float = 0.0


MEAN: Mapping[str, Recipe] = {
    "SGD": Recipe(),
    "momentum": Recipe(momentum=0.9),
    "weight decay": Recipe(decay=0.01),
    "clipping": Recipe(clip=0.1),
    ADAM: Recipe(rate=0.001, eps=1e-8),
    LARGE_EPS: Recipe(rate=0.001, eps=1e-3),
    HALF: Recipe(scale=65536.0),  # torch's default
}


def summed(setting: str, change: str, n: int) -> Recipe:
    """The settings with which the sum of n losses is trained."""
    mean = MEAN[setting]
    if change == UNCHANGED:
        return mean
    if change == RATE_ONLY:
        return replace(mean, rate=mean.rate / n)
    scaled = replace(mean, decay=mean.decay * n, clip=mean.clip * n, eps=mean.eps * n, scale=mean.scale / n)
    return scaled if mean.eps else replace(scaled, rate=mean.rate / n)


@dataclass(frozen=True)
class Trained:
    """Weights before and after a training, and the steps that its loss scale skipped."""

    before: Tensor
    after: Tensor
    skipped: int


@cache
def digits() -> tuple[Tensor, Tensor]:
    """8 x 8 digits and their classes."""
    train = data.load("digits").train
    return train.x.flatten(1), train.y


def trained(recipe: Recipe, n: int, steps: int, seed: int, *, reduction: str) -> Trained:
    """Train a small network on digits, n a batch, with the loss reduced so."""
    model, half, skipped = _model(recipe, seed), recipe.scale > 0, 0
    before, optimizer = flat(model), _optimizer(recipe, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=recipe.scale or 1.0, growth_interval=INTERVAL, enabled=half)
    for x, y in _batches(n, steps, seed, next(model.parameters()).dtype):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss = nn.functional.cross_entropy(model(x), y, reduction=reduction)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        skipped += scaler.get_scale() < scale
    return Trained(before, flat(model), skipped)


def distance(a: Trained, b: Trained) -> float:
    """Distance of the weights of two trainings, over the way that the second went."""
    return float((a.after - b.after).norm() / (b.after - b.before).norm())


def flat(model: nn.Module) -> Tensor:
    """All weights of a model, one after the other."""
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def _model(recipe: Recipe, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, Purpose.MODULES)
        model = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
    return model if recipe.scale else model.double()


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    if recipe.eps:
        return torch.optim.Adam(model.parameters(), lr=recipe.rate, eps=recipe.eps, weight_decay=recipe.decay)
    return torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay)


def _batches(n: int, steps: int, seed: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    (x, y), order = digits(), generator(seed, Purpose.ORDER)
    for _ in range(steps):
        chosen = torch.randint(len(x), (n,), generator=order)
        yield x[chosen].to(dtype), y[chosen]
