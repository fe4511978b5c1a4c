"""Work of the ranks of the part `model`: collectives and training steps, timed in turns in one launch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from depthgauge import data, models, noise, seeding
from depthgauge.parallel import Group, Layout, ddp_steps, time_steps
from depthgauge.parallel.collectives import prepare
from depthgauge.planning import along
from depthgauge.seeding import Purpose
from depthgauge.workload import Training

BUCKET_MIB = 0.5
STRETCH, CALLS = 0.01, 0.002  # seconds that a duration of steps, or of collectives, is averaged over at least
DIGITS = (1, 8, 8)
SCALED_AT = (0, 20, 60, 100)  # steps after which the noise scale is measured
RATE, EXAMPLES, UNITS = 0.02, 512, 32  # of that training, and of each measurement


class Asked(NamedTuple):
    """Collectives and steps that the ranks are to time.

    Attributes:
        moves: (collective, bytes).
        layouts: (examples a rank, reduction of the gradients).
        width: of the network.
        depth: its hidden layers.
        rounds: durations of each.
    """

    moves: tuple[tuple[str, int], ...]
    layouts: tuple[tuple[int, str], ...]
    width: int
    depth: int
    rounds: int


class Timed(NamedTuple):
    """Seconds of collectives (rounds, moves) and of steps (rounds, layouts), each the mean of a stretch."""

    moves: NDArray[np.float64]
    steps: NDArray[np.float64]


def work(group: Group, asked: Asked) -> Timed:
    """Time all that was asked for; the same in each rank."""
    moves = [prepare(group, name, size).call for name, size in asked.moves]
    layouts = [
        (training(asked.width, asked.depth, batch, str(group.device)), _layout(group, reduction))
        for batch, reduction in asked.layouts
    ]
    steps = ddp_steps(group, layouts)
    return Timed(
        time_steps(group, moves, asked.rounds, stretch=CALLS), time_steps(group, steps, asked.rounds, stretch=STRETCH)
    )


def _layout(group: Group, reduction: str) -> Layout:
    return Layout(group.ranks, reduction, BUCKET_MIB)  # type: ignore[arg-type]  # a case holds it as text


def training(width: int, depth: int, batch: int, device: str = "cpu") -> Training:
    """A residual perceptron on one batch of drawn images."""
    return models.training(
        "mlp", batch=batch, device=device, input_shape=DIGITS, width=width, depth=depth, residual=True
    )


def gradient_bytes(width: int, depth: int) -> int:
    """Bytes of the network's gradients."""
    return sum(each.numel() * each.element_size() for each in training(width, depth, 1).model.parameters())


def buckets(size: float) -> int:
    """Buckets that DDP makes of so many bytes."""
    return max(1, round(size / (BUCKET_MIB * 2**20)))


def critical_batch(width: int, depth: int, batch: int) -> tuple[float, float, float]:
    """Critical batch size of the network on digits, with the ends of its 95 % interval; see `planning.along`."""
    model = training(width, depth, 1).model
    digits = data.load("digits").train
    order = torch.randperm(len(digits.x), generator=seeding.generator(0, Purpose.ORDER))
    points = [_scale(model, digits.x[order[:EXAMPLES]], digits.y[order[:EXAMPLES]])]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for done, (x, y) in enumerate(_batches(digits, order, batch, SCALED_AT[-1]), 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        if done in SCALED_AT:
            points.append(_scale(model, digits.x[order[:EXAMPLES]], digits.y[order[:EXAMPLES]]))
    shares = along.weights(SCALED_AT, SCALED_AT[-1]).tolist()
    value, low, high = (along.critical_batch(column, shares, batch) for column in zip(*points, strict=True))
    return value, low, high


def _batches(digits: data.Examples, order: torch.Tensor, batch: int, count: int) -> Iterator[tuple[torch.Tensor, ...]]:
    places = order.repeat(math.ceil(count * batch / len(order)))
    for place in range(count):
        chosen = places[place * batch : (place + 1) * batch]
        yield digits.x[chosen], digits.y[chosen]


def _scale(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Sequence[float]:
    found = noise.scale(
        model, lambda model, x, y: nn.functional.cross_entropy(model(x), y), x, y, batch=len(x) // UNITS
    )
    return [each if each >= 0 else math.inf for each in (found.value, found.low, found.high)]
