"""The noisy quadratic at its best: the rate and decay of every optimizer that reach a target in the fewest steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from depthgauge import theory

Array = np.ndarray[Any, np.dtype[np.float64]]

DECAYS = {
    "SGD": (("momentum", 0.0),),
    "momentum": tuple(("momentum", decay) for decay in (0.5, 0.8, 0.9, 0.95)),
    "averaging": tuple(("averaging", decay) for decay in (0.5, 0.8, 0.9, 0.97, 0.99, 0.997)),
}
FINEST = 0.25  # octaves between learning rates
OCTAVES = 7  # below the largest stable rate


@dataclass(frozen=True)
class Quadratic:
    """A quadratic of curvatures 1 / i^2, and a target.

    Attributes:
        dimensions: number of curvatures.
        noise: variance of one example's gradient over the curvature.
        target: of the expected loss, over the loss at the start.
    """

    dimensions: int
    noise: float
    target: float

    @property
    def curvature(self) -> Array:
        """Eigenvalues of the Hessian."""
        return np.asarray(1.0 / np.arange(1, self.dimensions + 1) ** 2)

    @property
    def goal(self) -> float:
        """Loss that a training has to reach; it starts at weights of 1."""
        return float(self.target * self.curvature.sum() / 2)

    def loss(self, rate: float, batch: float, steps: Any, **decay: Any) -> Array:
        """Expected loss at these steps."""
        h = self.curvature
        return np.asarray(theory.noisy_quadratic(h, rate, batch, steps, noise=self.noise * h, **decay))


@dataclass(frozen=True)
class Tuned:
    """The fewest steps, with the rate and the decay that take them."""

    steps: int
    rate: float
    decay: tuple[str, float]


@cache
def tuned(quadratic: Quadratic, optimizer: str, batch: float, most: int) -> Tuned | None:
    """The fewest steps to the goal by exact theory, over a grid of rates and decays; None where none gets there."""
    best: Tuned | None = None
    for decay in DECAYS[optimizer]:
        for rate in rates(quadratic, decay):
            bound = most if best is None else best.steps - 1
            steps = arrival(quadratic, rate, batch, bound, decay)
            best = best if steps is None else Tuned(steps, rate, decay)
    return best


def rates(quadratic: Quadratic, decay: tuple[str, float]) -> Iterator[float]:
    """Rates below the largest stable one, the largest first."""
    momentum = decay[1] if decay[0] == "momentum" else 0.0
    largest = theory.stable_learning_rate(quadratic.curvature, momentum=momentum)
    for place in range(1, int(OCTAVES / FINEST)):
        yield largest * 2.0 ** (-FINEST * place)


def arrival(quadratic: Quadratic, rate: float, batch: float, most: int, decay: tuple[str, float]) -> int | None:
    """First step of at most `most` whose expected loss is at the goal or below, None where there is none."""
    chosen = dict([decay])
    places = np.unique(np.round(2.0 ** np.arange(0, np.log2(max(most, 1)) + 0.25, 0.25)).astype(int)).clip(0, most)
    below = np.flatnonzero(quadratic.loss(rate, batch, places, **chosen) <= quadratic.goal)
    if not len(below):
        return None
    last = int(places[below[0]])
    before = int(places[below[0] - 1]) if below[0] else 0
    between = np.arange(before, last + 1)
    return int(between[np.argmax(quadratic.loss(rate, batch, between, **chosen) <= quadratic.goal)])
