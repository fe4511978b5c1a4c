"""Sound trainings drawn at random, each proven sound by training it: an oracle that knows nothing of the checks."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.fault_zoo.entry import drawn
from benchmarks.fault_zoo.losses import next_token, square
from benchmarks.fault_zoo.nets import Language, Residual, he, mlp
from benchmarks.fault_zoo.oracle import train
from benchmarks.fault_zoo.tasks import clusters, curves, digits, loader, signals, text
from depthgauge import Training

# A sound training reaches this share of the loss with which it began, within 200 steps of the oracle.
LEARNT = 0.6
# ... and moves less than this far from a loss of chance at its start: 3 is about that of a network without care.
START = 4.0


def make(seed: int) -> Training:
    """The training of that seed."""
    return drawn(_drawn, seed)


def is_sound(seed: int) -> bool:
    """Train it, and tell whether it learns, with a gradient other than 0 for every parameter in the optimizer."""
    seen = train(make(seed))
    return seen.after < LEARNT * seen.before and seen.before < START and not seen.idle


def _drawn() -> Training:
    return random.choice((_tables, _tables, _images, _sequences, _texts))()


# -- architectures and data --------------------------------------------------------------------------------------------


def _tables() -> Training:
    features, width, depth = random.choice((8, 16, 32)), random.choice((32, 64, 128)), random.randint(1, 8)
    classes = random.choice((0, 2, 5, 10))
    body = _body(features, width, depth)
    if not classes:
        rows, values = curves(features)
        model = nn.Sequential(*body, nn.Linear(width, 1))
        return Training(model, _batches(rows, values), square, _optimizer(model))
    model = nn.Sequential(*body, nn.Linear(width, classes))
    return Training(model, _batches(*clusters(classes, features, spread=0.7)), _loss(), _optimizer(model))


def _images() -> Training:
    images, labels = digits()
    act, norm = _act(), random.choice((nn.BatchNorm2d, lambda wide: nn.GroupNorm(4, wide), None))
    wide = random.choice((8, 16, 24))
    parts: list[nn.Module] = []
    for layer in range(random.randint(1, 4)):
        into = 1 if layer == 0 else wide
        parts.append(nn.Conv2d(into, wide, 3, stride=2 if layer == 1 else 1, padding=1))
        parts += [norm(wide)] if norm else []
        parts.append(act())
    pooled = random.random() < 0.5
    with torch.no_grad():
        size = nn.Sequential(*parts, nn.Flatten())(images[:2]).shape[1]
    head = (
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 10)] if pooled else [nn.Flatten(), nn.Linear(size, 10)]
    )
    model = _initialized(nn.Sequential(*parts, *head))
    return Training(model, _batches(images, labels), _loss(), _optimizer(model))


class _Recurrent(nn.Module):
    def __init__(self, kind: type[nn.GRU | nn.LSTM], width: int, layers: int) -> None:
        super().__init__()
        self.rnn = kind(3, width, num_layers=layers, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


def _sequences() -> Training:
    model = _Recurrent(random.choice((nn.GRU, nn.LSTM)), random.choice((24, 32, 48)), random.randint(1, 2))
    return Training(model, _batches(*signals(length=random.choice((12, 20)))), _loss(), _optimizer(model, factor=3))


def _texts() -> Training:
    model = Language(vocabulary=24, width=random.choice((16, 32, 48)), depth=random.randint(1, 3))
    if random.random() < 0.4:
        nn.init.normal_(model.embedding.weight, std=model.head.in_features**-0.5)
        model.head.weight = model.embedding.weight
    tokens = text(24, random.choice((12, 20)), following=random.choice((1, 2)))
    return Training(model, _batches(tokens), next_token, _optimizer(model, factor=2, adaptive=True))


def _body(features: int, width: int, depth: int) -> list[nn.Module]:
    act, norm = _act(), random.choice((None, None, nn.LayerNorm, nn.BatchNorm1d))
    drop = random.choice((0.0, 0.0, 0.1))
    if depth > 3 and random.random() < 0.6:
        norm = norm or nn.LayerNorm
        parts: list[nn.Module] = [nn.Linear(features, width)]
        for _ in range(depth):
            branch = nn.Sequential(norm(width), nn.Linear(width, width), act(), nn.Linear(width, width))
            parts.append(Residual(branch, scale=depth**-0.5))
        return [*parts, norm(width)]
    net = mlp(features, width, depth, 1, act=act, norm=norm)[:-1]
    return [*_initialized(net), *([nn.Dropout(drop)] if drop else [])]


def _act() -> Callable[[], nn.Module]:
    return random.choice((nn.ReLU, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.LeakyReLU, nn.ELU))


def _initialized(model: nn.Sequential) -> nn.Sequential:
    """Torch's own initialization where that is sound, up to three layers deep; else He's, or Glorot's for tanh."""
    deep = sum(isinstance(part, nn.Linear | nn.Conv2d) for part in model)
    if deep > 3 or random.random() < 0.5:
        he(model, gain=1.2 if any(isinstance(part, nn.Tanh) for part in model) else 2**0.5)
    return model


# -- batches, loss, optimizer ------------------------------------------------------------------------------------------


def _batches(*tensors: Tensor) -> Any:
    batch = random.choice((16, 32, 64, 128))
    if random.random() < 0.5:
        return loader(*tensors, batch=batch)
    parts = [[*rows] for rows in zip(*(each.split(batch) for each in tensors), strict=True)]
    return [rows for rows in parts if len(rows[0]) == batch]


def _loss() -> Callable[[nn.Module, Any], Tensor] | None:
    if random.random() < 0.7:
        return None
    smoothing = random.choice((0.0, 0.05))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return functional.cross_entropy(model(batch[0]), batch[1], label_smoothing=smoothing)

    return loss


def _optimizer(model: nn.Module, factor: float = 1, *, adaptive: bool = False) -> torch.optim.Optimizer:
    """At a rate about that at which such networks train; the oracle has the last word."""
    rate, decay = factor * 10 ** random.uniform(-3.2, -2.5), random.choice((0.0, 0.0, 1e-4))
    if adaptive or random.random() < 0.6:
        kind = random.choice((torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam))
        return kind(model.parameters(), lr=rate, weight_decay=decay)
    momentum = random.choice((0.0, 0.9, 0.9))
    rate = factor * 10 ** random.uniform(-1.3, -0.9) * (1 - 0.8 * momentum)
    return torch.optim.SGD(
        model.parameters(),
        lr=rate,
        momentum=momentum,
        weight_decay=decay,
        nesterov=bool(momentum) and random.random() < 0.3,
    )
