"""The centre of a sample, by one object per method: a value, an interval, and one-sided p-values.

Interval and p-values of one object come from one test, so that they cannot contradict each other: a value is outside
the interval at confidence 1 - alpha exactly where its two-sided p-value, twice the smaller of both, is at most alpha.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge.stats import laws

Floats = NDArray[np.float64]

FEWEST = 5
"""Below this many independent values there are points only: no interval, no p-value."""

_ROUNDING = 8 * float(np.finfo(np.float64).eps)
"""Share of a mean up to which a standard deviation is rounding: such values are equal."""

EXACT_UP_TO = 16
"""Up to this many pairs all 2^n sign flips are enumerated (5 ms); beyond, Student's t takes over."""


class Location(Protocol):
    """A centre, seen through one method.

    `p_above(theta)` is the one-sided p-value of "the centre is at most theta": small where the sample lies above.
    `p_below(theta)` is that of "the centre is at least theta".
    """

    @property
    def value(self) -> float: ...  # noqa: D102 - a protocol's names are described above
    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def standard_error(self) -> float: ...  # noqa: D102
    def interval(self, confidence: float) -> tuple[float, float]: ...  # noqa: D102
    def p_above(self, theta: float) -> float: ...  # noqa: D102
    def p_below(self, theta: float) -> float: ...  # noqa: D102


def sample(x: ArrayLike, what: str = "a sample") -> Floats:
    """The values, sorted, so that results do not depend on their order; NaN last.

    Raises:
        ValueError: not one-dimensional.
    """
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{what} is a one-dimensional array, one value for each seed; got shape {values.shape}")
    return np.sort(values) + 0.0  # zeros lose their signs, which no sorting orders


def logarithm(x: ArrayLike) -> Floats:
    """Natural logarithm where zero is a result (an underflow): log 0 is -inf.

    Raises:
        ValueError: a negative value.
    """
    values = np.asarray(x, dtype=np.float64)
    if np.any(values < 0):
        raise ValueError(
            f"log=True needs values of one sign, zero or more; {np.count_nonzero(values < 0)} are negative"
        )
    with np.errstate(divide="ignore"):
        return np.log(values)


def check_confidence(confidence: float) -> float:
    """Return the confidence after checking that it lies between 0 and 1.

    Raises:
        ValueError: not strictly between 0 and 1.
    """
    if not isinstance(confidence, float | int | np.number) or not 0 < confidence < 1:  # type: ignore[redundant-expr]  # a user is not type-checked
        raise ValueError(f"a confidence lies between 0 and 1, such as 0.95; got {confidence!r}")
    return float(confidence)


def level(confidence: float) -> float:
    """Alpha = 1 - confidence as it is written: 0.05 for 0.95, where floating point subtracts to 0.050000000000000044.

    Raises:
        ValueError: not strictly between 0 and 1.
    """
    return float(1 - Decimal(repr(check_confidence(confidence))))


