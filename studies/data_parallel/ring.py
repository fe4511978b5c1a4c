"""Gradients reduced in a narrow format: torch's own compression hooks in ranks, and the same sums in the ring's order.

gloo's ring cuts a buffer into one chunk a rank; chunk c is passed on from rank c - 1 downwards, each rank adds its own
part, and rank c adds the last (pytorch/gloo, gloo/allreduce.cc). So every sum's order, and with it every bit, is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from depthgauge import data, formats
from depthgauge.parallel import Group
from depthgauge.seeding import Purpose, generator, seed_torch
from depthgauge.theory.summation import equal_sum_errors

ELEMENTS = 1024  # of a gradient that is drawn
MOST = 64  # ranks
SHARD, WIDTH = 8, 16  # examples a rank, and width of the network, of the gradients of digits
NOISE = 0.5  # of a rank's own part, where the ranks share most of the gradient
DRAWN, SHARED, EQUAL, DIGITS = GRADIENTS = ("independent", "mostly shared", "equal", "digits")
HOOKS: Mapping[str, Callable[..., Any] | None] = {
    "float32": None, "float16": default_hooks.fp16_compress_hook, "bfloat16": default_hooks.bf16_compress_hook,
}  # fmt: skip


@cache
def gradients(kind: str, seed: int) -> Tensor:
    """Gradients of `MOST` ranks, shape (MOST, elements), float32.

    Args:
        kind: `independent` standard normal numbers; `mostly shared`: those of all ranks, with noise of a rank's own;
            `equal` in all ranks; `digits`: of a small network, each rank with its own examples.
        seed: of the draws.
    """
    if kind == DIGITS:
        return _of_digits(seed)
    draws = generator(seed, Purpose.OPERANDS, kind)
    own = torch.randn(MOST, ELEMENTS, generator=draws)
    common = torch.randn(ELEMENTS, generator=draws).expand_as(own)
    return {DRAWN: own, SHARED: common + NOISE * own, EQUAL: common}[kind]


def _of_digits(seed: int) -> Tensor:
    train = data.load("digits").train
    order = torch.randperm(len(train.y), generator=generator(seed, Purpose.SAMPLE))[: MOST * SHARD].view(MOST, SHARD)
    with torch.random.fork_rng(devices=[]):
        seed_torch(seed, Purpose.MODULES)
        model = nn.Sequential(nn.Linear(64, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
    found = []
    for some in order:
        loss = nn.functional.cross_entropy(model(train.x[some].flatten(1)), train.y[some])
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    return torch.stack(found)


def parts(values: Tensor, fmt: str) -> Tensor:
    """The numbers that ranks add up: gradients rounded to the format and divided by the ranks, as hooks do.

    Without a hook, in float32, DDP multiplies by the rounded inverse of that number.
    """
    narrow = values.to(getattr(torch, fmt))
    return torch.mul(narrow, 1 / len(values)) if fmt == "float32" else torch.div(narrow, len(values))


def ordered(added: Tensor) -> Tensor:
    """The parts of ranks, shape (ranks, elements), each element's in the order in which gloo's ring adds them.

    Right for buffers that are not so large that a rank's chunk has more segments than two.
    """
    ranks, elements = added.shape
    chunks = torch.arange(elements) // (2 * math.ceil(elements / (2 * ranks)))
    return added.gather(0, (chunks - torch.arange(1, ranks + 1)[:, None]) % ranks)


def reduced(added: Tensor) -> Tensor:
    """The sum over ranks, shape (ranks, elements) to (elements,), every addition in the dtype and the ring's order."""
    first, *others = ordered(added)
    total: Tensor = reduce(torch.add, others, first)
    return total


def error(got: Tensor, values: Tensor) -> float:
    """Norm of the error of a reduced gradient over the norm of the exact mean."""
    exact = values.double().mean(0)
    return float((got.double() - exact).norm() / exact.norm())


