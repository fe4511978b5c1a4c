"""Steps to a target against batch size: McCandlish's hyperbola, fitted.

    found = planning.fit((1, 4, 16, 64, 256), steps)      # steps: (seeds, batch sizes)
    found.critical_batch, found.least_steps, found.least_examples
    found.steps(1024), found.predicted(1024)

The hyperbola (S / Smin - 1)(E / Emin - 1) = 1 with E = B S examples is S = Smin (1 + Bc / B), Bc = Emin / Smin the
critical batch size: McCandlish, Kaplan and Amodei, "An empirical model of large-batch training" (2018), eq. 2.11.
Its regimes are those of `theory.regime_bounds`: up to Bc / 4 a training takes at most 5/4 of the least examples
(perfect scaling: twice the batch, nearly half the steps); from 4 Bc at most 5/4 of the least steps (maximal data
parallelism: a larger batch buys almost nothing). Returns diminish between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge import stats, theory
from depthgauge.stats import Estimate

Floats = NDArray[np.float64]

REACH = 1000.0  # a critical batch so many times beyond the batch sizes is none: 0, or infinite
EDGE = 1e-3  # ln of the critical batch so near to an end of the reach is at it
_COARSE = 81  # logarithms of the critical batch tried first
_ROUNDS = 40  # of expectation and maximization, where runs are censored


@dataclass(frozen=True)
class Hyperbola:
    """Steps S = least_steps (1 + critical_batch / B), fitted to runs of several seeds.

    Attributes:
        batch: (k,) batch sizes that it was fitted to, ascending.
        least_steps: Smin, steps at an infinite batch, over seeds.
        critical_batch: Bc, in examples; 0 or infinite where the steps show no bend within a factor `REACH`.
        least_examples: Emin = Smin Bc, examples at an infinitesimal batch.
        residuals: (k,) ln of the geometric mean of the measured steps over the fitted ones; where runs are censored, of
            their expected steps.
        pseudo: (n, 2) jackknife pseudo-values of ln Smin and ln Bc, one row a seed: paired comparisons of two fits over
            the same seeds are made of these.
        deviations: (n, k) jackknife pseudo-values of the residuals, one row a seed: whether the curve is one is asked
            of these.
        censored: runs that had not arrived.
    """

    batch: tuple[float, ...]
    least_steps: Estimate
    critical_batch: Estimate
    least_examples: Estimate
    residuals: Floats = field(repr=False)
    pseudo: Floats = field(repr=False)
    deviations: Floats = field(repr=False)
    censored: int
    _theta: tuple[float, float] = field(repr=False)
    _sampling: float = field(repr=False)  # standard error of a mean of ln S over the seeds, had every run arrived

    def steps(self, batch: ArrayLike) -> Floats:
        """Fitted steps, of the batch sizes' shape."""
        return np.asarray(np.exp(_curve(self._theta, np.asarray(batch, dtype=np.float64))))

    @property
    def perfect_until(self) -> float:
        """The batch size at which perfect scaling ends."""
        return self._bounds[0]

    @property
    def maximal_from(self) -> float:
        """The batch size from which a larger one buys almost nothing."""
        return self._bounds[1]

    @property
    def _bounds(self) -> tuple[float, float]:
        critical = self.critical_batch.value
        return theory.regime_bounds(critical) if math.isfinite(critical) else (critical, critical)

    def regime(self, batch: float) -> str:
        """`perfect scaling`, `diminishing returns` or `maximal data parallelism`."""
        critical = self.critical_batch.value
        return theory.regime(batch, critical) if math.isfinite(critical) else "perfect scaling"

    @cached_property
    def scatter(self) -> float:
        """Standard deviation of ln steps about the curve, k - 2 degrees of freedom; NaN of two batch sizes."""
        k = len(self.batch)
        return math.sqrt(float(np.square(self.residuals).sum()) / (k - 2)) if k > 2 else math.nan

    def predicted(self, batch: float, confidence: float = 0.95) -> Estimate:
        """Steps that as many runs would take at a further batch size, their geometric mean, with prediction interval.

        The law of a further batch size is that of the ones fitted: Student's t of k - 2 degrees of freedom times the
        scatter of the curve's residuals and the curve's own uncertainty, linearized (Bates and Watts 1988, eq. 2.24).
        So it allows for a curve that is no hyperbola as far as the fitted batch sizes show it; where these happen to
        lie nearer to the curve than seeds would have them, the spread over seeds takes the scatter's place. No interval
        of less than three batch sizes.
        """
        k, value = len(self.batch), float(self.steps(batch))
        method = f"prediction by the hyperbola of {k} batch sizes, t"
        if k < 3:
            return Estimate(value, math.nan, math.nan, k, f"points only: {method}")
        slopes, at = _slopes(self._theta[1], np.array(self.batch)), _slopes(self._theta[1], np.array([batch]))[0]
        spread = float(at @ np.linalg.pinv(slopes.T @ slopes) @ at)
        seeds = _student(confidence, k * (len(self.pseudo) - 1)) * self._sampling if len(self.pseudo) > 1 else 0.0
        reach = max(_student(confidence, k - 2) * self.scatter, seeds) * math.sqrt(1 + spread)
        low, high = (_exp(math.log(value) + side * reach) for side in (-1, 1))
        return Estimate(value, low, high, k, f"{method}, {100 * confidence:g} %")


