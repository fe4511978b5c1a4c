"""Estimates from one sample: a figure, its interval, and its method."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from depthgauge import seeding
from depthgauge.seeding import Purpose
from depthgauge.stats import laws
from depthgauge.stats.location import (
    FEWEST,
    Floats,
    Location,
    check_confidence,
    logarithm,
    moments,
    order,
    sample,
    student,
)

BOOTSTRAP_FROM = 20
"""Fewest values for a BCa bootstrap; below, it is too narrow (Efron & Tibshirani 1993, section 14.4)."""

RESAMPLES = 9_999


@dataclass(frozen=True)
class Estimate:
    """A figure that was measured over independent repetitions.

    Attributes:
        value: the figure, in `unit`.
        low: lower end of the interval; NaN where there is none (`method` says why), -inf where data do not bound it.
        high: upper end.
        n: independent repetitions.
        method: the method of value and interval, in one line.
        unit: empty for a pure number.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    unit: str = ""

    @property
    def has_interval(self) -> bool:
        """Tell whether enough values were usable for an interval."""
        return not math.isnan(self.low)

    @property
    def ends(self) -> tuple[float, float, float]:
        """The value, and the lower and upper end."""
        return self.value, self.low, self.high

    def times(self, factor: float, unit: str | None = None) -> Estimate:
        """The same figure times a number >= 0, in its own unit or another."""
        value, low, high = (factor * end for end in self.ends)
        return replace(self, value=value, low=low, high=high, unit=self.unit if unit is None else unit)

    def contains(self, value: float) -> bool:
        """Tell whether the interval holds `value`; false without an interval."""
        return self.low <= value <= self.high

    def told(self, form: str = ".4g") -> str:
        """The figure and its interval in words, `0.52 [0.49, 0.55]`; the figure alone where there is no interval.

        Args:
            form: of each number, as behind the colon of an f-string.
        """
        value, low, high = (format(end, form) for end in self.ends)
        return f"{value} [{low}, {high}]" if self.has_interval else value

    def __str__(self) -> str:
        return f"{self.told()}{' ' if self.unit else ''}{self.unit} (n = {self.n})"


