"""A small dense network whose hidden units are multiplied by noise: its gradient on average, and to second order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthgauge import stats
from depthgauge.seeding import Purpose, generator

Curve = Callable[[Tensor], Tensor]
CURVED: dict[str, Curve] = {"tanh": torch.tanh, "relu": torch.relu}
DRAWN = 256  # masks at once


@dataclass(frozen=True)
class Network:
    """A network's weights (inputs, outputs), and the examples of its loss."""

    weights: list[Tensor]
    x: Tensor
    y: Tensor
    curve: Curve

    @staticmethod
    def draw(x: Tensor, y: Tensor, *, layers: Sequence[int], curve: Curve, seed: int) -> Network:
        """He's weights."""
        draws = generator(seed, Purpose.WEIGHTS)
        shapes = itertools.pairwise([x.shape[1], *layers, 10])
        weights = [torch.randn(i, o, generator=draws, dtype=x.dtype) * math.sqrt(2 / i) for i, o in shapes]
        return Network([each.requires_grad_() for each in weights], x, y, curve)

    def descend(self, steps: int, rate: float = 0.1) -> None:
        """Gradient descent in place, without dropout."""
        ones = [self.x.new_ones(1, width) for width in self.widths]
        for _ in range(steps):
            moves = torch.autograd.grad(self.loss(ones) / len(self.x), self.weights)
            with torch.no_grad():
                for matrix, move in zip(self.weights, moves, strict=True):
                    matrix.sub_(rate * move)

    @property
    def widths(self) -> list[int]:
        """Units of every hidden layer."""
        return [each.shape[0] for each in self.weights[1:]]

    def loss(self, noise: Sequence[Tensor], times: int = 1) -> Tensor:
        """Cross-entropy summed over so many times the examples, every hidden layer multiplied by its noise."""
        x = self.x.repeat(times, 1)
        for matrix, factor in zip(self.weights, noise, strict=False):
            x = self.curve(x @ matrix) * factor
        return torch.nn.functional.cross_entropy(x @ self.weights[-1], self.y.repeat(times), reduction="sum")

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients, flat, of the loss and of its second derivatives by the factors, summed over units and examples."""
        noise = [self.x.new_ones(len(self.x), width, requires_grad=True) for width in self.widths]
        loss = self.loss(noise)
        plain = torch.autograd.grad(loss, self.weights, create_graph=True)
        curvature = torch.zeros((), dtype=self.x.dtype)
        for factor, slope in zip(noise, torch.autograd.grad(loss, noise, create_graph=True), strict=True):
            for unit in range(factor.shape[1]):  # no example's loss depends on another's factors
                second = torch.autograd.grad(slope[:, unit].sum(), factor, create_graph=True)[0]
                curvature = curvature + second[:, unit].sum()
        return _flat(plain), _flat(torch.autograd.grad(curvature, self.weights))

    def noisy(self, p: float, masks: int, draws: torch.Generator) -> Tensor:
        """Mean gradient, flat, over masks of dropout that are drawn for every example.

        The part that is linear in a mask is 0 on average, and what it is of the masks drawn is taken away.
        """
        total = torch.zeros(sum(each.numel() for each in self.weights), dtype=self.x.dtype)
        sums = [self.x.new_zeros(len(self.x), width) for width in self.widths]
        for times in [min(DRAWN, masks - done) for done in range(0, masks, DRAWN)]:
            shapes = [(times * len(self.x), width) for width in self.widths]
            kept = [(torch.rand(shape, generator=draws) >= p).to(self.x) / (1 - p) for shape in shapes]
            total += _flat(torch.autograd.grad(self.loss(kept, times), self.weights))
            for each, factors in zip(sums, kept, strict=True):
                each.add_(factors.reshape(times, *each.shape).sum(0))
        noise = [torch.ones_like(each, requires_grad=True) for each in sums]
        slopes = torch.autograd.grad(self.loss(noise), noise, create_graph=True)
        terms = [((each / masks - 1) * slope).sum() for each, slope in zip(sums, slopes, strict=True)]
        linear = torch.stack(terms).sum()
        return total / masks - _flat(torch.autograd.grad(linear, self.weights))


def _flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.detach().flatten() for each in gradients])


def missed(left: NDArray[np.float64], length: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jackknife pseudo-values of the squared error over the squared length added, each summed over the networks.

    The lengths are in units of each network's own prediction; so a network to which dropout adds next to nothing, of
    which any error is a large multiple, does not carry the mean.

    Args:
        left: (n,) squared error over squared length, by network.
        length: (n,) squared length added over the predicted one.
    """
    return stats.pseudo_values(lambda errors, lengths: float(errors.sum() / lengths.sum()), left * length, length)
