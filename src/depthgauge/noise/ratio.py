"""The noise scale as a ratio of two unbiased estimates, and the scales that the data do not reject."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import special

from depthgauge.formats.arguments import numbers, whole
from depthgauge.stats.location import FEWEST, check_confidence

Floats = NDArray[np.float64]
T = TypeVar("T")

ROUNDING = 1e-12
"""Share of the mean squared gradient below which a variance is rounding."""

_HALVINGS, _OCTAVES = 50, 60


class NoiseError(ValueError):
    """A noise scale that cannot be had; the message is one sentence for the user.

    Attributes:
        what: the sentence without the advice.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}; {advice}" if advice else what)
        self.what = what


@dataclass(frozen=True)
class NoiseScale:
    """A gradient noise scale, in examples.

    Attributes:
        value: noise / signal, never clamped: below 0 where the estimate of the signal is.
        low: smallest positive scale that the data do not reject.
        high: largest one; infinite where the signal's interval reaches 0. Both are infinite where every finite scale is
            rejected, NaN where a gradient is not finite.
        signal: unbiased estimate of |G|^2, the squared norm of the mean gradient; may be negative.
        noise: unbiased estimate of tr(Sigma), the sum over parameters of the per-example gradient's variance.
        n: independent gradients that it was estimated from.
        confidence: of the interval.
        method: estimator and interval, in one line.
    """

    value: float
    low: float
    high: float
    signal: float
    noise: float
    n: int
    confidence: float
    method: str

    def __str__(self) -> str:
        """`noise scale 118 examples [94.3, 151] (95 %, n = 500)`, and why it is none where it is none."""
        interval = "" if math.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]"
        text = f"noise scale {self.value:.4g} examples{interval} ({100 * self.confidence:g} %, n = {self.n})"
        if not math.isfinite(self.signal):
            return f"{text}: gradients are not finite"
        if math.isinf(self.low):
            return f"{text}: every finite scale is rejected"
        if self.signal <= 0:
            return f"{text}: no signal was found in the noise; the value is no scale, the lower end is a bound"
        return text


def of_products(
    squares: Floats, along: Floats, *, batch: int = 1, population: int | None = None, confidence: float = 0.95
) -> NoiseScale:
    """Noise scale from n gradients' products with themselves and with their sum.

    Args:
        squares: (n,) |g_i|^2.
        along: (n,) g_i . sum_j g_j.
        batch: examples that each gradient is the mean of.
        population: number of examples that they were drawn from without replacement; None: independent draws. Of single
            examples it also shortens the interval, to a point where all are there. Means of batches keep that of
            independent draws: the batches are one partition of many, and the variance of their means has its error.
        confidence: of the interval.

    Raises:
        NoiseError: fewer than two gradients, or a population smaller than the sample.
    """
    check_confidence(confidence)
    population = checked_population(population)
    squares, along = (
        np.asarray(checked(numbers, "a product of gradients", each), np.float64) for each in (squares, along)
    )
    if squares.ndim != 1 or squares.shape != along.shape:
        raise NoiseError(f"squares and along are of shapes {squares.shape} and {along.shape}, where both are (n,)")
    n = len(squares)
    if n < 2:
        raise NoiseError(f"a variance takes at least two gradients; got {n}")
    if population is not None and population < n * batch:
        raise NoiseError(f"{n * batch} examples cannot be drawn without replacement from {population}")
    method = f"{n} gradients of {_examples(batch)}"
    if population is not None:
        method += f" out of {population:,}"
    if not (np.isfinite(squares).all() and np.isfinite(along).all()):
        bad = int((~(np.isfinite(squares))).sum())
        method += f", {bad} of them not finite"
        return NoiseScale(math.nan, math.nan, math.nan, math.nan, math.nan, n, confidence, method)
    peak = (
        float(squares.max()) or 1.0
    )  # the scale does not depend on it, and powers of the gradients shall not overflow
    squares, along = squares / peak, along / peak
    pairs = _Pairs.of(squares, along, batch, population)
    value = ratio(pairs.noise, pairs.signal)
    if batch == 1 and population == n:
        low = high = value
        method += ": all there are"
    elif n < FEWEST:
        low, high, method = 0.0, math.inf, f"{method}; fewer than {FEWEST} reject no scale"
    elif abs(pairs.noise) <= ROUNDING * float(squares.mean()):
        low, high = (0.0, max(value, 0.0)) if pairs.signal > 0 else (0.0, math.inf)
    else:
        t = float(special.stdtrit(n - 1, 0.5 + confidence / 2))
        low, high = accepted(lambda scale: pairs.statistic(scale) / t, pairs.start, value)
        method += ", jackknife with Hall's correction for skewness"
    return NoiseScale(value, low, high, pairs.signal * peak, pairs.noise * peak, n, confidence, method)


