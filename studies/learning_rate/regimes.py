"""Optimizers on a quadratic: what theory says of each rate, and what torch's own optimizers do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MONOTONE, OSCILLATING, DIVERGENT = "monotone", "oscillating", "divergent"
START, LARGEST, SMALLEST = 1e-120, 1e-3, 1e-250  # a weight begins so; beyond the others its trajectory is over
FROZEN = 1e18  # steps that Adam believes to have made: its bias corrections are 1
PRECONDITIONER = 4.0  # root of Adam's second moment


@dataclass(frozen=True)
class Law:
    """An optimizer on 1/2 h w^2: w(t + 2) = trace w(t + 1) - determinant w(t).

    Attributes:
        trace: sum of the roots z of the characteristic polynomial z^2 - trace z + determinant.
        determinant: their product; 0 for an optimizer without memory.
    """

    trace: float
    determinant: float

    @property
    def roots(self) -> NDArray[np.complex128]:
        """The roots, the larger first."""
        centre, gap = self.trace / 2, complex(self.trace**2 / 4 - self.determinant) ** 0.5
        return np.array(sorted((centre - gap, centre + gap), key=abs, reverse=True))

    @property
    def rate(self) -> float:
        """Ln of the factor of |w| a step, in the end."""
        return math.log(abs(self.roots[0]))

    @property
    def regime(self) -> str:
        """Monotone where the roots are real and not negative, divergent where one lies outside the unit circle."""
        if abs(self.roots[0]) > 1:
            return DIVERGENT
        plain = self.trace**2 >= 4 * self.determinant and self.trace >= 0 and self.determinant >= 0
        return MONOTONE if plain else OSCILLATING


def law(optimizer: str, momentum: float, product: float) -> Law:
    """The law of an optimizer at a product of learning rate and curvature (for Adam: preconditioned curvature)."""
    if optimizer == "gradient descent":
        return Law(1 - product, 0.0)
    if optimizer == "heavy ball":
        return Law(1 + momentum - product, momentum)
    if optimizer == "Nesterov":
        return Law((1 + momentum) * (1 - product), momentum * (1 - product))
    return Law(1 + momentum - (1 - momentum) * product, momentum)  # Adam, its second moment frozen


def limit(optimizer: str, momentum: float) -> float:
    """The product beyond which the optimizer diverges: where -1 is a root."""
    return {
        "gradient descent": 2.0,
        "heavy ball": 2 * (1 + momentum),
        "Nesterov": (2 + 2 * momentum) / (1 + 2 * momentum),
        "frozen Adam": 2 * (1 + momentum) / (1 - momentum),
    }[optimizer]


def trajectories(optimizer: str, momentum: float, products: Floats, steps: int) -> Floats:
    """Weights (steps + 1, n) of torch's optimizer in float64, from `START` on, one quadratic a product.

    A quadratic has no scale of its own; a weight this small adds nothing to Adam's second moment however it grows. The
    curvatures differ and the learning rate is 1, so that one run tries all: every optimizer here acts on each weight
    by itself.
    """
    weights = torch.full((len(products),), START, dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor(products)
    made: torch.optim.Optimizer
    if optimizer == "frozen Adam":
        largest = math.nextafter(1.0, 0.0)  # the second moment keeps all but 1e-16 of itself a step
        made = torch.optim.Adam([weights], lr=1.0, betas=(momentum, largest), eps=0.0)
        made.state[weights] = {
            "step": torch.tensor(FROZEN), "exp_avg": torch.zeros_like(weights),
            "exp_avg_sq": torch.full_like(weights, PRECONDITIONER**2),
        }  # fmt: skip
        curvature = curvature * PRECONDITIONER
    else:
        made = torch.optim.SGD([weights], lr=1.0, momentum=momentum, nesterov=optimizer == "Nesterov")
    path = [weights.detach().numpy().copy()]
    for _ in range(steps):
        weights.grad = curvature * weights.detach()
        made.step()
        path.append(weights.detach().numpy().copy())
    return np.stack(path)


def usable(path: Floats) -> Floats:
    """The part of a trajectory whose numbers float64 holds at full precision."""
    size = np.abs(path)
    over = ~((size < LARGEST) & (size > SMALLEST))
    return path[: int(over.argmax())] if over.any() else path


def measured(path: Floats) -> tuple[str, float]:
    """Regime of a trajectory, and ln of its factor a step: the slope of ln |w| over its last three quarters."""
    path = usable(path)
    size = np.log(np.abs(path))
    late = np.arange(len(path) // 4, len(path))
    slope = float(np.polyfit(late, size[late], 1)[0]) if len(late) > 2 else math.nan
    if size[late].max() > size[0] and slope > 0:
        return DIVERGENT, slope
    return (OSCILLATING if (np.diff(np.sign(path)) != 0).any() else MONOTONE), slope
