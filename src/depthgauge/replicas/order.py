"""The order in which a replica sees its examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from depthgauge import seeding
from depthgauge.seeding import Purpose


def order(seed: int, examples: int, batch: int, steps: int) -> Tensor:
    """Indices (steps, batch) of one replica's mini-batches.

    Each epoch is a fresh permutation of all examples cut into whole batches; what is left over at an epoch's end is
    not seen in it. A batch of all examples or more is all of them, unshuffled, at every step.

    Args:
        seed: the replica's seed for its order.
        examples: number of examples.
        batch: examples a step.
        steps: number of steps.

    Raises:
        ValueError: there is no example, or the batch is empty.
    """
    if examples < 1 or batch < 1:
        raise ValueError(f"batches need at least one example each, not {batch} of {examples}")
    if batch >= examples:
        return torch.arange(examples).expand(steps, examples)
    generator = seeding.generator(seed, Purpose.ORDER)
    whole = examples // batch
    epochs = -(-steps // whole)
    rows = [torch.randperm(examples, generator=generator)[: whole * batch].view(whole, batch) for _ in range(epochs)]
    return torch.cat(rows)[:steps] if rows else torch.empty(0, batch, dtype=torch.int64)


def orders(seeds: Sequence[int], examples: int, batch: int, steps: int) -> Tensor:
    """Indices (steps, R, batch) of all replicas."""
    return torch.stack([order(seed, examples, batch, steps) for seed in seeds], dim=1)