def law(values: Tensor, fmt: str) -> float:
    """The error that independent roundings make, each uniform over the spacing at its own result: to first order.

    A sum of two numbers whose finer spacing is the result's is exact, one of half of it is a tie half of the time.
    """
    added = ordered(parts(values, fmt).double())
    sums = added.cumsum(0)
    spacing = _spacing(sums[1:], fmt)
    ratio = (torch.minimum(_spacing(sums[:-1], fmt), _spacing(added[1:], fmt)) / spacing).square()
    graded = torch.where(ratio == 0.25, 1.5, 1 + 2 * ratio).where(ratio < 1, 0.0)
    square = (graded * spacing.square()).sum() / 12
    if fmt != "float32":
        square += _rounding(values.double() / len(values), fmt).sum()
    return float(square.sqrt() / values.double().mean(0).norm())


def equal_law(values: Tensor, fmt: str) -> float:
    """The error where all ranks have one gradient, to first order: roundings within a binade are equal, and add up."""
    exact, added = (x[0].double().numpy() for x in (values, parts(values, fmt)))
    off = equal_sum_errors(fmt, added, len(values)) + len(values) * added - exact
    return float(np.linalg.norm(off) / np.linalg.norm(exact))


def _rounding(x: Tensor, fmt: str) -> Tensor:
    """Mean square of the error of rounding numbers; what is below half the smallest one is lost."""
    spacing = _spacing(x, fmt)
    return torch.where(x.abs() < spacing / 2, x.square(), spacing.square() / 12)


def _spacing(x: Tensor, fmt: str) -> Tensor:
    """Distance between neighbours in the format at |x|."""
    held = formats.get(fmt)
    exponent = torch.frexp(x.abs().clamp_min(held.smallest_normal))[1] - 1
    return torch.ldexp(torch.ones_like(x), exponent - held.mantissa_bits)


class Given(nn.Module):
    """A module whose gradient is what it is given, to the bit."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(elements))

    def forward(self, gradient: Tensor) -> Tensor:
        """A loss of that gradient."""
        return (self.weight * gradient).sum()


def work(group: Group, asked: Sequence[tuple[str, str, int, int]]) -> list[dict[str, float]]:
    """Reduce gradients by DistributedDataParallel and torch's hooks in groups of the first ranks; rank 0 answers.

    Args:
        group: of as many ranks as the largest group has.
        asked: (format, kind of gradients, ranks, seed) each.
    """
    groups = {ranks: group.of_first(ranks) for ranks in sorted({ranks for _, _, ranks, _ in asked})}
    takes = {fmt: _takes(group, fmt) for fmt in HOOKS}
    found = []
    for fmt, kind, ranks, seed in asked:
        if not takes[fmt]:
            found.append({"reduced": 0.0})
        elif group.rank < ranks:
            values = gradients(kind, seed)[:ranks]
            got, accepted = _hooked(groups[ranks], fmt, values[group.rank].to(group.device))
            unlike = float((got != reduced(parts(values, fmt)).float()).double().mean())
            found.append({"reduced": 1.0, "accepted": float(accepted), "error": error(got, values), "unlike": unlike})
    return found if group.rank == 0 else []


def _takes(group: Group, fmt: str) -> bool:
    """Tell whether the backend reduces the format."""
    try:
        distributed.all_reduce(torch.zeros(2, dtype=getattr(torch, fmt), device=group.device))
    except RuntimeError:
        return False
    return True


def _hooked(ranks: Any, fmt: str, gradient: Tensor) -> tuple[Tensor, bool]:
    """The gradient as torch's hook for the format has reduced it, and whether DDP accepted that hook.

    DDP refuses the bfloat16 hook on a CPU, by its name, whatever the backend can do; it gets the same under another.
    """
    module, hook = DistributedDataParallel(Given(len(gradient)).to(gradient.device), process_group=ranks), HOOKS[fmt]
    accepted = True
    if hook is not None:
        try:
            module.register_comm_hook(ranks, hook)
        except TypeError:
            accepted = False
            module = DistributedDataParallel(module.module, process_group=ranks)
            module.register_comm_hook(ranks, lambda state, bucket: hook(state, bucket))  # noqa: PLW0108 - another name
    module(gradient).backward()
    return module.module.weight.grad.cpu(), accepted
