"""The values of a format from which on something happens: measured by bisection, and by the format's definition."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from depthgauge import formats

CLASSES = 10
TERMS = 1000  # equal scores, of the threshold at which their sum overflows


def softmax(x: Tensor) -> Tensor:
    """Exponentials over their sum, with no shift; every operation the device's own, in the dtype of x."""
    e = x.exp()
    return e / e.sum(1, keepdim=True)


def one_high(x: Tensor) -> Tensor:
    """Rows of scores of which one is x and the others are 0."""
    return torch.cat([x.expand(64, 1), torch.zeros(64, CLASSES - 1).to(x)], 1)


def vanishes(fmt: formats.Format) -> float:
    """The smallest value x of the format at which exp(-x) is rounded to zero."""
    limit = -math.log(fmt.zero_below)
    return math.ceil(limit / fmt.spacing(limit)) * fmt.spacing(limit)


# Whether it fails at a score x > 0, of 64 rows, as a kernel treats a few numbers by themselves; and what defines where.
EXPONENTIALS: Mapping[str, tuple[Callable[[Tensor], Tensor], Callable[[formats.Format], float]]] = {
    "exp(x) is infinite": (lambda x: x.expand(64).exp().isinf().all(), formats.Format.exp_overflows_from),
    "softmax(x, 0, ...) is NaN": (
        lambda x: softmax(one_high(x))[:, 0].isnan().all(), formats.Format.exp_overflows_from
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
    """The smallest positive value of a dtype at which something happens that goes on happening, by bisection."""
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    low, high = 0, int(torch.tensor(torch.finfo(dtype).max, dtype=dtype).view(bits))
    while high - low > 1:
        middle = (low + high) // 2
        x = torch.tensor(middle, dtype=bits).view(dtype).to(device)
        low, high = (low, middle) if happens(x) else (middle, high)
    return float(torch.tensor(high, dtype=bits).view(dtype))
