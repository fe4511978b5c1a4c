"""Fully connected models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.models.slots import Activation, Norm, Residual, Slots


class Hidden(nn.Module):
    """One hidden layer, `act(join(x, norm(W x)))`; the first has no shortcut: its input has another width."""

    def __init__(self, slots: Slots, inputs: int, width: int, *, bias: bool, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width, bias=bias)
        self.norm = slots.norm(width)
        self.join = None if first else slots.join()
        self.activation = slots.activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs) -> (N, width)."""
        branch: torch.Tensor = self.norm(self.linear(x))
        if self.join is not None:
            branch = self.join(x, branch)
        out: torch.Tensor = self.activation(branch)
        return out


class PreActivation(nn.Module):
    """One hidden layer in pre-activation order, `join(x, W act(norm(x)))`; the first is a plain embedding `W x`."""

    def __init__(self, slots: Slots, inputs: int, width: int, *, bias: bool, first: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if first else slots.norm(inputs)
        self.activation = nn.Identity() if first else slots.activation()
        self.linear = nn.Linear(inputs, width, bias=bias)
        self.join = None if first else slots.join()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs) -> (N, width)."""
        branch: torch.Tensor = self.linear(self.activation(self.norm(x)))
        return branch if self.join is None else self.join(x, branch)


class MLP(nn.Module):
    """`depth` hidden layers of `width` units, then a linear output: depth + 1 weight layers."""

    def __init__(
        self, slots: Slots, inputs: int, classes: int, *, depth: int, width: int, order: str, bias: bool
    ) -> None:
        super().__init__()
        if order not in ("post", "pre"):
            raise ValueError(f"order is 'post' or 'pre', not {order!r}")
        block = Hidden if order == "post" else PreActivation
        widths = [inputs] + [width] * depth
        self.hidden = nn.Sequential(*(block(slots, widths[i], width, bias=bias, first=i == 0) for i in range(depth)))
        last = order == "pre" and depth > 0
        self.norm = slots.norm(width) if last else nn.Identity()
        self.activation = slots.activation() if last else nn.Identity()
        self.output = nn.Linear(widths[-1], classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N, classes)."""
        hidden = self.hidden(x.flatten(1))
        out: torch.Tensor = self.output(self.activation(self.norm(hidden)))
        return out


def mlp(
    *,
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    depth: int = 1,
    width: int = 256,
    activation: Activation = "relu",
    norm: Norm = "none",
    residual: Residual = False,
    order: str = "post",
    bias: bool = True,
) -> MLP:
    """Multilayer perceptron: `depth` hidden layers of `width` units; `order` places activation after or before W."""
    slots = Slots.over("features", activation=activation, norm=norm, residual=residual)
    return MLP(slots, math.prod(input_shape), classes, depth=depth, width=width, order=order, bias=bias)
