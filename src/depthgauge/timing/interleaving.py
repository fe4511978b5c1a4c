"""Variants timed in turns, A A' B | B A' A, until the answer is sharp enough or the time is spent.

The first variant, the baseline, runs twice in every block, as A and as A': their ratio is what the machine shows where
there is no difference. One *sitting* sets every variant up afresh (memory anew, and processes where variants live in
processes of their own) and times some blocks. A sitting counts as one observation, however many blocks it had: where
code and data happen to lie in memory can make equal code differ by percents, and stays so until it is set up again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from depthgauge import stats

Slot = Callable[[], float]
"""Times one variant briefly and returns the seconds of one call."""

Sitting = Callable[[int], AbstractContextManager[Sequence[Slot]]]
"""Sets up afresh for the sitting of that number: slots of the baseline, of the baseline again, of each candidate."""

FEWEST = 8
"""Sittings that a 99 % interval of a median takes at least: 2 / 2^8 < 0.01."""

LOOKS = 4
"""The precision is looked at after every so many sittings."""

MOST_BLOCKS = 16


@dataclass(frozen=True)
class Interleaved:
    """The timings of interleaved pieces of code.

    Attributes:
        seconds: of one call, shape (sittings, blocks, 2, variants + 1); the last axis is baseline, baseline again,
            candidates; the one before it the two halves of a block.
        judgements: one for each candidate.
        elapsed: seconds that it all took.
        spent: whether it ended because the budget was spent, not because the answer was sharp enough.
    """

    seconds: NDArray[np.float64]
    judgements: tuple[stats.Judgement, ...]
    elapsed: float
    spent: bool

    @property
    def sittings(self) -> int:
        """The number of sittings."""
        return int(self.seconds.shape[0])

    @property
    def medians(self) -> tuple[float, ...]:
        """Seconds of one call: of the baseline, then of each candidate."""
        if not self.sittings:
            return ()
        middle = np.median(self.seconds, axis=(0, 1, 2))
        return (float(middle[0]), *(float(value) for value in middle[2:]))

    @property
    def resolvable(self) -> float:
        """The smallest factor that this run tells for every candidate."""
        return max((judgement.resolvable for judgement in self.judgements), default=math.inf)


def interleave(
    sitting: Sitting,
    *,
    budget: float = 30.0,
    most: int = 60,
    margin: float = 1.05,
    confidence: float = 0.99,
    now: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, float], None] | None = None,
    expecting: Callable[[float], None] | None = None,
) -> Interleaved:
    """Times variants in turns and judges each candidate.

    A first sitting warms up and is not counted; it also says how many blocks a sitting has: as many as take about the
    time of setting up. After every fourth sitting from the eighth on it ends if both intervals are narrow against the
    margin. That looks at their widths alone, never at which side they lie on, so that no answer is waited for.

    Args:
        sitting: sets the variants up.
        budget: seconds; no sitting is begun that would probably end later.
        most: sittings at most.
        margin: the largest factor that may be called the same.
        confidence: of the intervals, shared out among the candidates (Bonferroni).
        now: seconds, from any origin.
        progress: told after each sitting: how many, and seconds elapsed.
        expecting: told once, after the sitting that warms up: the seconds that each of the others will probably take.
    """
    start = now()
    with sitting(0) as slots:
        prepared = now()
        _block(slots, 0)
        end = now()
    candidates = len(slots) - 2
    level = 1 - (1 - confidence) / candidates
    setting_up, block = prepared - start, end - prepared
    blocks = int(min(MOST_BLOCKS, max(1, round(setting_up / max(block, 1e-9)))))
    expected = setting_up + blocks * block
    if expecting:
        expecting(expected)
    seconds = np.empty((0, blocks, 2, candidates + 2))
    sharp = False
    while len(seconds) < most and not sharp and now() - start + expected <= budget:
        begun, number = now(), len(seconds) + 1
        with sitting(number) as slots:
            durations = [_block(slots, number * blocks + each) for each in range(blocks)]
        expected = max(expected / 2, now() - begun)
        seconds = np.concatenate([seconds, np.array([durations])])
        if number >= FEWEST and number % LOOKS == 0:
            sharp = all(_sharp(judgement, margin) for judgement in _judge(seconds, margin, level))
        if progress:
            progress(number, now() - start)
    judgements = _judge(seconds, margin, level) if len(seconds) else ()
    return Interleaved(seconds, judgements, now() - start, spent=not sharp)


def _block(slots: Sequence[Slot], number: int) -> list[list[float]]:
    """There and back, which cancels a steady drift; each block begins one variant further on."""
    first = [(number + place) % len(slots) for place in range(len(slots))]
    there, back = [0.0] * len(slots), [0.0] * len(slots)
    for which in first:
        there[which] = slots[which]()
    for which in reversed(first):
        back[which] = slots[which]()
    return [there, back]


def _judge(seconds: NDArray[np.float64], margin: float, confidence: float) -> tuple[stats.Judgement, ...]:
    """One figure a sitting and variant: the median of its blocks' log-ratios to the baseline."""
    logs = np.log(seconds).mean(axis=2)
    factors = np.exp(np.median(logs[:, :, 1:] - logs[:, :, :1], axis=1))
    again = factors[:, 0]
    return tuple(stats.judge(candidate, again, margin=margin, confidence=confidence) for candidate in factors[:, 1:].T)


def _sharp(judgement: stats.Judgement, margin: float) -> bool:
    """Tell whether the widths of the interval and of the resolution leave room within the margin for their places."""
    ratio, itself = judgement.ratio.effect, judgement.itself
    if not (ratio.has_interval and itself.has_interval and ratio.low > 0 and itself.low > 0):
        return False
    return ratio.high / ratio.low * math.sqrt(itself.high / itself.low) <= math.sqrt(margin)
