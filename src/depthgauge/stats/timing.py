"""Durations: interleaved measurements, and what the clock and the machine can resolve."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats.comparison import Comparison, paired
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

    Different (slower, faster: `above`, `below`) only where the ratio exceeds the resolution; equivalent only where the
    margin is at least the resolution; the rest is inconclusive.

    Args:
        a: durations, shape (blocks,) or (blocks, 2) for the two A of each block.
        b: likewise.
        resolution: what `resolution` gave for an A/A run on the same machine, a factor of at least 1.
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
    effect = time_ratio(a, again, confidence=confidence).effect
    if not effect.has_interval or effect.low <= 0:
        return math.inf
    return max(effect.high, 1 / effect.low)


def _block(durations: ArrayLike) -> Floats:
    values = np.asarray(durations, dtype=np.float64)
    if values.ndim not in {1, 2} or (values.ndim == 2 and values.shape[1] != 2):
        raise ValueError(f"durations have shape (blocks,) or (blocks, 2); got {values.shape}")
    if np.any(values <= 0):
        raise ValueError("a duration is positive; a clock that says 0 is too coarse: time several calls together")
    return values if values.ndim == 1 else np.exp(np.log(values).mean(axis=1))
