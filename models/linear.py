"""Models of one weight layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


class Linear(nn.Module):
    """`W x + b` over the flattened input; the loss decides its task."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.output = nn.Linear(inputs, outputs, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) -> (N, outputs)."""
        out: torch.Tensor = self.output(x.flatten(1))
        return out


def linear_regression(*, input_shape: Sequence[int] = (2,), outputs: int = 1, bias: bool = True) -> Linear:
    """Linear regression, to be fitted by squared loss; (N, outputs) values."""
    return Linear(math.prod(input_shape), outputs, bias=bias)


def softmax_regression(*, input_shape: Sequence[int] = (1, 28, 28), classes: int = 10, bias: bool = True) -> Linear:
    """Multinomial logistic regression; (N, classes) logits, to be fitted by cross-entropy."""
    return Linear(math.prod(input_shape), classes, bias=bias)


def perceptron(*, input_shape: Sequence[int] = (2,), classes: int = 2, bias: bool = True) -> Linear:
    """Perceptron: (N, 1) scores whose sign is the class, or (N, classes) scores, the largest wins, beyond two classes.

    The threshold itself has no gradient; the perceptron rule is gradient descent on max(0, -y score), y = +-1.
    """
    return Linear(math.prod(input_shape), 1 if classes == 2 else classes, bias=bias)
