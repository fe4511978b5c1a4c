"""Seconds of a data-parallel step on any number of devices: fitted to a few, extrapolated with an interval.

    model = fit(steps, gradient_bytes=4e6, buckets=4, link=link)       # steps: devices, batch, reduction, seconds
    model.step(64, 2048), model.efficiency(64, 2048)
    model.over(Link.parse("100gbe")).step(4096, 131072)

A device with b examples computes for c(b) = fixed + example b seconds. Where gradients are exchanged, DDP's own work
(hooks, copies into buckets and back) adds `handling`, and the link takes X seconds for k buckets of one size. A share
`overlap` of the computing hides exchange, but for the last bucket, whose gradients are there when the backward pass has
ended:

    step = c(b) + handling + max(X / k, X - overlap c(b))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import theory
from depthgauge.formats.arguments import whole
from depthgauge.parallel.links import Link
from depthgauge.stats import Estimate, laws
from depthgauge.theory import Algorithm
from depthgauge.theory.arguments import non_negative

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
REDUCTIONS = ("none", "waited", "overlapped")
STARTS = (0.1, 0.5, 0.9)  # overlaps that a fit starts from
EDGE = 1e-6  # share of the shortest step that is none
MOST = (math.inf, math.inf, math.inf, 1.0)  # fixed, example, handling, overlap
PRIOR = 0.5  # sd of an overlap of which the steps say nothing: it lies between 0 and 1


def exposed_seconds(compute: float, exchange: float, overlap: float, last: float) -> float:
    """Seconds of exchanging gradients that no computing hides.

    Args:
        compute: seconds of computing a step.
        exchange: seconds of all buckets together.
        overlap: share of the computing under which exchange runs.
        last: seconds of the last bucket, which is never hidden.
    """
    return max(last, exchange - overlap * compute)


@dataclass(frozen=True)
class StepModel:
    """A step's seconds by number of devices and batch size.

    Attributes:
        fixed: seconds of computing a step, whatever its examples.
        example: seconds more for each example on a device.
        handling: seconds that a device adds where gradients are exchanged, whatever their number of devices.
        overlap: share of the computing that hides exchange; from 0 to 1 where the steps leave it open.
        gradient_bytes: of a device's gradients.
        buckets: in which they are exchanged.
        link: between the devices.
        misfit: standard deviation of ln(measured / fitted) over the configurations that it was fitted to.
        freedom: their number less that of the figures fitted.
        algorithm: of the all-reduce.
        covariance: (4, 4) of fixed, example, handling and overlap, given the link.
        at_ends: (2, 4) the same figures, fitted with the link at the lower and upper ends of its seconds: where it is
            the link that was measured, what it takes too little the others make up for.
        foreign: whether the link is another one than that of the fit.
    """

    fixed: Estimate
    example: Estimate
    handling: Estimate
    overlap: Estimate
    gradient_bytes: float
    buckets: int
    link: Link
    misfit: float
    freedom: int
    algorithm: Algorithm = "ring"
    covariance: Floats = field(default_factory=lambda: np.zeros((4, 4)), repr=False, compare=False)
    at_ends: Floats | None = field(default=None, repr=False, compare=False)
    foreign: bool = False

    def over(self, link: Link, algorithm: Algorithm | None = None) -> StepModel:
        """The same devices, joined by another link."""
        return replace(
            self, link=link, algorithm=algorithm or self.algorithm, foreign=link != self.link or self.foreign
        )

    def exchange(self, devices: int) -> Estimate:
        """Seconds of exchanging all buckets, one after another."""
        found = self.link.allreduce(self.gradient_bytes / self.buckets, devices, self.algorithm)
        return _times(found, self.buckets)

    def paced(self, factor: float) -> StepModel:
        """Devices that compute `factor` times as long, over the same link."""
        scale = np.array([factor, factor, factor, 1.0])
        slower = (_times(each, factor) for each in (self.fixed, self.example, self.handling))
        fixed, example, handling = slower
        covariance = self.covariance * scale * scale[:, None]
        at_ends = None if self.at_ends is None else self.at_ends * scale
        return replace(
            self, fixed=fixed, example=example, handling=handling, covariance=covariance, at_ends=at_ends
        )  # fmt: skip

    def step(self, devices: int, batch: int, reduction: str = "overlapped") -> Estimate:
        """Seconds of a step, with a 95 % prediction interval that holds the model's misfit.

        Args:
            devices: that share the batch; the slowest, with the most examples, decides.
            batch: examples over all devices.
            reduction: of the gradients, as in `fit`.

        Raises:
            ValueError: a number below 1, or no such reduction.
        """
        found = self._estimate(lambda compute, more: compute + more, devices, batch, reduction)
        return replace(found, unit="s")

    def efficiency(self, devices: int, batch: int) -> Estimate:
        """Examples a second over those of as many devices that exchange nothing; 1 for a single device.

        The 95 % interval is that of two steps that are measured, each with a misfit of its own.

        Args:
            devices: that share the batch.
            batch: examples over all devices.

        Raises:
            ValueError: a number below 1.
        """
        found = self._estimate(lambda compute, more: compute / (compute + more), devices, batch, steps=2)
        return replace(found, high=min(found.high, 1.0)) if devices > 1 else replace(found, low=1.0, high=1.0)

    def _estimate(
        self,
        figure: Callable[[float, float], float],
        devices: int,
        batch: int,
        reduction: str = "overlapped",
        *,
        steps: int = 1,
    ) -> Estimate:
        """A figure of the seconds of computing, and of those that exchanging adds.

        The spread of its logarithm is that of the fitted figures, of the link, and of the misfit of so many `steps`.
        """
        if reduction not in REDUCTIONS:
            raise ValueError(f"a reduction is {', '.join(REDUCTIONS)}, not {reduction!r}")
        shard = -(-whole("batch", batch) // whole("devices", devices))
        exchange, theta = self.exchange(devices), self._theta
        talks = devices > 1 and reduction != "none"

        def logarithm(theta: Floats, seconds: float) -> float:
            fixed, example, handling, overlap = np.clip(theta, 0.0, MOST).tolist()
            compute = max(fixed + example * shard, 1e-12)
            hiding = overlap * (reduction == "overlapped")
            more = handling + exposed_seconds(compute, seconds, hiding, seconds / self.buckets)
            return math.log(figure(compute, more if talks else 0.0))

        value = logarithm(theta, exchange.value)
        low, high = (theta, theta) if self.at_ends is None else self.at_ends
        spans: tuple[float, ...]
        if self.foreign:
            spans = (
                logarithm(high, exchange.value) - logarithm(low, exchange.value),
                logarithm(theta, exchange.high) - logarithm(theta, exchange.low),
            )
        else:
            spans = (logarithm(high, exchange.high) - logarithm(low, exchange.low),)
        variance = steps * self.misfit**2 + sum((span / 2 / _z()) ** 2 for span in spans)
        scales, axes = np.linalg.eigh(self.covariance)
        for scale, axis in zip(scales, axes.T, strict=True):  # both sides of each axis: at a kink their mean counts
            shift = math.sqrt(max(scale, 0.0)) * axis
            variance += ((logarithm(theta + shift, exchange.value) - logarithm(theta - shift, exchange.value)) / 2) ** 2
        reach = laws.student_quantile(0.5 + CONFIDENCE / 2, self.freedom) * math.sqrt(variance)
        method = f"{self.algorithm} over {self.link.name}, fit with {self.freedom} degrees of freedom, its misfit held"
        method += f", {100 * CONFIDENCE:g} %"
        if talks and not self.link.bounded:
            reach, method = math.nan, f"{method}; no interval, as the link was fitted to too few sizes to have one"
        value, low, high = math.exp(value), math.exp(value - reach), math.exp(value + reach)
        return Estimate(value, low, high, self.freedom, method)

    @property
    def _theta(self) -> Floats:
        return np.array([self.fixed.value, self.example.value, self.handling.value, self.overlap.value])


def fit(
    steps: pd.DataFrame, *, gradient_bytes: float, buckets: int, link: Link, algorithm: Algorithm = "ring"
) -> StepModel:
    """Fit computing and overlap to measured steps, by least squares of ln(measured / fitted).

    Each configuration counts once, by the median of its seconds.

    Args:
        steps: columns `devices`, `batch` (examples over all devices), `seconds`, and `reduction` of the gradients:
            `none`, `waited` (the backward pass waits for each bucket) or `overlapped`, as `parallel.steps` has them.
        gradient_bytes: of a device's gradients.
        buckets: in which they were exchanged.
        link: fitted to collectives of the same devices.
        algorithm: of the all-reduce.

    Raises:
        ValueError: columns that are not there, seconds that are no positive numbers, too few configurations or batch
            sizes, or a number that is out of range.
    """
    if missing := [name for name in ("devices", "batch", "reduction", "seconds") if name not in steps]:
        raise ValueError(f"steps lack the column{'s' * (len(missing) > 1)} {', '.join(missing)}")
    gradient_bytes, buckets = non_negative("gradient_bytes", gradient_bytes), whole("buckets", buckets)
    cases = steps.groupby(["devices", "batch", "reduction"])["seconds"].median().reset_index()
    measured = cases["seconds"].to_numpy(float)
    shard = np.ceil((cases["batch"] / cases["devices"]).to_numpy(float))
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise ValueError("a step takes a positive number of seconds")
    if len(set(shard)) < 2 or set(cases["reduction"]) != set(REDUCTIONS):
        raise ValueError(f"a fit takes two batch sizes or more, and steps with {', '.join(REDUCTIONS)}")
    exchange = np.array([
        np.multiply(buckets, _ends(link.allreduce(gradient_bytes / buckets, int(devices), algorithm)))
        for devices in cases["devices"]
    ])  # fmt: skip
    way = np.array(cases["reduction"].tolist())
    theta, slopes, residuals = _least_squares(_Steps(measured, shard, exchange[:, 0], way, buckets))
    at_ends = np.array([theta, theta])
    if (exchange[:, 1] != exchange[:, 2]).any():
        at_ends = np.array([_least_squares(_Steps(measured, shard, end, way, buckets))[0] for end in exchange.T[1:]])
    if (freedom := len(measured) - 4) < 1:
        raise ValueError(f"a fit of four figures takes five configurations or more; there are {len(measured)}")
    misfit = math.sqrt(float(np.square(residuals).sum()) / freedom)
    information = slopes.T @ slopes / max(misfit, 1e-6) ** 2
    information[3, 3] += PRIOR**-2
    covariance = np.asarray(np.linalg.pinv(information, hermitian=True), np.float64)
    fixed, example, handling, overlap = _figures(theta, covariance, len(measured), freedom)
    return StepModel(
        fixed, example, handling, overlap, gradient_bytes, buckets, link, misfit, freedom, algorithm, covariance,
        at_ends,
    )  # fmt: skip


def _figures(theta: Floats, covariance: Floats, count: int, freedom: int) -> list[Estimate]:
    """The fitted figures with their intervals, which end where a figure has to."""
    reach = laws.student_quantile(0.5 + CONFIDENCE / 2, freedom) * np.sqrt(np.diag(covariance))
    method = f"least squares over {count} configurations, t, {100 * CONFIDENCE:g} %"
    ends = zip(theta.tolist(), reach.tolist(), MOST, ("s", "s", "s", ""), strict=True)
    return [
        Estimate(value, max(0.0, value - half), min(most, value + half), count, method, unit)
        for value, half, most, unit in ends
    ]


def crossover(link: Link, devices: int) -> Estimate:
    """Bytes up to which recursive doubling takes no longer than a ring: infinite on two devices, 0 without alpha.

    The ends are those of alpha and beta together, wider than needed.

    Args:
        link: between the devices.
        devices: from 2.
    """
    (few, much), (many, little) = (
        theory.collective_cost("all_reduce", whole("devices", devices, 2), algorithm)
        for algorithm in ("doubling", "ring")
    )
    a, b = link.alpha, link.beta
    value, low, high = (
        math.inf if much <= little or beta == 0 else (many - few) * alpha / ((much - little) * beta)
        for alpha, beta in ((a.value, b.value), (a.low, b.high), (a.high, b.low))
    )
    return Estimate(value, low, high, min(link.alpha.n, link.beta.n), f"alpha over beta of {link.name}, 95 %", "B")


@dataclass(frozen=True)
class _Steps:
    """Configurations of a fit, an entry each."""

    measured: Floats
    shard: Floats
    exchange: Floats
    reduction: NDArray[Any]
    buckets: int

    def left(self, theta: Floats) -> Floats:
        """Return ln(measured / fitted)."""
        return np.asarray(np.log(self.measured / self._fitted(theta)[0]))

    def slopes(self, theta: Floats) -> Floats:
        """Return the derivatives of what is left, (configurations, 4)."""
        fitted, compute, open_ = self._fitted(theta)
        hidden, exchanged = theta[3] * open_, self.reduction != "none"
        columns = [1 - hidden, (1 - hidden) * self.shard, exchanged.astype(float), -compute * open_]
        return np.asarray(-np.stack(columns, 1) / fitted[:, None])

    def _fitted(self, theta: Floats) -> tuple[Floats, Floats, Floats]:
        """Seconds of the steps and of their computing, and 1 where more overlap would hide more, 0 elsewhere."""
        compute, most = theta[0] + theta[1] * self.shard, self.exchange * (1 - 1 / self.buckets)
        overlapped = self.reduction == "overlapped"
        more = theta[2] + self.exchange - np.minimum(most, theta[3] * compute) * overlapped
        return compute + more * (self.reduction != "none"), compute, overlapped * (theta[3] * compute < most) * 1.0


def _least_squares(steps: _Steps) -> tuple[Floats, Floats, Floats]:
    """Figures, slopes of the fit by each, and what is left: the best of several starts."""
    from scipy.optimize import least_squares  # noqa: PLC0415 - takes long to load

    half = float(steps.measured.min()) / 2
    scale = np.array([half, float((steps.measured / steps.shard).min()) / 2, half, 1.0])
    found = [
        least_squares(
            lambda theta: steps.left(theta * scale), [1.0, 1.0, 0.1, overlap],
            lambda theta: steps.slopes(theta * scale) * scale, bounds=([0.0, 1e-6, 0.0, 0.0], MOST),
        )
        for overlap in STARTS
    ]  # fmt: skip
    best = min(found, key=lambda each: float(each.cost))
    theta = np.where(best.x < EDGE, 0.0, best.x) * scale
    return theta, steps.slopes(theta), steps.left(theta)


def _times(estimate: Estimate, factor: float) -> Estimate:
    """Seconds times a number; the ends are the value where there are none."""
    value, low, high = (factor * each for each in _ends(estimate))
    return replace(estimate, value=value, low=low, high=high)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    """Value and ends; the ends are the value where there are none."""
    value, low, high = estimate.ends
    return value, value if math.isnan(low) else low, value if math.isnan(high) else high


def _z() -> float:
    return laws.normal_quantile(0.5 + CONFIDENCE / 2)
