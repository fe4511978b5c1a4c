"""Ways to bound a gradient, over stacked replicas, and SGD with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from depthgauge.data import Examples
from depthgauge.replicas import Stack
from depthgauge.replicas.engine import chained
from depthgauge.replicas.objective import Objective
from depthgauge.replicas.order import orders

FLOOR = 1e-3  # least norm of a unit's weights in adaptive clipping (Brock et al. 2021)
CHANGED = 0.99  # a step is clipped where the gradient keeps less than this share of its norm
Bound = Callable[[Sequence[Tensor], Sequence[Tensor], float], list[Tensor]]


def norms(gradients: Sequence[Tensor]) -> Tensor:
    """Global norms (R,) of stacked gradients (R, *shape)."""
    return torch.stack([each.flatten(1).square().sum(1) for each in gradients]).sum(0).sqrt()


def _along(factor: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    return [each * factor.view(-1, *[1] * (each.dim() - 1)) for each in gradients]


def _none(gradients: Sequence[Tensor], _weights: Sequence[Tensor], _level: float) -> list[Tensor]:
    return list(gradients)


def _norm(gradients: Sequence[Tensor], _weights: Sequence[Tensor], level: float) -> list[Tensor]:
    return _along((level / norms(gradients)).clamp(max=1.0), gradients)


def _normalized(gradients: Sequence[Tensor], _weights: Sequence[Tensor], _level: float) -> list[Tensor]:
    return _along(1 / norms(gradients), gradients)


def _value(gradients: Sequence[Tensor], _weights: Sequence[Tensor], level: float) -> list[Tensor]:
    return [each.clamp(-level, level) for each in gradients]


def _adaptive(gradients: Sequence[Tensor], weights: Sequence[Tensor], level: float) -> list[Tensor]:
    bounded = []
    for gradient, weight in zip(gradients, weights, strict=True):  # a unit is a row of weights; all biases are one
        size = weight.norm(dim=-1, keepdim=True).clamp(min=FLOOR)
        bounded.append(gradient * (level * size / gradient.norm(dim=-1, keepdim=True)).clamp(max=1.0))
    return bounded


BOUNDS: Mapping[str, Bound] = {
    "none": _none, "norm": _norm, "value": _value, "adaptive": _adaptive, "normalized": _normalized,
}  # fmt: skip


@dataclass(frozen=True)
class Clipping:
    """A way to bound a gradient, and the level of its bound."""

    way: str
    level: float = 0.0

    @property
    def label(self) -> str:
        """The way and its level in words."""
        return f"{self.way} {self.level:g}" if self.level else self.way

    def __call__(self, gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Bounded gradients (R, *shape), each as long as it was or shorter, unless they are normalized."""
        return BOUNDS[self.way](gradients, weights, self.level)


def train(
    stack: Stack, examples: Examples, rates: Tensor, clipping: Clipping, *, batch: int, steps: int
) -> tuple[Stack, Tensor, Tensor]:
    """Train replicas of a chain by SGD on cross-entropy, every gradient bounded.

    Args:
        stack: the replicas; they stay as they are.
        examples: all that they are trained on.
        rates: (R,) learning rates.
        clipping: how gradients are bounded.
        batch: examples a step.
        steps: number of steps.

    Returns:
        The trained replicas; share of their steps that were clipped, (R,); mean share of its norm that a gradient
        kept, (R,). Both count finite gradients alone.

    Raises:
        ValueError: the model is no chain.
    """
    order = orders(stack.seeds, len(examples), batch, steps).to(examples.x.device)
    chain = chained(stack.template, examples.x[:1])
    if chain is None:
        raise ValueError("only a chain of linear layers and activations is trained here")
    stack = stack.clone()
    weights = list(stack.parameters.values())
    objective = Objective("cross_entropy")
    counts = torch.zeros(3, len(stack), device=rates.device)  # clipped, kept, finite
    for indices in order:
        done = chain.forward(weights, examples.x[indices], keep=True)
        _, cotangent = objective.stacked(done.outputs, examples.y[indices])
        found = chain.gradients(weights, done, cotangent)
        gradients = [found[place] for place in range(len(weights))]
        before = norms(gradients)
        gradients = clipping(gradients, weights)
        kept = norms(gradients) / before
        fine = kept.isfinite()
        counts += torch.stack([(kept < CHANGED) & fine, torch.where(fine, kept, 0.0), fine])
        for weight, moved in zip(weights, _along(rates, gradients), strict=True):
            weight.sub_(moved)
    return stack, counts[0] / counts[2], counts[1] / counts[2]
