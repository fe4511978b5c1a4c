"""Steps to a target, with censoring: a run that never gets there is neither missing nor at the maximum."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from depthgauge.stats import laws
from depthgauge.stats.calibration import coverage
from depthgauge.stats.comparison import Comparison, compare
from depthgauge.stats.estimate import Estimate, rate, summary
from depthgauge.stats.location import FEWEST, Floats, Location, Points, Student, check_confidence, level

EXACT_SPLITS = 50_000
"""Up to this many ways to split the runs into two groups the log-rank test enumerates them all (9 + 9 runs)."""


@dataclass(frozen=True)
class Survival:
    """Share of runs that have not reached the target yet (Kaplan & Meier 1958, JASA 53, 457).

    Attributes:
        steps: shape (k,), the different steps at which a run reached the target, ascending.
        share: shape (k,), share of runs still without it after each of them.
        at_risk: shape (k,), runs under observation just before.
        events: shape (k,), runs that reached it then.
        n: runs.
        last: longest observation.
    """

    steps: Floats
    share: Floats
    at_risk: NDArray[np.int64]
    events: NDArray[np.int64]
    n: int
    last: float

    @property
    def reached(self) -> Estimate:
        """Share of all runs that reached the target while watched."""
        return rate(int(self.events.sum()), self.n)

    def median(self, confidence: float = 0.95, *, unit: str = "steps") -> Estimate:
        """First step by which half the runs had reached the target; infinite, beyond the last watched, where fewer did.

        The interval holds the steps at which a test of "half are left" is not rejected, on the scale log(-log S) with
        Greenwood's variance (Brookmeyer & Crowley 1982, Biometrics 38, 29; Klein & Moeschberger 2003, section 4.5).
        Where every run was watched to one budget, `stats.median` with infinity for those that never reached the target
        is exact, and the better choice with few runs. Where no step up to the last that was watched is in it, the
        interval begins there; without any arrival, where so many late runs would be rare by chance (2^-n at most half
        of alpha), else at 0.
        """
        value = _first(self.steps, self._half_or_less)
        if self.n < FEWEST:
            return Estimate(value, math.nan, math.nan, self.n, f"points only: {self.n} of at least {FEWEST} runs", unit)
        z = laws.normal_quantile(0.5 + check_confidence(confidence) / 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            hazard = -np.log(self.share)
            half = z * np.sqrt(self._greenwood) / hazard
            lower, upper = np.exp(-hazard * np.exp(half)), np.exp(-hazard * np.exp(-half))
        none_left = self.share == 0  # Greenwood's variance is 0/0 there and bounds nothing from above
        lower[none_left], upper[none_left] = 0.0, 1.0
        method = f"Kaplan-Meier median, Brookmeyer-Crowley, {100 * confidence:g} %, {self._censored} censored"
        watched = self.last if len(self.steps) or 2.0**-self.n <= level(confidence) / 2 else 0.0
        low, high = min(_first(self.steps, lower <= 0.5), watched), _first(self.steps, upper <= 0.5)
        return Estimate(value, low, high, self.n, method, unit)

    def restricted_mean(self, horizon: float, confidence: float = 0.95, *, unit: str = "steps") -> Estimate:
        """Mean of min(steps to target, horizon): the area under the curve (Klein & Moeschberger 2003, section 4.5).

        Greenwood's variance times n / (n - 1), with Student's t: where no run is censored before the horizon this is
        the ordinary mean of min(steps, horizon) with its ordinary interval.

        Raises:
            ValueError: a horizon that is not positive, or beyond the longest observation.
        """
        return summary(self._restricted(horizon), check_confidence(confidence), unit=unit)

    def _restricted(self, horizon: float) -> Location:
        if not 0 < horizon <= max(self.last, float(self.steps.max(initial=0.0))):
            raise ValueError(f"a horizon is positive and within the longest run, {self.last:g} steps; got {horizon!r}")
        early = self.steps < horizon
        edges = np.concatenate([[0.0], self.steps[early], [horizon]])
        areas = np.diff(edges) * np.concatenate([[1.0], self.share[early]])
        value = float(areas.sum())
        if self.n < FEWEST:
            return Points(value, self.n, f"points only: {self.n} of at least {FEWEST} runs")
        ahead = np.cumsum(areas[::-1])[::-1][1:]  # area from each early event on
        left = self.at_risk[early] - self.events[early]
        terms = np.divide(
            ahead**2 * self.events[early], self.at_risk[early] * left, out=np.zeros_like(ahead), where=left > 0
        )
        error = math.sqrt(float(terms.sum()) * self.n / (self.n - 1))
        method = f"mean of min(steps, {horizon:g}), Kaplan-Meier, Student t, {self._censored} censored"
        return Student(value, error, self.n - 1, self.n, method, 2.0**-self.n)

    @property
    def _half_or_less(self) -> NDArray[np.bool_]:
        """Mask the steps where at most half are left, in integers: a product of rounded shares cannot tell."""
        there = self.share <= 0.5
        left = self.at_risk - self.events
        for step in np.flatnonzero(np.isclose(self.share, 0.5, rtol=1e-9)):
            there[step] = 2 * math.prod(left[: step + 1].tolist()) <= math.prod(self.at_risk[: step + 1].tolist())
        return there

    @property
    def _censored(self) -> int:
        return self.n - int(self.events.sum())

    @property
    def _greenwood(self) -> Floats:
        left = self.at_risk - self.events
        with np.errstate(divide="ignore"):
            return np.cumsum(self.events / (self.at_risk * left.astype(np.float64)))


def _first(steps: Floats, there: NDArray[np.bool_]) -> float:
    return float(steps[np.argmax(there)]) if there.any() else math.inf


def survival(steps: ArrayLike, reached: ArrayLike) -> Survival:
    """The curve of runs that have not reached the target.

    Args:
        steps: shape (n,); the step at which a run reached the target, or at which it was last watched.
        reached: shape (n,), boolean; False for a run that was stopped, or diverged, before it. A diverged run can
            never reach it: give it the full budget as its last step, not the step of its end.

    Raises:
        ValueError: shapes that differ; a step that is negative or not finite.
    """
    at, events = _runs(steps, reached)
    times = np.unique(at[events])
    at_risk = len(at) - np.searchsorted(np.sort(at), times, "left")
    counts = np.searchsorted(np.sort(at[events]), times, "right") - np.searchsorted(np.sort(at[events]), times, "left")
    share = np.cumprod(1 - counts / at_risk, dtype=np.float64)
    return Survival(times, share, at_risk, counts, len(at), float(at.max(initial=0.0)))


def _runs(steps: ArrayLike, reached: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    at, events = np.asarray(steps, dtype=np.float64), np.asarray(reached, dtype=bool)
    if at.ndim != 1 or at.shape != events.shape:
        raise ValueError(f"steps and reached have one shape (n,); got {at.shape} and {events.shape}")
    if not np.all(np.isfinite(at) & (at >= 0)):
        raise ValueError("steps are finite and not negative; a run that never reached the target has reached=False")
    return at, events


def restricted_mean_difference(
    a: Survival,
    b: Survival,
    horizon: float,
    *,
    margin: float | None = None,
    confidence: float = 0.95,
    unit: str = "steps",
) -> Comparison:
    """Steps that b saves within the horizon: restricted mean of a minus that of b, independent groups, Welch's t.

    Needs no proportional hazards (Royston & Parmar 2013, BMC Med. Res. Methodol. 13, 152).

    Args:
        a: the first group's curve.
        b: the second's.
        horizon: common budget, within the longest run of both.
        margin: the largest difference, in steps, that does not matter.
        confidence: 1 - alpha.
        unit: unit of steps.

    Raises:
        ValueError: as in `Survival.restricted_mean`.
    """
    first, second = a._restricted(horizon), b._restricted(horizon)
    n, value = first.n + second.n, first.value - second.value
    location: Location
    if isinstance(first, Student) and isinstance(second, Student):
        error = math.hypot(first.standard_error, second.standard_error)
        weights = ((sample.standard_error / error) ** 4 / sample.df for sample in (first, second)) if error else ()
        df = 1 / total if (total := sum(weights)) else math.inf
        method = f"difference of restricted means at {horizon:g}, Welch t"
        location = Student(value, error, df, n, method, 1 / math.comb(n, first.n))
    else:
        location = Points(value, n, f"points only: fewer than {FEWEST} runs in a group")
    return compare(location, reference=0.0, margin=margin, confidence=confidence, unit=unit)


@dataclass(frozen=True)
class LogRank:
    """Log-rank test of whether two groups reach the target at the same pace.

    Attributes:
        observed: runs of the first group that reached the target.
        expected: how many would have, had both groups one pace. Fewer observed than expected: the first is slower.
        z: (observed - expected) in standard deviations; NaN where nothing was reached.
        p: two-sided.
        n: runs of both groups.
        method: in one line.
    """

    observed: int
    expected: float
    z: float
    p: float
    n: int
    method: str


def log_rank(steps_a: ArrayLike, reached_a: ArrayLike, steps_b: ArrayLike, reached_b: ArrayLike) -> LogRank:
    """Log-rank test of two independent groups (Mantel 1966, Cancer Chemother. Rep. 50, 163).

    Up to 50,000 splits it is exact: every way to deal the runs into groups of these sizes is counted, which asks that
    runs of both groups are censored alike, as by a common budget. Beyond, the normal law. For an effect with an
    interval see `restricted_mean_difference`; for pairs of one seed `earlier`.

    Raises:
        ValueError: as in `survival`.
    """
    (at_a, events_a), (at_b, events_b) = _runs(steps_a, reached_a), _runs(steps_b, reached_b)
    n_a, n = len(at_a), len(at_a) + len(at_b)
    observed = int(events_a.sum())
    if min(n_a, n - n_a) < FEWEST:
        return LogRank(observed, math.nan, math.nan, math.nan, n, f"no test: fewer than {FEWEST} runs in a group")
    at, events = np.concatenate([at_a, at_b]), np.concatenate([events_a, events_b])
    pooled = survival(at, events)
    hazards = pooled.events / pooled.at_risk
    # A run's share of the expected count is the hazard summed up to its own end.
    cumulative = np.concatenate([[0.0], np.cumsum(hazards)])[np.searchsorted(pooled.steps, at, "right")]
    scores = events - cumulative
    at_risk_a = n_a - np.searchsorted(np.sort(at_a), pooled.steps, "left")
    share = at_risk_a / pooled.at_risk
    ties = np.divide(
        pooled.at_risk - pooled.events,
        pooled.at_risk - 1,
        out=np.zeros(len(hazards)),
        where=pooled.at_risk > 1,
    )
    variance = float((pooled.events * share * (1 - share) * ties).sum())
    excess = float(scores[:n_a].sum())
    z = excess / math.sqrt(variance) if variance > 0 else math.nan
    if variance == 0:
        p, method = 1.0, "log-rank, nothing to compare"
    elif math.comb(n, n_a) <= EXACT_SPLITS:
        p, method = _all_splits(scores, n_a), f"log-rank, all {math.comb(n, n_a)} splits"
    else:
        p, method = min(1.0, 2 * laws.student_upper(abs(z), math.inf)), "log-rank, normal"
    return LogRank(observed, observed - excess, z, p, n, method)


def _all_splits(scores: Floats, n_a: int) -> float:
    """Share of splits whose first group's score is as far from 0, the mean of all splits, as the observed one."""
    chosen = np.fromiter(itertools.chain.from_iterable(itertools.combinations(range(len(scores)), n_a)), np.intp)
    sums = np.abs(scores[chosen.reshape(-1, n_a)].sum(axis=1))
    slack = 1e-12 * float(np.abs(scores).sum())  # ties must count as ties
    return float(np.mean(sums >= abs(scores[:n_a].sum()) - slack))


def earlier(
    steps_a: ArrayLike,
    reached_a: ArrayLike,
    steps_b: ArrayLike,
    reached_b: ArrayLike,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Compare the share of decidable pairs (same seed) in which a was the earlier with 1/2.

    A pair is decided where one reached the target while the other was still watched. Ties and pairs in which neither
    did decide nothing; `method` counts them. Exact sign test, and the interval that it gives.

    Raises:
        ValueError: as in `survival`; groups of different size.
    """
    (at_a, events_a), (at_b, events_b) = _runs(steps_a, reached_a), _runs(steps_b, reached_b)
    if at_a.shape != at_b.shape:
        raise ValueError(f"pairs need two groups of one size; got {len(at_a)} and {len(at_b)} runs")
    first_a = events_a & ((at_a < at_b) | (~events_b & (at_a == at_b)))
    first_b = events_b & ((at_b < at_a) | (~events_a & (at_a == at_b)))
    wins, decided = int(first_a.sum()), int(first_a.sum() + first_b.sum())
    comparison = coverage(wins, decided, 0.5, confidence=confidence)
    method = f"{comparison.effect.method}; {len(at_a) - decided} of {len(at_a)} pairs undecided"
    return replace(comparison, effect=replace(comparison.effect, method=method))
