"""Suggestions of the learning-rate finders in use, from one sweep's losses, by the rules of their sources."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DECAY = 0.98  # of the running mean of losses that these finders look at
STOPPED = 4.0  # times its least value so far, and the sweep is over
STEPS = 100


@dataclass(frozen=True)
class Finder:
    """A finder with its own defaults.

    Attributes:
        low: first rate of its sweep of `STEPS` steps.
        high: last rate.
        suggest: (rates, losses before the step at each) -> a rate, NaN where it gives none.
    """

    low: float
    high: float
    suggest: Callable[[Floats, Floats], float]

    @property
    def rates(self) -> Floats:
        """The rates of its sweep."""
        return np.geomspace(self.low, self.high, STEPS)


def running(rates: Floats, losses: Floats, first: int, last: int) -> tuple[Floats, Floats]:
    """Rates and running mean of the losses, until the sweep is stopped; without the first and last so many."""
    weights = 1 - DECAY ** np.arange(1, len(losses) + 1)
    mean, means = 0.0, np.empty(len(losses))
    for step, loss in enumerate(losses):
        mean = DECAY * mean + (1 - DECAY) * loss
        means[step] = mean / weights[step]
    over = ~(means <= STOPPED * np.minimum.accumulate(np.where(np.isfinite(means), means, np.inf)))
    over[:2] = False
    end = int(over.argmax()) + 1 if over.any() else len(means)
    kept = slice(first, max(first, end - last))
    finite = np.isfinite(means[kept])
    return rates[kept][finite], means[kept][finite]


def steepest_by_step(rates: Floats, losses: Floats) -> float:
    """Lightning before 2.5.3: the steepest descent from step to step."""
    tried, means = running(rates, losses, 10, 1)
    return float(tried[np.gradient(means).argmin()]) if len(means) > 1 else math.nan


def steepest_by_rate(rates: Floats, losses: Floats) -> float:
    """Lightning from 2.5.3 on: the steepest descent over the rate itself, which steps evenly on a logarithm."""
    tried, means = running(rates, losses, 10, 1)
    return float(tried[np.gradient(means, tried).argmin()]) if len(means) > 1 else math.nan


def valley(rates: Floats, losses: Floats) -> float:
    """Fastai's default: halfway through the longest falling subsequence, by the index of its first third."""
    tried, means = running(rates, losses, 10, 5)
    if len(means) < 2:
        return math.nan
    length = np.ones(len(means), dtype=int)
    start = end = 0
    for i in range(1, len(means)):
        longer = length[:i][means[i] < means[:i]]
        length[i] = 1 + (longer.max() if len(longer) else 0)
        if length[i] > length[end]:
            start, end = i - int(length[i]), i
    third = (end - start) / 3
    return float(tried[start + int(third) + int(third / 2)])


def tenth(rates: Floats, losses: Floats) -> float:
    """Fastai's `minimum`: a tenth of the rate at which the mean is lowest."""
    tried, means = running(rates, losses, 10, 5)
    return float(tried[means.argmin()]) / 10 if len(means) else math.nan


FINDERS = {
    "steepest_by_step": Finder(1e-8, 1.0, steepest_by_step),
    "steepest_by_rate": Finder(1e-8, 1.0, steepest_by_rate),
    "valley": Finder(1e-7, 10.0, valley),
    "tenth_of_lowest": Finder(1e-7, 10.0, tenth),
}
