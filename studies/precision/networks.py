"""The networks whose layers are compared, and their short training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import models
from depthgauge.initialization import gaussian
from depthgauge.seeding import Purpose, seed_torch

OVERFLOWING, NORMED = "overflowing mlp", "normed mlp"  # the one's activations grow by 2.8 a layer, past 65504
BUILT: dict[str, dict[str, Any]] = {
    OVERFLOWING: {"name": "mlp", "depth": 13, "width": 64, "init": gaussian(4.0)},
    NORMED: {"name": "mlp", "preset": "small", "norm": "layer"},
}
TRAINED_ON, RATE = 64, 0.05  # examples a step and learning rate of the short training


def built(network: str, seed: int) -> nn.Module:
    """A model at its small preset, or one of those above."""
    made = BUILT.get(network, {"name": network, "preset": "small"})
    return models.build(**made, input_shape=(1, 28, 28), seed=seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums in low precision depend on how many share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@one_thread()
def trained(model: nn.Module, x: Tensor, y: Tensor, steps: int, seed: int) -> None:
    """Train by SGD with momentum, in float32, on batches in the order of the examples."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    with torch.random.fork_rng():
        seed_torch(seed, Purpose.DROPOUT)
        for step in range(steps):
            rows = slice(step * TRAINED_ON % (len(x) - TRAINED_ON), None)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows][:TRAINED_ON]), y[rows][:TRAINED_ON]).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
