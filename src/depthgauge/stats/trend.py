"""Straight lines through many seeds at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge.stats.location import Floats

FEWEST_POINTS = 3
"""A line through two points fits always, and says nothing."""


@dataclass(frozen=True)
class Lines:
    """Least-squares lines, one for each seed.

    Attributes:
        slope: shape of Y without its last axis; NaN where fewer than 3 points were finite.
        intercept: at x = 0, same shape.
        used: how many points each line went through, same shape; below `points`, a value was NaN or infinite.
        points: how many there were.
    """

    slope: Floats
    intercept: Floats
    used: NDArray[np.int64]
    points: int

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which lines went through every point."""
        return np.equal(self.used, self.points)


def slopes(x: ArrayLike, y: ArrayLike) -> Lines:
    """Ordinary least squares of every row of `y` on `x`, in one pass.

    Points along a network's depth are dependent, so a fit's own standard error means little: the interval is taken
    over seeds, `mean(slopes(x, Y).slope)`. A row with NaN or infinite values (a signal that left the format) is fitted
    through its finite points, and `used` says so. Steep lines break first: judge the `complete` ones only together with
    the share of the others.

    Args:
        x: shape (k,), finite, not all equal.
        y: shape (..., k), one row a seed.

    Raises:
        ValueError: shapes that do not fit, or an `x` that spans no line.
    """
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if at.ndim != 1 or values.ndim < 1 or values.shape[-1] != len(at):
        raise ValueError(f"x has shape (k,) and y (..., k); got {at.shape} and {values.shape}")
    if len(at) < FEWEST_POINTS or not np.isfinite(at).all() or np.ptp(at) == 0:
        raise ValueError(f"a line needs at least {FEWEST_POINTS} finite, different x; got {at.tolist()!r:.80}")
    usable = np.isfinite(values)
    used = usable.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre_x = np.where(usable, at, 0.0).sum(axis=-1) / used
        centre_y = np.where(usable, values, 0.0).sum(axis=-1) / used
        dx = np.where(usable, at - centre_x[..., None], 0.0)
        dy = np.where(usable, values, 0.0) - centre_y[..., None]
        spread = np.square(dx).sum(axis=-1)
        slope = np.where((used >= FEWEST_POINTS) & (spread > 0), (dx * dy).sum(axis=-1) / spread, math.nan)
    return Lines(slope, centre_y - slope * centre_x, used, len(at))
