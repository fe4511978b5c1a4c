"""Straight lines through values of which some are known to one side only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats.location import Floats

LOG_ROOT_2_PI = 0.5 * math.log(2 * math.pi)
MOST_PRECISE = 12.0  # ln of the largest precision: values without noise leave the likelihood without bound


def censored_slope(x: ArrayLike, y: ArrayLike, censored: ArrayLike) -> float:
    """Slope of a normal regression of which some values are known to one side only (Tobin 1958, Econometrica 26, 24).

    Maximum likelihood in Olsen's parameters (1978, Econometrica 46, 1211), in which it has one maximum. NaN where fewer
    than three values are known, or all at one x: that bounds no spread.

    Args:
        x: shape (n,).
        y: shape (n,), each value, or the bound that it lies beyond.
        censored: shape (n,), -1 where the value is below `y`, 1 where it is above, 0 where it is `y`.
    """
    from scipy.optimize import minimize  # noqa: PLC0415 - see `depthgauge.stats.laws`
    from scipy.special import log_ndtr  # noqa: PLC0415 - likewise

    at, values, side = (np.asarray(column, dtype=np.float64) for column in (x, y, censored))
    known = side == 0
    if known.sum() < 3 or np.ptp(at[known]) == 0:
        return math.nan
    unit = float(np.std(values)) or 1.0
    at, values = at - at.mean(), (values - values.mean()) / unit

    def loss(parameters: Floats) -> tuple[float, Floats]:
        """Minus the log likelihood, and its gradient."""
        intercept, slope, log_precision = parameters
        precision = math.exp(min(log_precision, MOST_PRECISE))
        z = precision * values - intercept - slope * at
        inside = -side[~known] * z[~known]  # how far the line lies on the right side of a bound
        beyond, density = log_ndtr(inside), -0.5 * np.square(inside) - LOG_ROOT_2_PI
        pull = z.copy()  # the derivative in z
        pull[~known] = side[~known] * np.exp(density - beyond)
        spread = (pull @ (precision * values) - known.sum()) * (log_precision <= MOST_PRECISE)
        value = 0.5 * np.square(z[known]).sum() - known.sum() * math.log(precision) - beyond.sum()
        return float(value), np.array([-pull.sum(), -(pull @ at), spread])

    _, slope, log_precision = minimize(loss, (0.0, 0.0, 0.0), method="BFGS", jac=True).x
    return float(slope / math.exp(min(log_precision, MOST_PRECISE)) * unit)


def censored_slopes(x: ArrayLike, y: ArrayLike, censored: ArrayLike, seeds: ArrayLike) -> Floats:
    """Jackknife pseudo-values of `censored_slope`, one a seed: Student's t on them gives the slope and its interval.

    Values of one seed may depend on each other; seeds may not.

    Args:
        x: shape (n,).
        y: shape (n,).
        censored: shape (n,), as above.
        seeds: shape (n,), whose each value is.
    """
    columns, of = tuple(np.asarray(column) for column in (x, y, censored)), np.asarray(seeds)
    every = np.unique(of)
    if len(every) < 2:
        return np.full(len(every), math.nan)
    without = [censored_slope(*(column[of != seed] for column in columns)) for seed in every]
    return len(every) * censored_slope(*columns) - (len(every) - 1) * np.array(without)


def crossing(x: ArrayLike, y: ArrayLike, level: float) -> tuple[float, int]:
    """The x at which y first falls through a level, on straight lines between points, and its censored side.

    Args:
        x: shape (k,), ascending.
        y: shape (k,), finite.
        level: what y falls through.

    Returns:
        (x, 0) of the crossing; (first x, -1) where y begins below the level and the crossing lies before; (last x, 1)
        where y never falls below it and the crossing lies beyond.
    """
    at, values = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    k = int(np.append(values < level, True).argmax())  # the first point below
    if k == 0:
        return float(at[0]), -1
    if k == len(at):
        return float(at[-1]), 1
    return float(at[k - 1] + (values[k - 1] - level) / (values[k - 1] - values[k]) * (at[k] - at[k - 1])), 0
