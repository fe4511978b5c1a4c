"""Do targets depend on the inputs beside them? Permutation tests of kernels, for any kind of numbers on either side.

Both sides become features, and the statistic is the Hilbert-Schmidt independence criterion (Gretton et al. 2005,
"Measuring statistical dependence with Hilbert-Schmidt norms"): how much more alike the targets of examples are whose
inputs are alike. Targets in random orders say how large it is by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from depthgauge.seeding import Purpose, generator

EXAMPLES = 512  # that are looked at, at most: a kernel of them is 1 MB
ORDERS = 399  # random ones, of which none or few may reach what the order of the batches does
FEW_ORDERS, BEYOND = 99, 8.0  # standard deviations above the mean of a few orders, where no more are needed
LEVEL = 0.01  # of all kernels together, at which a dependence is called found
NEIGHBOURS = 5
NUMBERS = 512  # features of an example at most; more are projected at random
TARGETS = 16  # numbers that targets are projected to
CLASSES = 64  # more values of a whole number are hashed


def chance(inputs: Sequence[Tensor], targets: Tensor, examples: int = EXAMPLES, orders: int = ORDERS) -> float:
    """The probability that targets in a random order depend on the inputs as much as these; at most 1.

    Args:
        inputs: tensors (examples, ...), of floats or whole numbers.
        targets: (examples, ...).
        examples: the first ones, that are looked at.
        orders: random ones.

    Returns:
        Bonferroni's, over all kernels that were looked at, by ranks, or a normal distribution where no order reaches as
        much; 0 where a few orders leave no doubt, and NaN where one of both sides does not vary.
    """
    held = _columns(targets[:examples])
    least, tests = 1.0, 0
    if not bool((held != 0).any()):
        return math.nan
    for kernel in _kernels([each[:examples] for each in inputs]):
        tests += 1
        least = min(least, _one(kernel, held, orders))
        if not least:
            return 0.0
    return min(1.0, least * tests) if tests else math.nan


def _one(kernel: Tensor, held: Tensor, orders: int) -> float:
    draws = generator(0, Purpose.RESAMPLES)
    seen = _statistic(kernel, held, torch.arange(len(held))[None])
    few = _statistic(kernel, held, _orders(len(held), FEW_ORDERS, draws))
    if seen.item() > few.mean().item() + BEYOND * few.std().item() and few.std() > 0:
        return 0.0
    others = torch.cat([few, _statistic(kernel, held, _orders(len(held), orders - FEW_ORDERS, draws))])
    reached = int((others >= seen).sum())
    beyond = (seen.item() - others.mean().item()) / max(others.std().item(), 1e-30)
    return (1 + reached) / (1 + orders) if reached else min(1 / (1 + orders), 0.5 * math.erfc(beyond / math.sqrt(2)))


def _orders(count: int, orders: int, draws: torch.Generator) -> Tensor:
    return torch.rand(orders, count, generator=draws).argsort(1)


def _statistic(kernel: Tensor, held: Tensor, orders: Tensor) -> Tensor:
    """(orders,): sum over pairs of the kernel times the targets' products."""
    values = []
    for part in torch.split(orders, 100):
        moved = held[part].permute(1, 0, 2).reshape(len(held), -1)  # (examples, orders * numbers)
        values.append((moved * (kernel @ moved)).sum(0).view(len(part), -1).sum(1))
    return torch.cat(values)


def _kernels(inputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """Kernels over the examples: two of each kind of features, those of all inputs together."""
    for kind in zip(*map(_features, inputs), strict=True):
        features = _standardized(torch.cat(kind, 1))
        if features.shape[1]:
            yield _linear(features)
            yield _nearest(features)


def _features(values: Tensor) -> tuple[Tensor, ...]:
    """Features of inputs as they stand, and those that do not ask at which place something is."""
    if not values.is_floating_point() and values.dtype is not torch.uint8:
        whole = values.reshape(len(values), -1).long()
        return _hashed(whole, placed=True), _hashed(whole, placed=False)
    flat = values.reshape(len(values), -1).float().nan_to_num()
    if flat.shape[1] < 8:
        return flat, flat.square()
    full = values.float().nan_to_num().reshape(len(values), *(values.shape[1:] if values.dim() > 2 else (-1,)))
    spectrum = torch.fft.fftn(full, dim=tuple(range(1, full.dim()))).abs().reshape(len(values), -1)
    return _projected(flat, NUMBERS), _projected(spectrum.log1p(), NUMBERS)


def _hashed(whole: Tensor, *, placed: bool) -> Tensor:
    """Counts of tokens by place, or of tokens and of pairs of neighbours, whichever place they have."""
    keys = whole * 1_000_003
    if placed:
        keys = keys + 7919 * torch.arange(whole.shape[1])
    elif whole.shape[1] > 1:
        keys = torch.cat([keys, keys[:, 1:] * 31 + keys[:, :-1] * 17 + 5], 1)
    keys = (keys ^ (keys >> 13)).remainder(NUMBERS)
    return torch.zeros(len(whole), NUMBERS).scatter_add_(1, keys, torch.ones(keys.shape))


def _columns(targets: Tensor) -> Tensor:
    """(examples, numbers) of mean 0: one for each class, or each number."""
    flat = targets.reshape(len(targets), -1)
    if flat.is_floating_point() or flat.dtype is torch.bool:
        return _standardized(_projected(flat.float().nan_to_num(), TARGETS))
    if flat.shape[1] == 1:
        codes = torch.unique(flat[:, 0], return_inverse=True)[1] % CLASSES
        columns = torch.nn.functional.one_hot(codes, int(codes.max()) + 1).float()
    else:
        columns = _projected(_hashed(flat.long(), placed=True), TARGETS)
    return columns - columns.mean(0)


def _projected(flat: Tensor, most: int) -> Tensor:
    if flat.shape[1] <= most:
        return flat
    scaled = (flat - flat.mean(0)) / flat.std().clamp_min(1e-12)
    draws = generator(0, Purpose.RESAMPLES)
    signs = torch.randint(2, (flat.shape[1], most), generator=draws).float() * 2 - 1
    return scaled @ signs / math.sqrt(most)


def _standardized(values: Tensor) -> Tensor:
    spread = values.std(0, correction=0)
    kept = spread > 1e-6 * values.abs().amax(0).clamp_min(1e-30)
    return (values[:, kept] - values[:, kept].mean(0)) / spread[kept]


def _linear(features: Tensor) -> Tensor:
    return features @ features.T / features.shape[1]


def _nearest(features: Tensor) -> Tensor:
    """Which examples are neighbours of which; of mean 0 by row."""
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(math.inf)
    near = distances.topk(min(NEIGHBOURS, len(features) - 1), largest=False).indices
    return torch.zeros_like(distances).scatter_(1, near, 1.0)
