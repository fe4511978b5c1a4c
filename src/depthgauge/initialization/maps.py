"""The linear maps of a model: which weight holds how many, and their fans."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

Weighted = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


class Stacked(nn.Linear):
    """Several linear maps of one input, computed as one: the gates of an LSTM, the q, k and v of attention."""

    def __init__(self, inputs: int, outputs: int, maps: int, *, bias: bool = True) -> None:
        super().__init__(inputs, maps * outputs, bias=bias)
        self.maps = maps


def fans(weight: torch.Tensor) -> tuple[int, int]:
    """(fan-in, fan-out) of one map of shape (out, in, kernel...): the terms of a forward sum, and of a backward sum.

    For a convolution they hold at stride 1 and away from the border.
    """
    return weight[0].numel(), weight.shape[0] * weight[0, 0].numel()


def weighted(model: nn.Module) -> Iterator[Weighted]:
    """Linear and convolutional layers, those that share a weight once."""
    seen: set[torch.Tensor] = set()
    for module in model.modules():
        if isinstance(module, Weighted) and module.weight not in seen:
            seen.add(module.weight)
            yield module


def maps(module: Weighted) -> tuple[torch.Tensor, ...]:
    """The maps that a layer holds, each of shape (out, in, kernel...), as views of its weight."""
    count = module.maps if isinstance(module, Stacked) else getattr(module, "groups", 1)
    return module.weight.detach().chunk(count)
