"""Relative errors of tensors, over several calls and several kinds of tensors."""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.precision.emulation import unrounded


class Tally:
    """Sums of squares of differences and of references, by what is compared.

    Attributes:
        defined: whether there is a comparison.
    """

    def __init__(self) -> None:
        self.defined = True
        self._sums: dict[object, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, what: object, low: Tensor | None, reference: Tensor | None) -> None:
        """Compare a tensor with its reference; None stands for zeros."""
        with unrounded():  # what is emulated is the model, not this
            self._add(what, low, reference)

    def _add(self, what: object, low: Tensor | None, reference: Tensor | None) -> None:
        known = reference if reference is not None else low
        if known is None or not (known.is_floating_point() or known.is_complex()):
            return
        sums = self._sums[what]
        found, wanted = (torch.zeros_like(known) if each is None else each for each in (low, reference))
        found, wanted = _numbers(found), _numbers(wanted)
        if found.shape != wanted.shape:
            raise ValueError(f"in low precision the shape is {tuple(found.shape)}, in float32 {tuple(wanted.shape)}")
        difference, norm = (found - wanted).square().sum().item(), wanted.square().sum().item()
        if not math.isfinite(difference + norm):
            agree = (found == wanted) | (found.isnan() & wanted.isnan())
            difference = torch.where(agree, 0.0, found - wanted).square().sum().item()
            norm = torch.where(wanted.isfinite(), wanted, 0.0).square().sum().item()
        sums[0] += difference if math.isfinite(difference) else math.inf
        sums[1] += norm

    def exact(self, what: object, reference: Tensor | None) -> None:
        """Count a tensor that has no error."""
        self.add(what, reference, reference)

    def fail(self) -> None:
        """Count an infinite error: there was no result at all."""
        self._sums["result"][0] = math.inf

    def merge(self, other: Tally) -> None:
        """Add what another has compared."""
        for what, (error, norm) in other._sums.items():
            self._sums[what][0] += error
            self._sums[what][1] += norm

    @property
    def value(self) -> float:
        """The largest relative error among all that was compared; of nothing, 0; NaN where there is no comparison."""
        if not self.defined:
            return math.nan
        return max((_ratio(error, norm) for error, norm in self._sums.values()), default=0.0)


def _ratio(error: float, norm: float) -> float:
    if not error or not math.isfinite(error):
        return error
    return math.sqrt(error / norm) if norm else math.inf


def _numbers(tensor: Tensor) -> Tensor:
    dense = tensor.detach()
    if dense.layout is not torch.strided:
        dense = dense.values() if dense.is_nested else dense.to_dense()
    return nested.real(dense).double()
