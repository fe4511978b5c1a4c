"""Policies for the last incomplete batch, with torch's own samplers, and where training converges under each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from depthgauge.seeding import Purpose, generator, number

POLICIES = KEEP, SUMMED, DROP, TOP_UP, PAD = ("keep", "keep, sum / B", "drop", "top up", "pad")
ORDERS = FIXED, SHUFFLED = ("fixed", "shuffled")
DIMENSIONS = 3
RATE = 0.02  # of the regression: small, so that a training converges to what its weights say


class Epochs:
    """Batches of indices, epoch after epoch, as a policy makes them.

    Attributes:
        policy: one of `POLICIES`.
        order: one of `ORDERS`.
        examples: n.
        batch: B.
    """

    def __init__(self, policy: str, order: str, examples: int, batch: int, seed: int) -> None:
        self.policy, self.order, self.examples, self.batch = policy, order, examples, batch
        self._draws = generator(seed, Purpose.ORDER)
        kept = number(seed, Purpose.ORDER) % 2**31  # what a seed of DistributedSampler and its epochs have room for
        data = TensorDataset(torch.zeros(examples))
        self._ranks: list[DistributedSampler[int]] = [
            DistributedSampler(data, batch, rank, order == SHUFFLED, kept)
            for rank in range(batch if policy == PAD else 0)
        ]

    def epoch(self, place: int) -> list[list[int]]:
        """The batches of one epoch."""
        if self.policy == PAD:  # a replica an example of the batch
            for rank in self._ranks:
                rank.set_epoch(place)
            return [list(batch) for batch in zip(*self._ranks, strict=True)]
        every = range(self.examples)
        sampler = RandomSampler(every, generator=self._draws) if self.order == SHUFFLED else SequentialSampler(every)
        batches = list(BatchSampler(sampler, self.batch, drop_last=self.policy == DROP))
        if self.policy == TOP_UP and (short := self.batch - len(batches[-1])):
            others = sorted(set(every) - set(batches[-1]))
            drawn = torch.randperm(len(others), generator=self._draws)[:short].tolist()
            batches[-1] = [*batches[-1], *(others[i] for i in drawn)]
        return batches


def weights(epochs: Epochs, count: int) -> Tensor:
    """Weight of every example in the sum of an epoch's gradients, 1 in a full batch; mean over epochs.

    The gradient of a linear layer at one-hot inputs, which torch computes from the batches that its DataLoader gives.
    """
    layer = nn.Linear(epochs.examples, 1, bias=False)
    for place in range(count):
        loader = DataLoader(TensorDataset(torch.eye(epochs.examples)), batch_sampler=epochs.epoch(place))
        for (x,) in loader:
            reduced(epochs, layer(x)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    assert layer.weight.grad is not None
    return layer.weight.grad[0] * epochs.batch / count


def reduced(epochs: Epochs, losses: Tensor) -> Tensor:
    """A batch's losses as one: their mean over the first dimension, or their sum over the size of a full batch."""
    return losses.sum(0) / epochs.batch if epochs.policy == SUMMED else losses.mean(0)


def predicted_weights(policy: str, examples: int, batch: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Weight of every example in a fixed order, 1 in a full batch."""
    found, short = np.ones(examples), examples % batch
    if policy == KEEP:
        found[-short:] = batch / short
    elif policy == DROP:
        found[-short:] = 0.0
    elif policy == TOP_UP:  # drawn from the others
        found[:-short] += (batch - short) / (examples - short)
    elif policy == PAD:
        found[: batch - short] += 1.0
    return found


def odd(policy: str, examples: int, batch: int) -> slice:
    """The examples that a policy treats unlike the others in a fixed order: the last, or those it repeats."""
    short = examples % batch
    return slice(0, batch - short) if policy == PAD else slice(examples - short, examples)


def odd_weight(policy: str, order: str, examples: int, batch: int) -> float:
    """Predicted weight of the odd examples over that of the others; 1 on average of new orders."""
    if order == SHUFFLED:
        return 1.0
    return relative(predicted_weights(policy, examples, batch), odd(policy, examples, batch))


def relative(weight: Any, chosen: slice) -> float:
    """Mean weight of the chosen examples over that of the others."""
    rest = np.delete(np.asarray(weight, dtype=np.float64), chosen)
    return float(np.asarray(weight, dtype=np.float64)[chosen].mean() / rest.mean())


def regressions(every: Sequence[Epochs], seeds: Sequence[int], epochs: int) -> Iterator[tuple[float, float]]:
    """Shift of the limit from least squares, in its standard errors: measured and predicted, a seed.

    Both are taken along the shift that a fixed order predicts. Measured: mean of the weights over the second half of
    the epochs. All seeds are trained at once by one optimizer, which leaves each its own gradient.
    """
    x = torch.stack(
        [_normal(seed, Purpose.INPUTS, e.examples, DIMENSIONS) for e, seed in zip(every, seeds, strict=True)]
    )
    y = torch.stack([_normal(seed, Purpose.LABELS, e.examples) for e, seed in zip(every, seeds, strict=True)])
    theta = nn.Parameter(torch.zeros(len(seeds), DIMENSIONS, dtype=torch.float64))
    optimizer, total, counted, rows = (
        torch.optim.SGD([theta], lr=RATE),
        torch.zeros_like(theta),
        0,
        torch.arange(len(seeds)),
    )
    for place in range(epochs):
        for batches in zip(*(one.epoch(place) for one in every), strict=True):
            chosen = torch.tensor(batches).T  # (examples of the batch, seeds)
            losses = ((x[rows, chosen] * theta).sum(-1) - y[rows, chosen]) ** 2 / 2
            optimizer.zero_grad()
            reduced(every[0], losses).sum().backward()  # type: ignore[no-untyped-call]  # likewise
            optimizer.step()
            if 2 * place >= epochs:
                total, counted = total + theta.detach(), counted + 1
    for one, inputs, targets, limit in zip(every, x.numpy(), y.numpy(), (total / counted).numpy(), strict=True):
        yield _shift(one, inputs, targets, limit)


def _shift(epochs: Epochs, x: Any, y: Any, limit: Any) -> tuple[float, float]:
    equal = np.linalg.solve(x.T @ x, x.T @ y)
    weight = predicted_weights(epochs.policy, epochs.examples, epochs.batch)
    moved = np.linalg.solve((x.T * weight) @ x, (x.T * weight) @ y) - equal
    along = moved / np.linalg.norm(moved) if moved.any() else np.eye(len(equal))[0]  # any, where no shift is predicted
    error = np.sqrt(along @ np.linalg.solve(x.T @ x, along))  # of labels with noise of variance 1
    return float((limit - equal) @ along / error), float(moved @ along / error) * (epochs.order == FIXED)


def _normal(seed: int, purpose: Purpose, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, purpose), dtype=torch.float64)