def exponential(x: float) -> float:
    """exp, infinite where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def summary(location: Location, confidence: float, *, log: bool = False, unit: str = "") -> Estimate:
    """The estimate that a location gives; back from the log scale with `log`."""
    low, high = location.interval(confidence)
    description = f"geometric {location.method}" if log and location.method.startswith("mean") else location.method
    if not math.isnan(low):
        description += f", {100 * confidence:g} %"
    value, low, high = (exponential(v) if log else v for v in (location.value, low, high))
    return Estimate(value, low, high, location.n, description, unit)


def mean(
    x: ArrayLike,
    confidence: float = 0.95,
    *,
    log: bool = False,
    interval: Literal["t", "bca"] = "t",
    seed: int = 0,
    unit: str = "",
) -> Estimate:
    """Mean over independent repetitions, with an interval from 5 values on.

    Where a value is NaN or infinite the mean is too, and there is no interval: report `rate` of such runs, `median`
    (which takes infinities), or `mean` of the finite ones *with* the rate of the others. Equal values have no spread
    for t; their interval is that of exact sign flips: the point from 6 values on at 95 %, below it the whole line.

    Args:
        x: shape (n,).
        confidence: confidence of the interval.
        log: geometric mean, for positive skewed figures; a zero makes it zero.
        interval: Student's t, or the bias-corrected and accelerated bootstrap (Efron 1987, JASA 82, 171), which needs
            at least 20 values; its seed stands in `method`.
        seed: seed of the bootstrap.
        unit: unit of `x`.

    Raises:
        ValueError: not one-dimensional; negative values with `log`; a bootstrap of fewer than 20 values.
    """
    check_confidence(confidence)
    values = sample(logarithm(x) if log else x)
    if interval not in {"t", "bca"}:
        raise ValueError(f"interval is 't' or 'bca'; got {interval!r}")
    if interval == "bca" and len(values) < BOOTSTRAP_FROM:
        raise ValueError(f"a bootstrap needs at least {BOOTSTRAP_FROM} values; with {len(values)} use interval='t'")
    estimate = summary(student(values), confidence, log=log, unit=unit)
    if interval == "t" or not estimate.has_interval or values[0] == values[-1]:
        return estimate
    low, high = _bca(values, confidence, seed)
    if log:
        low, high = exponential(low), exponential(high)
    description = f"{'geometric ' if log else ''}mean, BCa bootstrap, {RESAMPLES} resamples, seed {seed}"
    return Estimate(estimate.value, low, high, estimate.n, f"{description}, {100 * confidence:g} %", unit)


def _bca(x: Floats, confidence: float, seed: int) -> tuple[float, float]:
    """BCa interval of the mean (Efron & Tibshirani 1993, equations 14.9 to 14.15)."""
    generator = seeding.numpy_generator(seed, Purpose.RESAMPLES)
    mean, _ = moments(x)
    rows = max(1, 1_000_000 // len(x))  # a block of resamples at a time bounds memory; it depends on n alone
    means = np.sort(
        np.concatenate(
            [
                x[generator.integers(len(x), size=(min(rows, RESAMPLES - start), len(x)))].mean(axis=1)
                for start in range(0, RESAMPLES, rows)
            ]
        )
    )
    below = (np.searchsorted(means, mean, "left") + np.searchsorted(means, mean, "right")) / 2
    bias = laws.normal_quantile(min(max(below, 0.5), RESAMPLES - 0.5) / RESAMPLES)
    from_mean = (x - mean) / np.abs(x - mean).max()
    acceleration = float((from_mean**3).sum() / (6 * (from_mean**2).sum() ** 1.5))
    ends = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + laws.normal_quantile(tail)
        level = float(laws.normal_cdf(np.array(bias + shifted / (1 - acceleration * shifted))))
        ends.append(float(np.quantile(means, level)))
    return ends[0], ends[1]


def quantile(x: ArrayLike, q: float, confidence: float = 0.95, *, unit: str = "") -> Estimate:
    """A quantile between two order statistics: exact coverage, at least `confidence`, for any distribution.

    Infinite values are ordered like any other, so that diverged runs can stay in as `inf`. NaN has no place in an
    order: with one the estimate is NaN, without interval. Where n is too small to bound one side, that end is infinite.

    Raises:
        ValueError: `q` not strictly between 0 and 1; not one-dimensional.
    """
    if not 0 < q < 1:
        raise ValueError(f"a quantile lies between 0 and 1, such as 0.5; got {q!r}")
    return summary(order(sample(x), q), check_confidence(confidence), unit=unit)


def median(x: ArrayLike, confidence: float = 0.95, *, unit: str = "") -> Estimate:
    """The 0.5-quantile.

    Infinity stands for "beyond all that was watched", such as the steps of a run that never reached its target: an end
    of the interval that is infinite lies beyond the budget, wherever that is. Between minus and plus infinity there is
    no middle: the value is NaN where the median would be half of each.
    """
    return quantile(x, 0.5, confidence, unit=unit)


def rate(events: int, n: int, confidence: float = 0.95) -> Estimate:
    """A share of runs with Wilson's score interval (Wilson 1927, JASA 22, 209).

    Every run that was asked for counts in `n`, the diverged ones too.

    Raises:
        ValueError: more events than runs, or fewer than none.
    """
    check_confidence(confidence)
    if not 0 <= events <= n:
        raise ValueError(f"events lie between 0 and the number of runs; got {events} of {n}")
    share = events / n if n else math.nan
    if n < FEWEST:
        return Estimate(share, math.nan, math.nan, n, f"points only: {n} of at least {FEWEST} runs")
    z2 = laws.normal_quantile(0.5 + confidence / 2) ** 2
    centre = (events + z2 / 2) / (n + z2)
    half = math.sqrt(z2 * (events * (n - events) / n + z2 / 4)) / (n + z2)
    low = 0.0 if events == 0 else max(0.0, centre - half)
    high = 1.0 if events == n else min(1.0, centre + half)
    return Estimate(share, low, high, n, f"share of runs, Wilson, {100 * confidence:g} %")


def pseudo_values(figure: Callable[..., float], *samples: ArrayLike) -> Floats:
    """Jackknife pseudo-values of a figure, one a repetition: Student's t on them gives the figure and its interval.

    n f(all) - (n - 1) f(all but one) (Tukey 1958, Ann. Math. Stat. 29, 614). Of a mean they are the values themselves.
    A ratio to the mean of the same repetitions is such a figure: values over that mean, taken for known, would have an
    interval without the mean's own error.

    Args:
        figure: of the samples, without units or in one unit, as it is.
        *samples: shape (n,) each, in one order of the repetitions.

    Returns:
        Shape (n,); the figure itself of a single repetition.

    Raises:
        ValueError: no sample, or samples of several shapes.
    """
    columns = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if not columns or len({column.shape for column in columns}) > 1 or columns[0].ndim != 1:
        raise ValueError(f"repetitions are samples of one length; got shapes {[column.shape for column in columns]}")
    n = len(columns[0])
    if n < 2:
        return np.array([figure(*columns)] * n)
    without = np.array([figure(*(np.delete(column, i) for column in columns)) for i in range(n)])
    return np.asarray(n * figure(*columns) - (n - 1) * without)
