"""Fully connected models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from depthgauge.models.slots import Activation, Norm, Residual, Slots

Order = Literal["post", "pre"]


class PostActivation(nn.Module):
    """One hidden layer, `act(join(x, norm(W x)))`; the first has no shortcut: its input has another width."""

    def __init__(self, slots: Slots, inputs: int, width: int, *, bias: bool, dropout: float, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width, bias=bias)
        self.norm = slots.norm(width)
        self.join = None if first else slots.join()
        self.branch_ends = ("linear",) if slots.residual and not first else ()
        self.activation = slots.activation()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs) -> (N, width)."""
        branch: torch.Tensor = self.norm(self.linear(x))
        if self.join is not None:
            branch = self.join(x, branch)
        out: torch.Tensor = self.dropout(self.activation(branch))
        return out


class PreActivation(nn.Module):
    """One hidden layer in pre-activation order, `join(x, W act(norm(x)))`; the first is a plain embedding `W x`."""

    def __init__(self, slots: Slots, inputs: int, width: int, *, bias: bool, dropout: float, first: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if first else slots.norm(inputs)
        self.activation = nn.Identity() if first else slots.activation()
        self.dropout = nn.Dropout(0.0 if first else dropout)
        self.linear = nn.Linear(inputs, width, bias=bias)
        self.join = None if first else slots.join()
        self.branch_ends = ("linear",) if slots.residual and not first else ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs) -> (N, width)."""
        branch: torch.Tensor = self.linear(self.dropout(self.activation(self.norm(x))))
        return branch if self.join is None else self.join(x, branch)


@dataclass(frozen=True, kw_only=True)
class MLPSettings:
    """Multilayer perceptron of `depth` hidden layers of `width` units; depth 0 is softmax regression.

    A hidden layer is `act(norm(W x))`, with `residual` `act(x + norm(W x))` from the second on. In pre-activation order
    it is `W act(norm(x))` or `x + W act(norm(x))`, after a first layer that only embeds. Dropout follows activations.
    """

    input_shape: Sequence[int] = (1, 28, 28)
    classes: int = 10
    activation: Activation = "relu"
    norm: Norm = "none"
    residual: Residual = False
    order: Order = "post"
    depth: int = 1
    width: int = 256
    bias: bool = True
    dropout: float = 0.0

    def build(self) -> MLP:
        """The model of these settings."""
        return MLP(self)


class MLP(nn.Module):
    """`depth` hidden layers of `width` units, then a linear output: depth + 1 weight layers."""

    def __init__(self, settings: MLPSettings) -> None:
        super().__init__()
        if settings.order not in ("post", "pre"):
            raise ValueError(f"order is 'post' or 'pre', not {settings.order!r}")
        slots = Slots.over("features", activation=settings.activation, norm=settings.norm, residual=settings.residual)
        block = PostActivation if settings.order == "post" else PreActivation
        widths = [math.prod(settings.input_shape)] + [settings.width] * settings.depth
        self.hidden = nn.Sequential(
            *(
                block(slots, widths[i], settings.width, bias=settings.bias, dropout=settings.dropout, first=i == 0)
                for i in range(settings.depth)
            )
        )
        pre = settings.order == "pre" and settings.depth > 0
        self.norm = slots.norm(settings.width) if pre else nn.Identity()
        self.activation = slots.activation() if pre else nn.Identity()
        self.output = nn.Linear(widths[-1], settings.classes, bias=settings.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N, classes)."""
        hidden = self.hidden(x.flatten(1))
        out: torch.Tensor = self.output(self.activation(self.norm(hidden)))
        return out
