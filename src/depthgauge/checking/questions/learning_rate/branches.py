"""Branches: hundreds of steps from the same weights on batches as they come, at the present rate and at smaller ones.

A step's loss is taken before the step, of a batch that was not used yet or not for long: what a rate does beyond the
few batches of the ladder shows in it, and the noise that a large rate keeps up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthgauge.checking.questions.learning_rate import kinds
from depthgauge.checking.questions.learning_rate.ladder import walked
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.workload import Training

BATCHES = 103  # that the branches go round
TENTH, THIRD = 0.1, 1 / 3  # of the present rate, that it is held against
FIRST, MOST = 192, 480  # steps of each: more where the present rate is behind after the first
WARM = 4  # of the steps, one in as many has a rising rate where the user's schedule begins with a warm-up
BLOCKS = 8  # that the second half is cut into, for the standard error of a difference


@dataclass(frozen=True, eq=False)
class Branches:
    """Losses before each step, by factor on the user's rates, on the same batches.

    Attributes:
        losses: by factor; shorter where one is not finite.
        steps: of each.
        start: mean loss at the weights as they are.
    """

    losses: dict[float, tuple[float, ...]]
    steps: int
    start: float

    def late(self, factor: float) -> float:
        """Mean loss of the second half; infinite where it was not reached."""
        made = self.losses[factor]
        whole = len(made) == self.steps and math.isfinite(made[-1])
        return float(np.mean(made[self.steps // 2 :])) if whole else math.inf

    def cut(self, steps: int) -> Branches:
        """The first so many steps alone."""
        return Branches({factor: made[:steps] for factor, made in self.losses.items()}, steps, self.start)

    @property
    def best(self) -> float:
        """The factor other than 1 whose loss is lowest."""
        return min((factor for factor in self.losses if factor != 1), key=self.late)

    @property
    def fall(self) -> float:
        """That of the best factor."""
        return self.start - self.late(self.best)

    @property
    def share(self) -> float:
        """Share of the best factor's fall that the present rate reaches; negative where it raises the loss."""
        return (self.start - self.late(1.0)) / self.fall if self.fall > 0 else math.nan

    @property
    def clear(self) -> bool:
        """Tell whether the second halves of the present and the best factor differ beyond chance."""
        return self.differs(self.best)

    def differs(self, factor: float) -> bool:
        """Tell whether a factor's second half and the present one's differ beyond chance.

        Either by four standard errors, of block means, or in one way in each block: a loss that jumps, or that begins
        to fall within these steps, has blocks that lie far apart, all on one side.
        """
        if not (math.isfinite(self.late(1.0)) and math.isfinite(self.late(factor))):
            return True
        half = self.steps // 2
        apart = np.array(self.losses[1.0][half:]) - np.array(self.losses[factor][half:])
        means = np.array([block.mean() for block in np.array_split(apart, BLOCKS)])
        if bool((means > 0).all() or (means < 0).all()):  # by chance in one of 128, as four standard errors of eight
            return True
        return abs(float(means.mean())) > kinds.CLEAR * float(np.std(means, ddof=1)) / math.sqrt(BLOCKS)


def grow(
    training: Training, rates: Rates, batches: Sequence[Any], factors: Iterable[float], *, steps: int, start: float
) -> Branches:
    """Make the steps at each factor; the training is left as it was.

    Args:
        training: with an optimizer.
        rates: its rates.
        batches: that the steps go round.
        factors: on these rates, 1 among them.
        steps: of each branch.
        start: mean loss at the weights as they are.
    """
    found = {}
    for factor in factors:
        with training.untouched():
            warm = steps // WARM if warming(rates) else 0
            found[factor] = tuple(walked(training, rates.times(factor), batches, steps, warm=warm))
    return Branches(found, steps, start)


def warming(rates: Rates) -> bool:
    """Tell whether a schedule begins below its peak, so that the peak is not to be borne from the first step on."""
    return rates.scheduled and max(rates.present) < rates.largest


def compared(training: Training, rates: Rates, batches: Sequence[Any], most: int, start: float) -> Branches:
    """Hold the present rate against a tenth of it, and where it is behind against a third, too, over more steps.

    Args:
        training: with an optimizer; left as it was.
        rates: its rates.
        batches: that the steps go round.
        most: steps of all branches together that there is time for.
        start: mean loss at the weights as they are.
    """
    first = min(FIRST, most // 2)
    found = grow(training, rates, batches, (TENTH, 1.0), steps=first, start=start)
    further = min(MOST, (most - 2 * first) // 3)
    if found.share >= 1 or further <= first:
        return found
    return grow(training, rates, batches, (TENTH, THIRD, 1.0), steps=further, start=start)


def too_large(seen: Branches | None) -> bool:
    """Tell whether a smaller rate ends far lower."""
    if seen is None or seen.steps < kinds.FEW_STEPS or not math.isfinite(seen.late(seen.best)):
        return False
    lost = seen.late(1.0) - seen.late(seen.best) >= kinds.HARM * abs(seen.start)
    least = kinds.NOISY_SHARE if seen.steps >= kinds.MANY_STEPS else kinds.LATE_SHARE
    return lost and seen.fall > 0 and seen.share < least and seen.clear


def recovers(seen: Branches | None) -> bool:
    """Tell whether the present rate gets as far as smaller ones, whatever its first steps did."""
    return seen is not None and seen.steps >= kinds.FEWEST_STEPS and seen.share >= kinds.RECOVERED