@dataclass(frozen=True)
class _Pairs:
    """Estimates from all pairs of gradients, and the jackknife's influences of each gradient on them.

    Attributes:
        noise: per example.
        signal: of the mean gradient.
        norm: squared norm of the sample's mean gradient.
        second: second moments of the influences on noise and signal: (noise^2, noise signal, signal^2).
        third: third moments likewise: (noise^3, noise^2 signal, noise signal^2, signal^3).
        direction: variance of a gradient along the mean one.
        n: gradients.
        batch: examples each.
        left: share of the population that was not drawn.
    """

    noise: float
    signal: float
    norm: float
    second: tuple[float, float, float]
    third: tuple[float, float, float, float]
    direction: float
    n: int
    batch: int
    left: float

    @staticmethod
    def of(squares: Floats, along: Floats, batch: int, population: int | None) -> _Pairs:
        """From |g_i|^2 and g_i . sum_j g_j."""
        n, m = len(squares), len(squares) - 1
        others = along - squares  # products with all other gradients
        signal = float(others.sum()) / (n * m)
        noise = float(squares.mean()) - signal
        norm = max(float(along.sum()), 0.0) / n**2
        of_signal = _influence((others.sum() - 2 * others) / (m * max(m - 1, 1)))
        of_noise = _influence((squares.sum() - squares) / m) - of_signal
        along_mean = float((of_signal**2).mean()) / 4
        direction = min(along_mean / norm, noise) if norm > 0 and along_mean < math.inf else noise
        of_noise *= batch
        noise *= batch
        missing = 0.0
        if population is not None:
            signal, of_signal = signal + noise / population, of_signal + of_noise / population
            noise, of_noise = (noise * (population - 1) / population, of_noise * (population - 1) / population)
            missing = n * batch / population
        a, b = of_noise, of_signal
        moments = [float((a ** (k - j) * b**j).mean()) for k in (2, 3) for j in range(k + 1)]
        second, third = (moments[0], moments[1], moments[2]), (moments[3], moments[4], moments[5], moments[6])
        return _Pairs(noise, signal, norm, second, third, direction, n, batch, 1 - missing)

    @property
    def start(self) -> float:
        """A scale near which to look for others."""
        return self.noise / max(self.norm, self.noise / (1e6 * self.n * self.batch))

    def statistic(self, scale: float) -> float:
        """Studentized noise - scale signal, above 0 where the true scale is larger; of an infinite one, -signal.

        The signal's variance is that which it would have at this scale: the jackknife's own collapses where the mean
        gradient of a sample happens to be short. Of batches out of a finite set, what noise owes to the partition stays
        whole, and what signal and covariance owe to the draw lies between the share that was not drawn (means of
        gradients) and all of it (gradients that depend on the batch): the wider one is taken.
        """
        n, per_gradient = self.n, self.noise / self.batch
        expected = max(4 * self.direction * (self.noise / scale + per_gradient / (2 * n)), 0.0)
        nn, ns, ss = self.second
        grown = math.sqrt(expected / ss) if ss > 0 else 0.0  # influences on the signal, at this scale
        x, y, value = (
            (0.0, -1.0, -self.signal) if math.isinf(scale) else (1.0, -scale, self.noise - scale * self.signal)
        )
        square = x * x * nn + 2 * x * y * grown * ns + y * y * expected
        if square <= 0:
            return 0.0 if value == 0 else math.copysign(math.inf, value)
        nnn, nns, nss, sss = self.third
        y *= grown
        skewness = (x**3 * nnn + 3 * x * x * y * nns + 3 * x * y * y * nss + y**3 * sss) / square**1.5
        left = self.left
        if self.batch > 1:
            square, left = max(square, left * square + (1 - left) * x * x * nn), 1.0
        return _hall(value / math.sqrt(square * n / (n - 1) * left), skewness, n)


def _hall(standardized: float, skewness: float, n: int) -> float:
    """Hall's monotone transformation of a studentized mean (1992, JRSS B 54, 221), without its factor's sign.

    Args:
        standardized: (mean - truth) / standard deviation.
        skewness: of the values.
        n: values.
    """
    s, g = standardized, skewness
    return math.sqrt(n) * (s + g * s**2 / 3 + g**2 * s**3 / 27 + g / (6 * n))


def _influence(without: Floats) -> Floats:
    """Influence of each value on an estimate, from the estimates without it: their standard error is std / sqrt(n)."""
    found: Floats = (len(without) - 1) * (without.mean() - without)
    return found


def accepted(excess: Callable[[float], float], start: float, value: float) -> tuple[float, float]:
    """Ends of the set of scales >= 0 at which |excess| is at most 1.

    Args:
        excess: a signed statistic over its critical value, above 0 where the true scale is larger; takes infinity.
        start: a scale, > 0, near which to look.
        value: the estimate, which belongs to the set where it is positive.
    """
    grid = [start * 2.0 ** (k / 2) for k in range(-_OCTAVES, _OCTAVES + 1)] if start > 0 else []
    if 0 < value < math.inf:
        grid = sorted({*grid, value})
    inside = [scale for scale in grid if abs(excess(scale)) <= 1 or scale == value]
    top = abs(excess(math.inf)) <= 1
    if not grid:
        return 0.0, math.inf if top else 0.0
    if not inside:
        if top:
            return grid[-1], math.inf
        return (0.0, 0.0) if excess(grid[0]) < 0 else (math.inf, math.inf)
    first, last = grid.index(inside[0]), grid.index(inside[-1])
    low = 0.0 if first == 0 else _end(excess, inside[0], grid[first - 1])
    high = math.inf if top or last == len(grid) - 1 else _end(excess, inside[-1], grid[last + 1])
    return low, high


def _end(excess: Callable[[float], float], inside: float, outside: float) -> float:
    """The end of the set between a scale in it and one outside."""
    for _ in range(_HALVINGS):
        middle = math.sqrt(inside * outside)
        if abs(excess(middle)) <= 1:
            inside = middle
        else:
            outside = middle
    return inside


def checked(check: Callable[..., T], name: str, value: Any) -> T:
    """Return what a check of an argument returns, and raise its error as a NoiseError."""
    try:
        return check(name, value)
    except (TypeError, ValueError) as error:
        raise NoiseError(str(error)) from error


def checked_population(population: int | None) -> int | None:
    """The number of examples of a finite set."""
    return None if population is None else checked(whole, "population", population)


def ratio(noise: float, signal: float) -> float:
    """Ratio, infinite without signal, NaN without either."""
    if signal == 0:
        return math.nan if noise == 0 else math.copysign(math.inf, noise)
    return noise / signal


def _examples(count: int) -> str:
    return "one example each" if count == 1 else f"{count} examples each"
