"""Lines of many seeds at once: their band, their slopes, and the length over which their mean decays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge.stats import laws
from depthgauge.stats.estimate import Estimate
from depthgauge.stats.location import FEWEST, Floats, check_confidence

FEWEST_POINTS = 3
"""A line through two points fits always, and says nothing."""

FEWEST_LAYERS = 4
"""Layers that a decay is fitted to, at least."""

CLEAR = 3.0
"""Standard errors that the fitted mean of a layer is away from zero, where a decay is still seen."""

_ROUNDS = 4

FLAT = 1e-6
"""A slope of ln a layer that is no decay but rounding."""

ROUNDING = 1e-12
"""A mean up to this is rounding of the fixed point, a figure of order 1, that was taken off."""


@dataclass(frozen=True)
class Lines:
    """Least-squares lines, one for each seed.

    Attributes:
        slope: shape of Y without its last axis; NaN where fewer than 3 points were finite.
        intercept: at x = 0, same shape.
        used: number of points of each line, same shape; below `points`, a value was NaN or infinite.
        points: number of points given.
    """

    slope: Floats
    intercept: Floats
    used: NDArray[np.int64]
    points: int

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Mask the lines that went through every point."""
        return np.equal(self.used, self.points)


def band(lines: ArrayLike, share: float = 0.9) -> dict[str, Floats]:
    """Median over seeds at every point, and the ends of the middle share of them; infinities are results.

    Args:
        lines: shape (n, k), one row a seed.
        share: of the seeds that lie between the ends, in 0 .. 1.

    Returns:
        `low`, `median` and `high`, each of shape (k,) and each the value of a seed (inverted distribution function);
        NaN where there are no seeds, or a seed is NaN.

    Raises:
        ValueError: lines of another shape, or no such share.
    """
    values = np.asarray(lines, dtype=np.float64)
    if values.ndim != 2 or not 0 <= share <= 1:
        raise ValueError(f"lines have shape (n, k) and a share lies in 0 .. 1; got {values.shape} and {share!r}")
    tails = ((1 - share) / 2, 0.5, (1 + share) / 2)
    none = np.full((3, values.shape[1]), math.nan)
    ends = np.quantile(values, tails, axis=0, method="inverted_cdf") if len(values) else none
    return dict(zip(("low", "median", "high"), ends, strict=True))


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


def decay_length(layers: ArrayLike, lines: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Layers over which |mean over seeds| falls by a factor e: the depth scale xi of a decay exp(-l / xi).

    Least squares of ln|mean| on the layer; xi is -1 over the slope. The fit goes from a third of the way to the last
    layer up to which the fitted line is above `CLEAR` standard errors of the mean: earlier layers are not yet in the
    linear regime of a fixed point, later ones are noise, whose logarithm is biased. To end where the mean itself is no
    longer clear would choose the layers whose noise holds it up. The interval is that of the slope, from leaving out
    each seed in turn and choosing the layers anew (jackknife, Student t with n - 1 degrees of freedom), and covers the
    xi of these layers.

    Args:
        layers: shape (k,), ascending.
        lines: shape (n, k), one row a seed; what decays to zero, signed.
        confidence: confidence of the interval.

    Returns:
        xi in layers; infinite, as an end of the interval may be, where nothing decays; NaN, with the reason in
        `method`, for fewer than 5 seeds or fewer than 4 layers that can be fitted.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_confidence(confidence)
    at, values = np.asarray(layers, dtype=np.float64), np.asarray(lines, dtype=np.float64)
    if at.ndim != 1 or values.ndim != 2 or values.shape[1] != len(at):
        raise ValueError(f"layers have shape (k,) and lines (n, k); got {at.shape} and {values.shape}")
    seeds = len(values)
    if seeds < FEWEST:
        return _no_length(seeds, f"points only: {seeds} of at least {FEWEST} seeds")
    with np.errstate(invalid="ignore"):  # infinite values have no spread, and are not clear of it
        mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / math.sqrt(seeds)
    last = _last(at, mean, error)
    use = slice(last // 3, last)
    if last - last // 3 < FEWEST_LAYERS:
        return _no_length(seeds, f"no fit: the mean is seen in {last} layers, of which the first third is left out")
    with np.errstate(invalid="ignore"):  # behind the layers that are used
        means = np.vstack([mean, (values.sum(axis=0) - values) / (seeds - 1)])
    slope, *without = _slopes(at, means, [last, *(_last(at, each, error, last) for each in means[1:])])
    variance = (seeds - 1) / seeds * np.square(np.subtract(without, np.mean(without))).sum()
    half = laws.student_quantile(0.5 + confidence / 2, seeds - 1) * math.sqrt(variance)
    xi, low, high = (-1 / s if s < -FLAT else math.inf for s in (slope, slope - half, slope + half))
    method = f"decay of the mean, layers {at[use][0]:g} to {at[use][-1]:g}, jackknife, {100 * confidence:g} %"
    return Estimate(float(xi), float(low), float(high), seeds, method, "layers")


def _last(at: Floats, mean: Floats, error: Floats, otherwise: int | None = None) -> int:
    """Layers up to which a line through ln|mean|, fitted to two thirds of them, is clear of the error.

    The mean itself may lie below it, but not within one error of zero. Fewer than can be fitted where a decay ends so
    soon, or as many as are told.
    """

    def before(clear: NDArray[np.bool_]) -> int:
        return clear.size if clear.all() else int(np.argmin(clear))

    seen = (np.abs(mean) > error) & (np.abs(mean) > ROUNDING)
    last = before(seen & (np.abs(mean) > CLEAR * error))
    for _ in range(_ROUNDS):
        use = slice(last // 3, last)
        if last - last // 3 < FEWEST_LAYERS:
            return last if otherwise is None else otherwise
        logs, away = np.log(np.abs(mean[use])), at - at[use].mean()
        fitted = logs.mean() + (away[use] @ logs) / (away[use] @ away[use]) * away
        with np.errstate(over="ignore", invalid="ignore"):
            further = before(seen & (np.exp(fitted) > CLEAR * error))
        if further == last:
            break
        last = further
    return otherwise if otherwise is not None and last - last // 3 < FEWEST_LAYERS else last


def _slopes(at: Floats, means: Floats, lasts: list[int]) -> Floats:
    """Slope of each row's ln|mean| over the last two thirds of the layers up to its last."""
    found = np.empty(len(means))
    for last in set(lasts):
        rows, use = np.equal(lasts, last), slice(last // 3, last)
        found[rows] = np.polyfit(at[use], np.log(np.abs(means[rows, use])).T, 1)[0]
    return found


def _no_length(seeds: int, why: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, seeds, why, "layers")
