"""Weight of a tail: the index of a power law, from the largest values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats import laws
from depthgauge.stats.estimate import Estimate
from depthgauge.stats.location import FEWEST, check_confidence


def tail_index(x: ArrayLike, share: float = 0.05, confidence: float = 0.95) -> Estimate:
    """Estimate a in P(X > x) ~ x^-a from the largest `share` of positive values (Hill 1975, Ann. Stat. 3, 1163).

    With k values above the next largest, u, and H the mean of ln(x / u) over them, the value is 1 / H. Of an exact
    power law ln(x / u) is exponential, so that 2 k H a is chi-square with 2 k degrees of freedom, and the interval is
    exact. Of a law that is a power law only far out, it holds the index of the tail as it is beyond u. A law without
    a power tail has an index that grows as `share` shrinks: at 0.05 a normal law's is about 6. The variance is finite
    where a is above 2, the mean where it is above 1.

    Args:
        x: shape (n,), independent, at least 0.
        share: of the values that are its tail, in 0 .. 1; at least 5 of them are taken.
        confidence: 1 - alpha.

    Raises:
        ValueError: not one-dimensional, a negative value, or a share outside of 0 .. 1.
    """
    values = np.sort(np.asarray(x, float))
    if values.ndim != 1:
        raise ValueError(f"values have one dimension, not {values.ndim}")
    if not 0 < share < 1:
        raise ValueError(f"a share lies between 0 and 1, not at {share}")
    if (values < 0).any():
        raise ValueError(f"a tail is one of values of at least 0, not of {values.min():g}")
    check_confidence(confidence)
    n, k = len(values), max(FEWEST, math.floor(share * len(values)))
    if n <= k or not np.isfinite(values).all() or values[n - k - 1] == 0:
        reason = "a value is not finite" if not np.isfinite(values).all() else f"fewer than {k + 1} values are positive"
        return Estimate(math.nan, math.nan, math.nan, n, f"no tail: {reason}")
    excess = float(np.log(values[n - k :] / values[n - k - 1]).sum())
    if excess == 0:
        return Estimate(math.inf, math.nan, math.nan, n, f"no tail: the largest {k + 1} values are equal")
    tail = (1 - confidence) / 2
    low, high = (laws.chi_square_quantile(p, 2 * k) / (2 * excess) for p in (tail, 1 - tail))
    return Estimate(k / excess, low, high, n, f"Hill, largest {k} of {n}, chi-square, {100 * confidence:g} %")
