"""Tests of predicted bands, scores and variances against measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.stats import laws
from depthgauge.stats.comparison import Comparison, compare
from depthgauge.stats.estimate import rate
from depthgauge.stats.location import FEWEST, Floats, Location, Points, level, moments, points, sample, too_little


@dataclass(frozen=True)
class _Share:
    """A share of runs, exact binomial (Clopper & Pearson 1934, Biometrika 26, 404)."""

    events: int
    n: int
    standard_error: float = math.nan
    method: str = "share, exact binomial (Clopper-Pearson)"

    @property
    def value(self) -> float:
        return self.events / self.n

    def interval(self, confidence: float) -> tuple[float, float]:
        tail, others = level(confidence) / 2, self.n - self.events
        low = laws.beta_quantile(tail, self.events, others + 1) if self.events else 0.0
        return low, 1 - laws.beta_quantile(tail, others, self.events + 1) if others else 1.0

    def p_above(self, theta: float) -> float:
        return laws.binomial_upper(self.events, self.n, min(1.0, theta)) if theta >= 0 else 0.0  # no share is below 0

    def p_below(self, theta: float) -> float:
        return laws.binomial_lower(self.events, self.n, max(0.0, theta)) if theta <= 1 else 0.0  # nor above 1


def coverage(
    inside: int, n: int, nominal: float, *, margin: float | None = None, confidence: float = 0.95
) -> Comparison:
    """Hold the share of observations inside a predicted band against the share that belongs there.

    The test is exact binomial, p twice the smaller tail, and the interval its inversion (Clopper & Pearson). `z` is the
    score statistic. Observations must be independent: one for each seed, not one for each layer of it.

    Args:
        inside: observations within the band; non-finite ones are outside.
        n: observations.
        nominal: the band's probability, such as 0.95.
        margin: the largest deviation that does not matter.
        confidence: 1 - alpha.

    Raises:
        ValueError: counts or probabilities that are none.
    """
    if not 0 < nominal < 1:
        raise ValueError(f"a band's probability lies between 0 and 1, such as 0.95; got {nominal!r}")
    estimate = rate(inside, n, confidence)
    location: Location = _Share(inside, n) if n >= FEWEST else Points(estimate.value, n, estimate.method)
    comparison = compare(location, reference=nominal, margin=margin, confidence=confidence)
    score = (estimate.value - nominal) / math.sqrt(nominal * (1 - nominal) / n) if n >= FEWEST else math.nan
    return replace(comparison, z=score)


@dataclass(frozen=True)
class Fit:
    """The distance of a sample from a predicted distribution.

    Attributes:
        distance: largest distance between the two distribution functions; NaN without a test.
        p: chance of at least this distance if the prediction is right. A large p is no proof that it is: see `distance`
            and n.
        n: observations.
        method: in one line.
    """

    distance: float
    p: float
    n: int
    method: str


def uniformity(pit: ArrayLike) -> Fit:
    """Kolmogorov-Smirnov test of probability integral transforms: uniform if each came from its predicted law.

    Args:
        pit: shape (n,), the predicted distribution function at each observation; independent.

    Raises:
        ValueError: not one-dimensional; outside 0 to 1.
    """
    values = sample(pit)
    if np.any((values < 0) | (values > 1)):
        raise ValueError("probability integral transforms lie between 0 and 1; for z-scores pass normal_pit(z)")
    n = len(values)
    if reason := too_little(values):
        return Fit(math.nan, math.nan, n, reason)
    distance = max(float((np.arange(1, n + 1) / n - values).max()), float((values - np.arange(n) / n).max()))
    return Fit(distance, laws.kolmogorov_upper(distance, n), n, "Kolmogorov-Smirnov, exact")


def normal_pit(z: ArrayLike) -> Floats:
    """Probability integral transform of z-scores, any shape; infinite ones go to 0 and 1, NaN stays."""
    return laws.normal_cdf(np.asarray(z, dtype=np.float64))


@dataclass(frozen=True)
class _LogVarianceRatio:
    """log(s^2 / predicted), from the chi-square law of s^2."""

    ratio: float
    n: int
    df: int
    standard_error: float = math.nan

    @property
    def method(self) -> str:
        return f"variance ratio, chi-square with {self.df} degrees of freedom (normal data)"

    @property
    def value(self) -> float:
        return math.log(self.ratio) if self.ratio > 0 else -math.inf

    def interval(self, confidence: float) -> tuple[float, float]:
        tail = level(confidence) / 2
        upper, lower = (laws.chi_square_quantile(p, self.df) / self.df for p in (1 - tail, tail))
        return self.value - math.log(upper), self.value - math.log(lower)

    def p_above(self, theta: float) -> float:
        return laws.chi_square_upper(self.df * self.ratio / math.exp(theta), self.df)

    def p_below(self, theta: float) -> float:
        return laws.chi_square_lower(self.df * self.ratio / math.exp(theta), self.df)


def variance_ratio(
    x: ArrayLike,
    predicted: float,
    *,
    predicted_mean: float | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
) -> Comparison:
    """Hold the variance of a sample against a predicted one: the effect is measured / predicted, the reference 1.

    (n - 1) s^2 / sigma^2 is chi-square for normal data. The test is sensitive to heavy tails: apply it to what theory
    says is normal (a log-norm, a z-score).

    Args:
        x: shape (n,).
        predicted: sigma^2.
        predicted_mean: where theory has the mean as well: deviations are taken from it, with n degrees of freedom.
        margin: the largest factor that does not matter.
        confidence: 1 - alpha.

    Raises:
        ValueError: not one-dimensional; a predicted variance that is not positive.
    """
    if not (math.isfinite(predicted) and predicted > 0):
        raise ValueError(f"a predicted variance is a positive number; got {predicted!r}")
    values = sample(x)
    location: Location
    if reason := too_little(values):
        location = replace(points(values, reason), value=math.nan)
    else:
        df = len(values) - (predicted_mean is None)
        centre = moments(values)[0] if predicted_mean is None else predicted_mean
        with np.errstate(over="ignore"):  # infinitely more than predicted, as far as float64 can tell
            squares = float(np.square((values - centre) / math.sqrt(predicted)).sum())
        location = _LogVarianceRatio(squares / df, len(values), df)
    return compare(location, reference=1.0, margin=margin, confidence=confidence, log=True)
