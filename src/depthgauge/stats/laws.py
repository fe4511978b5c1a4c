"""Distribution functions and quantiles, from scipy, which is imported when the first of them is called.

Studies import `depthgauge.stats` to declare themselves; merely listing them must not wait for scipy.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
from numpy.typing import NDArray


def _special() -> ModuleType:
    import scipy.special  # noqa: PLC0415 - see the module's docstring

    module: ModuleType = scipy.special
    return module


def normal_cdf(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """P(Z <= z) for a standard normal Z, elementwise."""
    values: NDArray[np.float64] = _special().ndtr(z)
    return values


def normal_quantile(p: float) -> float:
    """The z with P(Z <= z) = p."""
    return float(_special().ndtri(p))


def student_upper(t: float, df: float) -> float:
    """P(T >= t) with `df` degrees of freedom; normal where `df` is infinite."""
    return float(_special().ndtr(-t) if math.isinf(df) else _special().stdtr(df, -t))


def student_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p; normal where `df` is infinite."""
    return normal_quantile(p) if math.isinf(df) else float(_special().stdtrit(df, p))


def chi_square_upper(x: float, df: float) -> float:
    """P(X >= x) for a chi-square of `df` degrees of freedom."""
    return float(_special().chdtrc(df, x))


def chi_square_lower(x: float, df: float) -> float:
    """P(X <= x)."""
    return float(_special().chdtr(df, x))


def chi_square_quantile(p: float, df: float) -> float:
    """The x with P(X <= x) = p."""
    return float(_special().gammaincinv(df / 2, p) * 2)


def beta_quantile(p: float, a: float, b: float) -> float:
    """The x with P(X <= x) = p for a beta law of shapes a and b."""
    return float(_special().betaincinv(a, b, p))


def binomial_lower(k: int, n: int, p: float) -> float:
    """P(B <= k) for a binomial of n trials; 0 below k = 0."""
    return 0.0 if k < 0 else float(_special().bdtr(min(k, n), n, p))


def binomial_upper(k: int, n: int, p: float) -> float:
    """P(B >= k)."""
    return 1.0 if k <= 0 else float(_special().bdtrc(k - 1, n, p)) if k <= n else 0.0


def binomial_tails(n: int, p: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(B <= k) and P(B > k) for k = 0 .. n."""
    k = np.arange(n + 1)
    return _special().bdtr(k, n, p), _special().bdtrc(k, n, p)


def kolmogorov_upper(distance: float, n: int) -> float:
    """P(D_n >= distance) of the two-sided Kolmogorov-Smirnov statistic, exact at every n."""
    from scipy.stats import kstwo  # noqa: PLC0415 - scipy.stats takes a second to import, and only this needs it

    return float(kstwo.sf(distance, n))
