"""Sound trainings drawn by chance: what several ranks compute of them is what one does, but for rounding."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge import Training, parallel
from depthgauge.seeding import Purpose, python_generator, seed_globals

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.ELU)


def training(draw: random.Random, half: bool = False) -> Training:
    """Examples are independent, and the loss is their mean."""
    count, width, depth = 4 * draw.randint(1, 12), 4 * draw.randint(1, 10), draw.randint(1, 5)
    act, scale = draw.choice(ACTIVATIONS), 10 ** draw.uniform(-2, 2)
    convolutional, pairs = draw.random() < 0.3, draw.random() < 0.5
    layers: list[nn.Module] = []
    if convolutional:
        layers += [
            nn.Conv2d(1, 4, 3, bias=draw.random() < 0.5),
            nn.GroupNorm(2, 4),
            act(),
            nn.Flatten(),
            nn.Linear(64, width),
        ]
    else:
        layers += [nn.Linear(6, width)]
    for _ in range(depth):
        layers += [act(), *([nn.LayerNorm(width)] if draw.random() < 0.4 else []), nn.Linear(width, width)]
    model = nn.Sequential(*layers, act(), nn.Linear(width, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(draw.choice((0.5, 1.0, 2.0)))
    x = torch.randn((count, 1, 6, 6) if convolutional else (count, 6)) * scale
    y: Tensor = torch.randint(5, (count,)) if pairs else torch.randn(count, 5)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if half:
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(batch[0]).to(torch.promote_types(batch[0].dtype, torch.float32))
        else:
            scores = model(batch[0])
        return functional.cross_entropy(scores, batch[1]) if pairs else functional.mse_loss(scores, batch[1])

    return Training(model, [(x, y)], loss)


def alarms(group: parallel.Group, count: int, *, half: bool = False) -> list[tuple[int, bool | None, bool, float, str]]:
    """(number, same, beyond the band before float64 is asked, largest distance in bands, why) of each net."""
    found = []
    for number in range(count):
        draw = python_generator(number, Purpose.SAMPLE)
        seed_globals(number, Purpose.WEIGHTS)
        made = parallel.compare(group, training(draw, half), accumulate=1 + number % 2)
        rows = made.decisive.rows
        widest = max((row.distance / row.band for row in rows if row.band), default=0.0)
        found.append((number, made.same, any(row.distance > row.band for row in rows), widest, made.why))
    return found
