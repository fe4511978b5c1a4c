"""SGD simulated on quadratics: many runs of every seed at once, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Draws = Sequence[np.random.Generator]
"""A generator a seed: what a seed draws does not depend on its neighbours."""
Gradient = Callable[[Array, Draws], Array]
"""Weights (seeds, runs, d) and what to draw from, to the gradients of one batch each."""

DIVERGED = 10.0  # largest loss of the last quarter of the steps over that of the second, at least


def normals(draws: Draws, *shape: int) -> Array:
    """Standard normal numbers, shape (seeds, ...)."""
    return np.stack([draw.standard_normal(shape) for draw in draws])


def additive(h: Array, noise: float, batch: int, *, shared: bool = False) -> Gradient:
    """Gradient of the noisy quadratic: h theta, and noise of variance noise h / batch, `shared` by all runs or not."""
    spread = np.sqrt(noise * h / batch)
    return lambda theta, draws: h * theta + spread * normals(draws, 1 if shared else theta.shape[1], len(h))


def regression(h: Array, noise: float, batch: int) -> Gradient:
    """Gradient of linear regression on fresh Gaussian examples, whose labels have noise of this variance."""

    def gradient(theta: Array, draws: Draws) -> Array:
        x = normals(draws, theta.shape[1], batch, len(h)) * np.sqrt(h)
        error = np.einsum("srbd,srd->srb", x, theta)
        if noise:
            error = error + np.sqrt(noise) * normals(draws, *error.shape[1:])
        return np.asarray(np.einsum("srb,srbd->srd", error, x) / batch)

    return gradient


def descend(
    gradient: Gradient,
    theta: Array,
    draws: Draws,
    rate: float | Array,
    *,
    momentum: float = 0.0,
    averaging: float = 0.0,
) -> Iterator[Array]:
    """Weights before each step, without end; of a training with averaging their exponential average."""
    velocity, average = np.zeros_like(theta), theta
    while True:
        yield average
        velocity = momentum * velocity + gradient(theta, draws)
        theta = theta - rate * velocity
        average = averaging * average + (1 - averaging) * theta


def loss(h: Array, theta: Array) -> Array:
    """Loss over the least, sum_i h_i theta_i^2 / 2."""
    return np.asarray((h * theta**2).sum(-1) / 2)


def largest_stable(
    h: Array, gradient: Gradient, draws: Draws, rates: Array, *, momentum: float, steps: int
) -> Array:  # fmt: skip
    """Middle between the largest rate that stays bounded and the next, a seed; all rates see the same noise."""
    theta, largest = np.ones((len(draws), len(rates), len(h))), np.zeros((4, len(draws), len(rates)))
    with np.errstate(over="ignore", invalid="ignore"):
        found = descend(gradient, theta, draws, rates[:, None], momentum=momentum)
        for step, weights in enumerate(islice(found, steps)):
            quarter = 4 * step // steps
            largest[quarter] = np.fmax(largest[quarter], loss(h, weights))
    bounded = largest[3] < DIVERGED * largest[1]
    first = np.where(bounded.all(1), len(rates) - 1, np.argmin(bounded, 1))  # that diverges
    return np.asarray((rates[first] + rates[np.maximum(first - 1, 0)]) / 2)


def growth(
    h: Array, gradient: Gradient, draws: Draws, rate: float, *, momentum: float, walkers: int, steps: int,
    typical: bool = False,
) -> Array:  # fmt: skip
    """Mean growth a step of ln E|theta|^2, a seed, or with `typical` of E ln |theta|^2, for a gradient linear in theta.

    The mean square of a diverging SGD is that of rare runs, which plain averages miss: runs are drawn again after each
    step in proportion to the size they reached, and begin the next at size 1. Typical runs are not drawn again.
    """
    theta = np.ones((len(draws), walkers, len(h)))
    velocity, logs = np.zeros_like(theta), []
    for _ in range(steps):
        velocity = momentum * velocity + gradient(theta, draws)
        theta = theta - rate * velocity
        size = (h * (theta**2 + (rate * velocity) ** 2)).sum(-1)
        logs.append(np.log(size).mean(1) if typical else np.log(size.mean(1)))
        if not typical:
            chosen = np.stack([_survivors(one, draw) for one, draw in zip(size, draws, strict=True)])
            size = np.take_along_axis(size, chosen, 1)
            theta, velocity = (np.take_along_axis(each, chosen[..., None], 1) for each in (theta, velocity))
        theta, velocity = (each / np.sqrt(size)[..., None] for each in (theta, velocity))
    return np.asarray(np.mean(logs[steps // 4 :], axis=0))


def _survivors(size: Array, draw: np.random.Generator) -> Any:
    """Places of the runs that go on, each as often as its share of the size, evenly spread."""
    share = np.cumsum(size) / size.sum()
    return np.searchsorted(share, (np.arange(len(size)) + draw.random()) / len(size)).clip(max=len(size) - 1)