def moments(x: Floats) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of finite values, without overflow on the way.

    Values are scaled by a power of two, which is exact, so that squares of 1e300 or 1e-300 are harmless.
    """
    if x[0] == x[-1]:  # sorted: a sum of equal values would only add rounding
        return float(x[0]), 0.0
    scale = math.frexp(float(np.abs(x).max()))[1]
    scaled = np.ldexp(x, -scale)
    mean = float(scaled.mean())
    deviation = math.sqrt(float(np.square(scaled - mean).sum()) / (len(x) - 1))
    return math.ldexp(mean, scale), math.ldexp(deviation, scale)


def scatter(x: Floats) -> tuple[float, float, float]:
    """Mean, deviation, and the rounding that the deviation was, where it is no more: then it is 0."""
    mean, deviation = moments(x)
    rounding = _ROUNDING * abs(mean)
    return (mean, 0.0, rounding) if 0 < deviation <= rounding else (mean, deviation, 0.0)


@dataclass(frozen=True)
class Points:
    """A sample too small, or too wild, for an interval: its value, and the reason."""

    value: float
    n: int
    method: str
    standard_error: float = math.nan

    def interval(self, confidence: float) -> tuple[float, float]:  # noqa: ARG002 - there is none at any confidence
        """No interval."""
        return math.nan, math.nan

    def p_above(self, theta: float) -> float:  # noqa: ARG002 - no test either
        """No test."""
        return math.nan

    p_below = p_above


@dataclass(frozen=True)
class Student:
    """Mean with a standard error and Student's t; `df` infinite where the spread is known beforehand.

    A sample without spread leaves t nothing to work with: n equal values say no more than that n signs agree. Its
    p-value against any other value is `least_p`, the smallest that a permutation test could reach, and its interval is
    that test's: the point where the permutations suffice for the confidence, else the whole line. Values that are equal
    but for `rounding` are told from no value within it, so that the point is that wide to both sides.
    """

    value: float
    standard_error: float
    df: float
    n: int
    method: str
    least_p: float
    rounding: float = 0.0

    def interval(self, confidence: float) -> tuple[float, float]:
        """Symmetric about the mean."""
        tail = level(confidence) / 2
        if self.standard_error == 0:
            return self._equal if self.least_p <= tail else (-math.inf, math.inf)
        half = -laws.student_quantile(tail, self.df) * self.standard_error
        return self.value - half, self.value + half

    def p_above(self, theta: float) -> float:
        """P(T >= t)."""
        return self._upper(self.value - theta, apart=theta < self._equal[0])

    def p_below(self, theta: float) -> float:
        """P(T <= t)."""
        return self._upper(theta - self.value, apart=theta > self._equal[1])

    @property
    def _equal(self) -> tuple[float, float]:
        """Ends of what values without spread are not told from."""
        return self.value - self.rounding, self.value + self.rounding

    def _upper(self, excess: float, *, apart: bool) -> float:
        if self.standard_error == 0:
            return self.least_p if apart else 1.0
        return laws.student_upper(excess / self.standard_error, self.df)


@dataclass(frozen=True)
class SignFlip:
    """Mean under exact sign flips: all 2^n ways to flip the signs of x - theta (Fisher 1935, section 21).

    Flipping the subset S leaves the sum at or above the observed one exactly where the mean of x over S is at most
    theta. So p-values count subset means, and the interval lies between two of them (Hartigan 1969, JASA 64, 1303).
    Exact for any distribution that is symmetric about its centre; with n < 1 + log2(1/alpha) the interval is the
    whole line.
    """

    x: Floats

    @property
    def n(self) -> int:
        """The number of values."""
        return len(self.x)

    @property
    def value(self) -> float:
        """Their mean."""
        return moments(self.x)[0]

    @property
    def standard_error(self) -> float:
        """The mean's, as in Student's t."""
        return moments(self.x)[1] / math.sqrt(self.n)

    @property
    def method(self) -> str:
        """In words."""
        return f"mean, all 2^{self.n} sign flips"

    @cached_property
    def _subset_means(self) -> tuple[Floats, Floats]:
        """Sorted, once a little below and once a little above, so that what ties but for rounding counts as a tie."""
        sums, sizes = np.zeros(1), np.zeros(1)
        for value in self.x / self.n:  # divided first: a sum of 16 large values must not overflow
            sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
        means = np.sort(sums[1:] * (self.n / sizes[1:]))
        slack = 4 * self.n * np.finfo(np.float64).eps * np.abs(self.x).max()
        return means - slack, means + slack

    def interval(self, confidence: float) -> tuple[float, float]:
        """Between the k-th smallest and the k-th largest subset mean, k = floor(alpha 2^(n - 1))."""
        k = math.floor(level(confidence) * 2.0 ** (self.n - 1))
        if k == 0:
            return -math.inf, math.inf
        below, above = self._subset_means
        return float(below[k - 1]), float(above[-k])

    def p_above(self, theta: float) -> float:
        """Share of sign flips with a sum at least the observed one."""
        return float((1 + np.searchsorted(self._subset_means[0], theta, "right")) / 2.0**self.n)

    def p_below(self, theta: float) -> float:
        """Share of sign flips with a sum at most the observed one."""
        under = np.searchsorted(self._subset_means[1], theta, "left")
        return float((2.0**self.n - under) / 2.0**self.n)


@dataclass(frozen=True)
class Order:
    """A quantile between two order statistics: binomial, exact for any distribution, infinite values welcome.

    The number of values at most the q-quantile is binomial(n, q) (Conover, Practical Nonparametric Statistics,
    3rd ed., section 3.2). At the median this is the sign test. Ties only make it conservative.
    """

    x: Floats
    q: float

    @property
    def n(self) -> int:
        """The number of values."""
        return len(self.x)

    @property
    def value(self) -> float:
        """The sample's quantile, linear between order statistics (Hyndman & Fan 1996, type 7).

        The place is counted in fractions: 0.07 x 100 is 7, where floating point goes on to the next value, be it inf.
        """
        position = Fraction(repr(self.q)) * (self.n - 1)
        below, above = float(self.x[math.floor(position)]), float(self.x[math.ceil(position)])
        share = float(position - math.floor(position))
        return below if share == 0 or below == above else (1 - share) * below + share * above

    @property
    def standard_error(self) -> float:
        """A quantile has no standard error without a density."""
        return math.nan

    @property
    def method(self) -> str:
        """In words."""
        return "median, order statistics" if self.q == 0.5 else f"{self.q:g}-quantile, order statistics"

    def interval(self, confidence: float) -> tuple[float, float]:
        """The innermost pair of order statistics whose two tails are each at most alpha / 2; else infinite."""
        tail, ends = level(confidence) / 2, np.concatenate([[-math.inf], self.x, [math.inf]])
        at_most, above = self._tails
        lower = np.count_nonzero(at_most[:-1] <= tail)
        upper = self.n + 1 - np.count_nonzero(above[:-1] <= tail)
        return float(ends[lower]), float(ends[upper])

    def p_above(self, theta: float) -> float:
        """P(at least as many values above theta)."""
        return float(self._tails[0][np.searchsorted(self.x, theta, "right")])

    def p_below(self, theta: float) -> float:
        """P(at least as many values below theta)."""
        below = int(np.searchsorted(self.x, theta, "left"))
        return float(self._tails[1][below - 1]) if below else 1.0

    @cached_property
    def _tails(self) -> tuple[Floats, Floats]:
        return laws.binomial_tails(self.n, self.q)


def too_little(x: Floats, *, ordered: bool = False) -> str:
    """Give the reason why a sorted sample bears no interval: under 5 values, or some that the method cannot take.

    Means take finite values only; order statistics (`ordered`) take infinite ones too.
    """
    bad = np.count_nonzero(np.isnan(x) if ordered else ~np.isfinite(x))
    if bad:
        return f"no interval: {bad} of {len(x)} values {'not a number' if ordered else 'not finite'}"
    return f"points only: {len(x)} of at least {FEWEST} values" if len(x) < FEWEST else ""


def points(x: Floats, reason: str) -> Points:
    """The bare mean. Nothing is left out: where one value is NaN, so is the mean."""
    finite = np.isfinite(x)
    with np.errstate(invalid="ignore"):  # infinity of both signs
        value = math.nan if not len(x) else moments(x)[0] if finite.all() else float(x[~finite].mean())
    return Points(value, len(x), reason)


def student(x: Floats, sd: float | None = None) -> Location:
    """Mean and Student's t; normal law where the standard deviation `sd` of one value is known beforehand."""
    if reason := too_little(x):
        return points(x, reason)
    value, deviation, rounding = scatter(x)
    if sd is not None:
        return Student(value, sd / math.sqrt(len(x)), math.inf, len(x), "mean, predicted spread, normal", 0.0)
    method = "mean, Student t" if deviation > 0 else f"mean, all {len(x)} values equal"
    return Student(value, deviation / math.sqrt(len(x)), len(x) - 1, len(x), method, 2.0 ** -len(x), rounding)


def sign_flip(x: Floats) -> Location:
    """Mean and exact sign flips."""
    reason = too_little(x)
    return points(x, reason) if reason else SignFlip(x)


def order(x: Floats, q: float = 0.5) -> Location:
    """Quantile and order statistics."""
    if reason := too_little(x, ordered=True):
        return Points(math.nan if not len(x) or np.isnan(x[-1]) else Order(x, q).value, len(x), reason)
    return Order(x, q)
