"""Parameters and buffers of two versions of a module, held against the rounding of the coarser format."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.precision.band import Judgement
from depthgauge.precision.passage import numbers, stripped

BAND = 2.0
"""Units in the last place of the coarser format within which parameters are the same: each may be rounded twice."""

ARRANGED = 0.25
"""Share of values beyond the band from which two tensors are not versions of each other: one is arranged otherwise."""


def judged(
    a: nn.Module, b: nn.Module, epsilon: float, tiny: float = 0.0
) -> Iterator[tuple[str, str, Judgement | None]]:
    """Hold each tensor of the one module against that of the same name and shape in the other.

    A few wrong values among many that agree are a fault. Where many differ, layers may hold the same values in another
    order: nothing can be said of them, nor of their gradients.

    Args:
        a: one side.
        b: the other.
        epsilon: spacing of the coarser format at 1.
        tiny: its spacing at 0.

    Yields:
        The layer's name, the tensor's own name, and the judgement; None where many values differ.
    """
    first, second = _state(a), _state(b)
    for name in (name for name in first if name in second):
        x, y = first[name].double().cpu(), second[name].double().cpu()
        if x.shape != y.shape or not x.numel():
            continue
        layer, _, place = name.rpartition(".")
        spacing = torch.ldexp(torch.full_like(y, epsilon), torch.frexp(torch.maximum(x.abs(), y.abs()))[1] - 1)
        spacing = spacing.clamp(min=tiny or torch.finfo(torch.float64).tiny)
        ulps = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs() / spacing).nan_to_num(torch.inf)
        if int((ulps > BAND).sum()) > ARRANGED * int(((x != 0) | (y != 0)).sum()):
            yield layer, place, None
            continue
        at = int(ulps.argmax())
        scale = float(y[y.isfinite()].square().mean().sqrt()) if bool(y.isfinite().any()) else 0.0
        unit = float(spacing.flatten()[at]) / (scale or 1.0)
        largest = float(ulps.flatten()[at])
        yield layer, place, Judgement(largest * unit, BAND * unit, largest)


def _state(module: nn.Module) -> dict[str, Tensor]:
    named = (*module.named_parameters(), *module.named_buffers())
    return {stripped(name): numbers(each.detach()) for name, each in named if nested.inexact(each)}
