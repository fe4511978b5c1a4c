"""Statistics of durations: interleaved measurements, and the resolution of clock and machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats.comparison import Comparison, paired
from depthgauge.stats.estimate import Estimate
from depthgauge.stats.location import Floats


def time_ratio(
    a: ArrayLike,
    b: ArrayLike,
    *,
    resolution: float = 1.0,
    margin: float | None = None,
    confidence: float = 0.99,
) -> Comparison:
    """The time of a over that of b: median of paired log-ratios, its interval by order statistics.

    One pair is one A B B A block: the two durations of each are averaged on the log scale, so that a drift that is
    steady within a block cancels. The median shrugs off the odd disturbed block.

    Different (slower, faster: `above`, `below`) only where the interval lies beyond the resolution, and beyond the
    margin where one is declared; equivalent only where the margin is at least the resolution; the rest is inconclusive.

    Args:
        a: durations, shape (blocks,) or (blocks, 2) for the two A of each block.
        b: durations of the other, of the same shape.
        resolution: the result of `resolution` for an A/A run on the same machine, a factor of at least 1.
        margin: the largest factor that does not matter.
        confidence: 1 - alpha.

    Raises:
        ValueError: shapes that do not fit; a duration that is not positive.
    """
    return paired(
        _block(a), _block(b), log=True, margin=margin, resolution=resolution, confidence=confidence, test="median"
    )


def resolution(a: ArrayLike, again: ArrayLike, *, confidence: float = 0.99) -> float:
    """The factor below which this machine cannot tell two durations apart, from an A/A run in A B B A order.

    It is the end of the interval of `time_ratio` that is further from 1; infinite with too few blocks to bound it.

    Args:
        a: durations of the first label, shape (blocks,) or (blocks, 2).
        again: durations of the second; the same code.
        confidence: that of the comparison it will judge.

    Raises:
        ValueError: as in `time_ratio`.
    """
    return _worst(time_ratio(a, again, confidence=confidence).effect)


def _worst(effect: Estimate) -> float:
    if not effect.has_interval or effect.low <= 0:
        return math.inf
    return max(effect.high, 1 / effect.low)


class Pace(StrEnum):
    """The relation of two interleaved pieces of code in speed."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "same"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Judgement:
    """A candidate's pace against a baseline's.

    Attributes:
        ratio: the candidate's time over the baseline's.
        itself: the baseline's second time over its first: A/A.
        resolution: the factor by which the baseline differs from itself: the end of that interval further from 1.
        resolvable: the smallest factor that this run tells for sure. The interval holds the true ratio, so its near
            end lies beyond the resolution wherever the truth exceeds the resolution by the interval's whole width.
        pace: the answer.
    """

    ratio: Comparison
    itself: Estimate
    resolution: float
    resolvable: float
    pace: Pace


def judge(ratios: ArrayLike, again: ArrayLike, *, margin: float = 1.05, confidence: float = 0.99) -> Judgement:
    """Faster, slower, same or inconclusive, from a baseline that ran twice beside the candidate.

    - *slower*, *faster*: the whole interval lies beyond the resolution.
    - *same*: the run would have told a difference of `resolvable`, that is no more than the margin, and the whole
      interval is within it. "Not slower" alone is never the same.
    - *inconclusive*: the rest; the machine was too restless for an answer.

    A false alarm takes two errors at once, the candidate's interval beside the truth and the baseline's too narrow:
    simulated with independent normal noise a rate below 1e-5, where the candidate's interval alone would give 1e-2.
    That asks for independent blocks. Log-ratios that wander from block to block, AR(1) of lag-1 correlation rho, give
    false alarms at a rate of 3e-4 at rho = 0.5, 3e-3 at 0.7 and 5e-2 at 0.9, and more blocks do not help: set up
    afresh what may wander, as `depthgauge.timing.interleave` does for each of its sittings.

    Args:
        ratios: the candidate's time over the baseline's, one for each independent block, shape (blocks,).
        again: the baseline's second time over its first in the same blocks, shape (blocks,).
        margin: the largest factor that may be called the same.
        confidence: of both intervals; at 99 % they take 8 blocks or more.

    Raises:
        ValueError: other shapes, a ratio that is not positive, or a margin below 1.
    """
    values, twins = np.asarray(ratios, dtype=np.float64), np.asarray(again, dtype=np.float64)
    if values.ndim != 1 or values.shape != twins.shape:
        raise ValueError(f"one ratio for each block, twice; got shapes {values.shape} and {twins.shape}")
    if not margin >= 1:
        raise ValueError(f"a margin is a factor of at least 1, such as 1.05; got {margin!r}")
    itself = time_ratio(twins, np.ones_like(twins), confidence=confidence).effect
    blur = _worst(itself)
    ratio = time_ratio(values, np.ones_like(values), resolution=blur, confidence=confidence)
    effect = ratio.effect
    bounded = effect.has_interval and effect.low > 0 and effect.high < math.inf
    resolvable = blur * effect.high / effect.low if bounded else math.inf
    if ratio.above or ratio.below:
        return Judgement(ratio, itself, blur, resolvable, Pace.SLOWER if ratio.above else Pace.FASTER)
    same = resolvable <= margin and 1 / resolvable <= effect.low and effect.high <= resolvable
    return Judgement(ratio, itself, blur, resolvable, Pace.SAME if same else Pace.INCONCLUSIVE)


def _block(durations: ArrayLike) -> Floats:
    values = np.asarray(durations, dtype=np.float64)
    if values.ndim not in {1, 2} or (values.ndim == 2 and values.shape[1] != 2):
        raise ValueError(f"durations have shape (blocks,) or (blocks, 2); got {values.shape}")
    if np.any(values <= 0):
        raise ValueError("a duration is positive; a clock that says 0 is too coarse: time several calls together")
    return values if values.ndim == 1 else np.exp(np.log(values).mean(axis=1))
