"""The values of a format from which on something happens: measured by bisection, and by the format's definition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from depthgauge import formats
from depthgauge.formats import Format

CLASSES = 10
TERMS = 1000  # equal scores, of the threshold at which their sum overflows


def softmax(x: Tensor) -> Tensor:
    """Exponentials over their sum, with no shift; every operation the device's own, in the dtype of x."""
    e = x.exp()
    return e / e.sum(1, keepdim=True)


def one_high(x: Tensor) -> Tensor:
    """Rows of scores of which one is x and the others are 0."""
    return torch.cat([x.expand(64, 1), torch.zeros(64, CLASSES - 1).to(x)], 1)


def vanishes(fmt: Format) -> float:
    """The smallest value x of the format at which exp(-x) is rounded to zero."""
    limit = -math.log(fmt.zero_below)
    return math.ceil(limit / fmt.spacing(limit)) * fmt.spacing(limit)


# Whether it fails at a score x > 0, of 64 rows, as a kernel treats a few numbers by themselves; and what defines where.
EXPONENTIALS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[Format], float]]] = {
    "exp(x) is infinite": (lambda x: x.expand(64).exp().isinf().all(), Format.exp_overflows_from),
    "softmax(x, 0, ...) is NaN": (
        lambda x: softmax(one_high(x))[:, 0].isnan().all(), Format.exp_overflows_from
    ),
    f"{TERMS} equal scores: every p is 0": (
        lambda x: ~(softmax(x.expand(64, TERMS)) > 0).any(), lambda fmt: fmt.exp_overflows_from(TERMS)
    ),
    "exp(-x) is 0": (lambda x: ((-x).expand(64).exp() == 0).all(), vanishes),
    "log softmax(-x, 0) is infinite": (
        lambda x: softmax(one_high(-x)[:, :2]).log()[:, 0].isinf().all(), vanishes
    ),
}  # fmt: skip


def least(dtype: torch.dtype, device: str, happens: Callable[[Tensor], Tensor]) -> float:
    """The smallest positive value of a dtype from which on something happens; infinity where it never does.

    By bisection over the dtype's values, which are ordered as their bits.
    """
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]

    def value(at: int) -> Tensor:
        return torch.tensor(at, dtype=bits).view(dtype).to(device)

    low, high = 0, int(torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(bits))
    if not happens(value(high)):
        return math.inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if happens(value(middle)) else (middle, high)
    return float(value(high))


def native(fmt: Format) -> bool:
    """Tell whether torch has a dtype for the format."""
    return fmt.dtype == fmt.name


def cast(x: Tensor, fmt: Format) -> Tensor:
    """Values rounded by torch to the format and back; by `formats.round` where torch has no dtype for it."""
    return x.to(getattr(torch, fmt.dtype)).to(x.dtype) if native(fmt) else formats.round(x, fmt)


def source(fmt: Format) -> torch.dtype:
    """The dtype that is cast to the format: float32, which torch rounds once; float64 where the format is float32."""
    return torch.float64 if fmt.name == "float32" else torch.float32


def zero_up_to(fmt: Format, device: str) -> float:
    """The largest value that is rounded to zero; of a block whose largest value is 1."""

    def survives(x: Tensor) -> Tensor:
        block = isinstance(fmt, formats.BlockFormat)
        return (cast(torch.stack([torch.ones_like(x), x]) if block else x.expand(64), fmt)[1:] != 0).all()

    first = torch.tensor(least(source(fmt), device, survives), dtype=source(fmt))
    return float(first.nextafter(torch.zeros_like(first)))


def zero_defined(fmt: Format) -> float:
    """Half the smallest value; in a block times the scale that the largest value, 1, gives it."""
    if not isinstance(fmt, formats.BlockFormat):
        return fmt.zero_below
    top = fmt.element.max if fmt.scale == "e4m3" else 2.0 ** (math.frexp(fmt.element.max)[1] - 1)
    return fmt.element.zero_below / top


def overflow(fmt: Format, device: str) -> float:
    """The smallest value whose cast is not finite."""
    if isinstance(fmt, formats.BlockFormat):
        return math.nan
    return least(source(fmt), device, lambda x: ~cast(x.expand(64), fmt).isfinite().any())


def overflow_defined(fmt: Format) -> float:
    """The smallest value of what is cast that is beyond the middle between the largest value and the next."""
    limit = torch.tensor(fmt.overflows_from, dtype=source(fmt))
    return float(limit if float(limit) >= fmt.overflows_from else limit.nextafter(torch.tensor(math.inf).to(limit)))


def ones(fmt: Format, device: str) -> float:
    """The sum of ones that one more does not change; it starts a little below, where all whole numbers are values."""
    if isinstance(fmt, formats.BlockFormat):
        return math.nan
    total = torch.tensor(max(fmt.stagnation - 8, 0.0), dtype=source(fmt), device=device)
    while (following := cast(total + 1, fmt)) != total:
        total = following
    return float(total)


def exponential(fmt: Format, device: str) -> float:
    """The format's smallest value whose exponential, rounded to the format, is not finite."""
    if not native(fmt):
        return math.nan
    wide = source(fmt)
    return least(getattr(torch, fmt.dtype), device, lambda x: ~cast(x.expand(64).to(wide).exp(), fmt).isfinite().any())


LIMITS: Mapping[str, tuple[Callable[[Format, str], float], Callable[[Format], float]]] = {
    "rounds to zero up to": (zero_up_to, zero_defined),
    "overflows from": (overflow, overflow_defined),
    "a sum of ones stops at": (ones, lambda fmt: fmt.stagnation),
    "exp overflows from": (exponential, Format.exp_overflows_from),
}
