"""Rungs: the user's own optimizer at several times its rates, each from the same weights on the same batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthgauge.checking.questions.learning_rate import kinds
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.steps import losses, set_rates, step
from depthgauge.workload import Training

BATCHES = 8  # that the steps go round, and whose loss is held against itself: a rate then shows in a few steps
STEPS = 24  # of a rung: three rounds of these batches
FEWEST = 6  # steps of a rung below which it tells nothing: a few of Adam's first steps are no larger than its rate
NEAR = 0.5  # of the best fall: a rate that reaches less is worth two more rungs, so that the best is known better
FAR = 1000.0  # times the present rate: where the search ends upwards
NEAR_ZERO = 1e-6  # of the present rate: where it ends downwards


@dataclass(frozen=True, eq=False)
class Rung:
    """The outcome of so many steps at one rate.

    Attributes:
        factor: times the user's rates.
        losses: before each step, on that step's batch.
        fall: mean over the batches of the loss before minus that after; -infinity where it is not finite any more.
        seconds: of a step.
    """

    factor: float
    losses: tuple[float, ...]
    fall: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Ladder:
    """All rungs.

    Attributes:
        rungs: the smallest factor first.
        steps: of each.
        before: losses of the batches at the weights as they are.
        batches: how many.
    """

    rungs: tuple[Rung, ...]
    steps: int
    before: tuple[float, ...]

    @property
    def start(self) -> float:
        """Mean loss at the weights as they are."""
        return float(np.mean(self.before))

    @property
    def here(self) -> Rung:
        """The rung at the user's own rates."""
        return next(rung for rung in self.rungs if rung.factor == 1)

    @property
    def best(self) -> Rung:
        """The rung whose loss falls most."""
        return max(self.rungs, key=lambda rung: rung.fall)

    def after(self, rung: Rung) -> str:
        """The loss after a rung, with as many digits as tell it from that before."""
        if not math.isfinite(rung.fall):
            return "a value that is not finite"
        return f"{self.start - rung.fall:.{digits(self.start, rung.fall)}g}"

    @property
    def whole(self) -> bool:
        """Tell whether there was time for rates down to nearly none and far up."""
        return self.rungs[0].factor <= 10 * NEAR_ZERO and self.rungs[-1].factor >= FAR / 10

    @property
    def share(self) -> float:
        """Share of the best fall that the user's own rates reach; negative where they raise the loss."""
        return self.here.fall / self.best.fall if self.best.fall > 0 else math.nan

    def to_frame(self, rate: float) -> pd.DataFrame:
        """One row a rung."""
        return pd.DataFrame(
            {
                "factor": [rung.factor for rung in self.rungs],
                "rate": [rate * rung.factor for rung in self.rungs],
                "loss": [self.start - rung.fall for rung in self.rungs],
                "start": self.start,
                "steps": self.steps,
            }
        )


def climb(
    training: Training, rates: Rates, batches: Sequence[Any], steps: int, fits: Callable[[float], bool]
) -> Ladder:
    """Try the user's rates, ten times as much and a tenth, and on from there as long as the loss falls more.

    Args:
        training: with an optimizer; left as it was.
        rates: its rates.
        batches: that the steps go round.
        steps: of each rung.
        fits: whether there is time for another, whose steps take so many seconds each.
    """
    with training.untouched():
        before = losses(training, batches)
    rungs: dict[float, Rung] = {}

    def tried(factor: float) -> Rung:
        if factor not in rungs:
            rungs[factor] = rung(training, rates.times(factor), batches, steps, before, factor=factor)
        return rungs[factor]

    def going() -> bool:
        return fits(max(each.seconds for each in rungs.values()))

    def on(factor: float) -> bool:
        """Tell whether it is worth going on: a rate is better than all before, or none has done anything."""
        known = max(rung.fall for rung in rungs.values())
        return going() and (tried(factor).fall > known or not max(known, rungs[factor].fall) > least(before))

    raised = tried(1.0).fall < -least(before)
    for way in (0.1, 10.0) if raised else (10.0, 0.1):
        factor = way
        while factor * 1.001 >= NEAR_ZERO and factor <= FAR * 1.001 and on(factor):
            factor *= way
    best = max(rungs.values(), key=lambda rung: rung.fall)
    for way in (math.sqrt(10), 1 / math.sqrt(10)):
        if rungs[1.0].fall < NEAR * best.fall and going():
            tried(best.factor * way)
    return Ladder(tuple(rungs[factor] for factor in sorted(rungs)), steps, before)


def digits(value: float, change: float) -> int:
    """Digits of a value that show a change of it: 3 as a rule, 7 at most."""
    small = math.log10(abs(value) / abs(change)) if value and change and math.isfinite(change) else 0.0
    return min(7, max(3, 2 + math.ceil(small)))


def least(before: Sequence[float]) -> float:
    """A fall below it is none; a loss may have a large constant part, and then its spread over batches counts."""
    ends = (kinds.NOTHING * abs(float(np.mean(before))), kinds.BATCH_SPREAD * float(np.std(before)))
    return min((each for each in ends if each > 0), default=0.0)


def rung(
    training: Training, rates: Sequence[float], batches: Sequence[Any], steps: int, before: Sequence[float], *,
    factor: float = 1.0,
) -> Rung:  # fmt: skip
    """Make steps at these rates; the training is left as it was.

    Args:
        training: with an optimizer.
        rates: of each parameter group.
        batches: that the steps go round.
        steps: most; fewer where the loss is not finite any more.
        before: losses of the batches before.
        factor: times the user's rates, that these are.
    """
    with training.untouched():
        start = time.perf_counter()
        made = walked(training, rates, batches, steps)
        seconds = (time.perf_counter() - start) / len(made)
        after = losses(training, batches) if math.isfinite(made[-1]) else [math.nan]
    fall = float(np.mean(before) - np.mean(after))
    return Rung(factor, tuple(made), fall if math.isfinite(fall) else -math.inf, seconds)


def walked(
    training: Training, rates: Sequence[float], batches: Sequence[Any], steps: int, *, warm: int = 0
) -> list[float]:
    """Make up to so many steps round the batches; the losses before them, up to one that is not finite.

    Args:
        training: changed: to be called within `untouched()`.
        rates: of each parameter group.
        batches: that the steps go round.
        steps: most.
        warm: steps over which the rates rise linearly from 0.
    """
    assert training.optimizer is not None
    made: list[float] = []
    for place in range(steps):
        risen = min(1.0, (place + 1) / max(warm, 1))
        set_rates(training.optimizer, [risen * rate for rate in rates])
        made.append(step(training, batches[place % len(batches)]))
        if not math.isfinite(made[-1]):
            break
    return made