def fit(
    batch: Sequence[float], steps: ArrayLike, censored: ArrayLike | None = None, *, confidence: float = 0.95
) -> Hyperbola:
    """Fit ln S = ln Smin + ln(1 + Bc / B), by least squares on the logarithms of all runs.

    Every batch size weighs the same. A censored run is known to need more than its steps: it counts with what a normal
    law of ln S about the curve expects beyond them (expectation and maximization, Tobin's model). Intervals: Student's
    t on jackknife pseudo-values of ln Smin and ln Bc, leaving out one seed in turn; so values and intervals are those
    of the jackknife, corrected for bias. They are about the seeds alone: given the learning rates, and the curve.

    Args:
        batch: (k,) at least two batch sizes, ascending.
        steps: (n, k) steps to the target, one row a seed; the budget where a run did not arrive.
        censored: (n, k) runs that did not; None: all did.
        confidence: of the intervals.

    Raises:
        ValueError: shapes do not agree, batch sizes do not ascend, or steps are not positive and finite.
    """
    sizes, runs = np.asarray(batch, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    late = np.zeros(runs.shape, dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
    if sizes.ndim != 1 or len(sizes) < 2 or runs.ndim != 2 or runs.shape[1] != len(sizes) or late.shape != runs.shape:
        raise ValueError(f"steps are (seeds, batch sizes), of two sizes or more; got {runs.shape} for {sizes.shape}")
    if not (len(runs) and (sizes[0] > 0) and (np.diff(sizes) > 0).all()):
        raise ValueError(f"batch sizes are positive and ascend, of one seed at least; got {tuple(batch)}")
    if not (np.isfinite(runs).all() and (runs > 0).all()):
        raise ValueError("steps are positive and finite; a run that never arrived has its budget, and is censored")
    logs = np.log(runs)
    theta, residuals, spread = _fit(sizes, logs, late)
    whole, n = (_figures(theta, sizes), residuals), len(runs)
    pseudo, deviations = np.full((n, 3), math.nan), np.full(runs.shape, math.nan)
    for i in range(n if n > 1 else 0):
        left, residual, _ = _fit(sizes, np.delete(logs, i, 0), np.delete(late, i, 0))
        with np.errstate(invalid="ignore"):
            pseudo[i] = n * whole[0] - (n - 1) * _figures(left, sizes)
        deviations[i] = n * whole[1] - (n - 1) * residual
    least, critical, examples = (_estimate(pseudo[:, i], float(whole[0][i]), confidence) for i in range(3))
    sampling = math.sqrt(spread / n)
    return Hyperbola(
        tuple(sizes.tolist()), least, critical, examples, residuals, pseudo[:, :2], deviations, int(late.sum()),
        theta, sampling,
    )  # fmt: skip


def _figures(theta: tuple[float, float], batch: Floats) -> Floats:
    """Logarithms of Smin, Bc and Emin; infinite where the curve has no bend in reach."""
    least, critical = theta
    low, high = math.log(batch[0] / REACH), math.log(batch[-1] * REACH)
    if critical - low < EDGE:
        return np.array([least, -math.inf, -math.inf])
    if high - critical < EDGE:
        return np.array([-math.inf, math.inf, least + critical])
    return np.array([least, critical, least + critical])


def _estimate(pseudo: Floats, value: float, confidence: float) -> Estimate:
    """The figure whose logarithm has these pseudo-values; that of all seeds where one of them is not finite."""
    found = stats.mean(pseudo, confidence)
    if not np.isfinite(pseudo).all():
        why = "points only: without one of the seeds the curve has no bend, or there is one alone"
        return Estimate(_exp(value), math.nan, math.nan, len(pseudo), why)
    value, low, high = map(_exp, (found.value, found.low, found.high))
    return replace(found, value=value, low=low, high=high, method=f"jackknife over seeds of ln, {found.method}")


def _fit(batch: Floats, logs: Floats, late: NDArray[np.bool_]) -> tuple[tuple[float, float], Floats, float]:
    """(ln Smin, ln Bc), residuals of the mean logarithms, those of censored runs as expected, and variance over seeds.

    The variance, NaN of one seed, is the mean of those at each batch size; a censored run adds what the normal law
    leaves open of it: at its budget it would hide how far runs stray beyond.
    """
    theta, n = _least_squares(batch, logs.mean(0)), len(logs)
    if not late.any():
        return theta, logs.mean(0) - _curve(theta, batch), float(logs.var(0, ddof=1).mean()) if n > 1 else math.nan
    from scipy.special import log_ndtr  # noqa: PLC0415 - see `depthgauge.stats.laws`

    expected, variance = logs.copy(), 0.0
    for _ in range(_ROUNDS):
        curve = np.broadcast_to(_curve(theta, batch), logs.shape)
        deviation = math.sqrt(max(float(np.square(expected - curve).mean()) + variance, 1e-8))
        z = (logs[late] - curve[late]) / deviation
        hazard = np.exp(-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - log_ndtr(-z))
        expected[late] = curve[late] + deviation * hazard
        variance = float((deviation**2 * (1 + z * hazard - hazard**2)).sum()) / logs.size
        theta = _least_squares(batch, expected.mean(0))
    spread = float(expected.var(0, ddof=1).mean()) + variance * n / (n - 1) if n > 1 else math.nan
    return theta, expected.mean(0) - _curve(theta, batch), spread


def _least_squares(batch: Floats, means: Floats) -> tuple[float, float]:
    """Minimize the squares over ln Bc; ln Smin is the mean of what it leaves."""
    low, high = math.log(batch[0] / REACH), math.log(batch[-1] * REACH)

    def loss(critical: Floats) -> Floats:
        left = means - np.log1p(np.exp(critical)[:, None] / batch)
        return np.asarray(np.square(left - left.mean(1, keepdims=True)).sum(1))

    places = np.linspace(low, high, _COARSE)
    for _ in range(5):  # each time a twentieth of the distance: 1e-7 of a factor in the end
        best = int(loss(places).argmin())
        places = np.linspace(places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)], 41)
    critical = float(places[int(loss(places).argmin())])
    return float((means - np.log1p(math.exp(critical) / batch)).mean()), critical


def _curve(theta: tuple[float, float], batch: Floats) -> Floats:
    """Logarithms of the fitted steps."""
    return np.asarray(theta[0] + np.log1p(np.exp(theta[1]) / batch))


def _slopes(critical: float, batch: Floats) -> Floats:
    """(k, 2) derivatives of ln S by ln Smin and ln Bc."""
    return np.stack([np.ones_like(batch), 1 / (1 + batch * math.exp(-critical))], axis=1)


def _student(confidence: float, df: float) -> float:
    from depthgauge.stats import laws  # noqa: PLC0415 - it loads scipy

    return laws.student_quantile(0.5 + confidence / 2, df)


def _exp(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(x))
