"""Random layers whose plain operators cancel, each with another legal computation of it: any alarm is false."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from depthgauge.seeding import Purpose, generator, numpy_generator

Mean = Callable[[Tensor], Tensor]

OTHERS = ("float64", "bfloat16", "float16", "halves", "batch")
"""Other computations: three dtypes, means of two halves, the batch in two parts."""


def _offset(h: Tensor, shift: float, mean: Mean) -> Tensor:
    return (h + shift) - mean(h + shift)


def _variance(h: Tensor, shift: float, mean: Mean) -> Tensor:
    return mean((h + shift) ** 2) - mean(h + shift) ** 2


def _normalized(h: Tensor, shift: float, mean: Mean) -> Tensor:
    return (h - mean(h)) / (_variance(h, shift / 10, mean).clamp(min=0) + 1e-3).sqrt()


def _ratio(h: Tensor, shift: float, _: Mean) -> Tensor:
    return h / (h.abs() + 0.1 / shift)


def _softmax(h: Tensor, shift: float, mean: Mean) -> Tensor:
    scores = (shift * h - (shift * h).amax(-1, keepdim=True)).exp()
    return scores / (mean(scores) * h.shape[-1])


def _rectified(h: Tensor, shift: float, mean: Mean) -> Tensor:
    return torch.relu(_offset(h, shift, mean))


def _gelu(h: Tensor, shift: float, _: Mean) -> Tensor:
    return h * (1 + torch.erf(shift**0.5 * h))


def _slope(h: Tensor, shift: float, _: Mean) -> Tensor:
    return (torch.tanh(h + 1 / shift) - torch.tanh(h)) * shift


def _distances(h: Tensor, shift: float, mean: Mean) -> Tensor:
    squares = mean(h * h)
    return (squares + squares.transpose(-1, -2) - 2 / h.shape[-1] * h @ h.transpose(-1, -2)) * shift


FORMULAS: Mapping[str, Callable[[Tensor, float, Mean], Tensor]] = {
    each.__name__[1:]: each
    for each in (_offset, _variance, _normalized, _ratio, _softmax, _rectified, _gelu, _slope, _distances)
}


class Cancelling(nn.Module):
    """One of the formulas, of an input times a weight of its own where there is one.

    Args:
        formula: a name in `FORMULAS`.
        shift: how strongly it cancels.
        weight: as long as the input's last dimension.
    """

    halves = False

    def __init__(self, formula: str, shift: float, weight: Tensor | None = None) -> None:
        super().__init__()
        self.formula, self.shift = formula, shift
        self.weight = None if weight is None else nn.Parameter(weight)

    def forward(self, h: Tensor) -> Tensor:
        """Compute the formula."""
        h = h if self.weight is None else h * self.weight
        return FORMULAS[self.formula](h, self.shift, self._mean)

    def _mean(self, x: Tensor) -> Tensor:
        if not self.halves:
            return x.mean(-1, keepdim=True)
        middle = x.shape[-1] // 2
        return (x[..., middle:].sum(-1, keepdim=True) + x[..., :middle].sum(-1, keepdim=True)) / x.shape[-1]


class Parts(nn.Module):
    """A module on a batch whose examples come in two parts."""

    def __init__(self, inner: nn.Module, first: int) -> None:
        super().__init__()
        self.inner, self.first = inner, first

    def forward(self, x: Tensor) -> Tensor:
        """Join the parts' outputs."""
        return torch.cat([self.inner(part) for part in (x[: self.first], x[self.first :]) if len(part)])


def cancelling_pair(seed: int) -> tuple[nn.Module, nn.Module, Tensor, str]:
    """A random module in float32, another computation of it, a normally distributed batch, and which of `OTHERS` it is.

    The layer stands alone or between two others, on 1 to 64 x 4 to 256 values.
    """
    draw, values = numpy_generator(seed, Purpose.SAMPLE, "cancelling"), generator(seed, Purpose.MODULES)
    examples, width = int(2 ** draw.uniform(0, 6)), int(2 ** draw.uniform(2, 8))
    formula, other = (str(draw.choice(names)) for names in (list(FORMULAS), OTHERS))
    weight = torch.randn(width, generator=values) if draw.random() < 0.3 else None
    layer = Cancelling(formula, float(10 ** draw.uniform(0, 1.5)), weight)
    module: nn.Module = layer
    if draw.random() < 0.5:
        before = nn.Linear(width, width)
        before.weight.data = torch.randn(width, width, generator=values) / width**0.5
        before.bias.data.zero_()
        module = nn.Sequential(before, layer, nn.Tanh())
    x = torch.randn(examples, width, generator=generator(seed, Purpose.INPUTS))
    if other == "batch" and formula != "distances":
        return Parts(module, 0), Parts(copy.deepcopy(module), examples // 3), x, other
    changed = copy.deepcopy(module)
    if other not in {"halves", "batch"}:
        return module, changed.to(getattr(torch, other)), x, other
    for each in changed.modules():
        if isinstance(each, Cancelling):
            each.halves = True
    return module, changed, x, "halves"
