"""Predictions of simple models of stochastic gradient descent for batch size, learning rate and devices.

>>> noise_scale(covariance_trace=400.0, gradient_norm=2.0)
100.0
>>> noisy_quadratic(1.0, learning_rate=0.5, batch_size=1, steps=2, noise=0.0, start=1.0)
0.03125
>>> ring_allreduce_time(4e9, devices=4, bandwidth=1e10, latency=1e-5)
0.60006
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative, positive, whole


def noise_scale(covariance_trace: float, gradient_norm: float) -> float:
    """Simple gradient noise scale, in examples: tr(Sigma) / |G|^2.

    Args:
        covariance_trace: trace of the per-example gradient covariance.
        gradient_norm: |G|, norm of the true gradient (not squared); 0 gives infinity.

    The batch size at which noise and signal of a gradient estimate are equal. McCandlish, Kaplan and Amodei, "An
    empirical model of large-batch training" (2018), eq. 2.9.
    """
    trace, norm = non_negative("covariance_trace", covariance_trace), non_negative("gradient_norm", gradient_norm)
    if norm == 0:
        return math.inf if trace > 0 else math.nan
    return trace / norm / norm


class NoiseEstimate(NamedTuple):
    """The gradient's estimates from two batch sizes.

    Attributes:
        covariance_trace: unbiased estimate of tr(Sigma); may come out negative.
        gradient_norm_squared: unbiased estimate of |G|^2; may come out negative.
        scale: their ratio: biased, and NaN where an estimate is not positive. Average the other two over many batches
            before dividing.
    """

    covariance_trace: float
    gradient_norm_squared: float
    scale: float


def noise_scale_from_batches(small: int, small_norm_squared: float, big: int, big_norm_squared: float) -> NoiseEstimate:
    """Noise scale from the squared norm of the mean gradient at two batch sizes.

    E|G_B|^2 = |G|^2 + tr(Sigma) / B, solved for both. McCandlish 2018, appendix A.1.
    """
    small, big = whole("small", small), whole("big", big)
    if small >= big:
        raise ValueError(f"the small batch ({small}) must be smaller than the big one ({big})")
    at_small = non_negative("small_norm_squared", small_norm_squared)
    at_big = non_negative("big_norm_squared", big_norm_squared)
    trace = (at_small - at_big) / (1 / small - 1 / big)
    squared = (big * at_big - small * at_small) / (big - small)
    return NoiseEstimate(trace, squared, trace / squared if trace >= 0 and squared > 0 else math.nan)


def noisy_quadratic(
    curvature: ArrayLike,
    learning_rate: float,
    batch_size: float,
    steps: int | ArrayLike,
    *,
    noise: ArrayLike | None = None,
    start: ArrayLike = 1.0,
) -> float | Array:
    """Expected loss of SGD on a quadratic whose gradients are noisy, exact at every step.

    Args:
        curvature: eigenvalues h_i of the Hessian, >= 0; a number or shape (d,).
        learning_rate: alpha.
        batch_size: B.
        steps: t, number of updates done; an array of them gives an array.
        noise: per-example gradient variance c_i along each eigenvector; by default c_i = h_i, as in the paper.
        start: E[theta_i^2] before the first step.

    L(t) = (1/2) sum_i h_i E[theta_i(t)^2], with
    E[theta^2](t) = r^t start + (alpha^2 c / B) (1 - r^t) / (1 - r), r = (1 - alpha h)^2. Where alpha h > 2 it diverges,
    to infinity in the end. Zhang et al., "Which algorithmic choices matter at which batch sizes? Insights from a noisy
    quadratic model" (2019), section 3.
    """
    h = np.atleast_1d(np.asarray(curvature, dtype=np.float64))
    c = h if noise is None else np.broadcast_to(np.asarray(noise, dtype=np.float64), h.shape)
    initial = np.broadcast_to(np.asarray(start, dtype=np.float64), h.shape)
    for name, values in (("curvature", h), ("noise", c), ("start", initial)):
        if not np.all(np.isfinite(values) & (values >= 0)):
            raise ValueError(f"{name} has an entry that is negative or not finite")
    alpha, batch = non_negative("learning_rate", learning_rate), positive("batch_size", batch_size)
    t = np.asarray(steps)
    if not (np.issubdtype(t.dtype, np.integer) and np.all(t >= 0)):
        raise ValueError(f"steps is {steps!r}, where whole numbers >= 0 were expected")
    with np.errstate(all="ignore"):
        factor = 1 - alpha * h
        power = np.abs(factor) ** (2.0 * t[..., None])
        gap = alpha * h * (2 - alpha * h)  # 1 - r
        # 1 - r^t without cancellation; where r = 1 the sum of t equal terms is t.
        missing = -np.expm1(2.0 * t[..., None] * np.log(np.abs(factor)))
        series = np.where(
            gap == 0, t[..., None] * 1.0, np.where(t[..., None] == 0, 0.0, missing) / np.where(gap == 0, 1.0, gap)
        )
        # A direction without curvature has no loss, however far its parameter wanders.
        terms = np.where(
            h == 0,
            0.0,
            h * (np.where(initial == 0, 0.0, power * initial) + np.where(c == 0, 0.0, alpha**2 * c / batch * series)),
        )
        loss = np.asarray(terms.sum(axis=-1) / 2)
    return float(loss) if loss.ndim == 0 else loss


def ring_allreduce_time(
    bytes: float,  # noqa: A002 - the field's word, as in every formula of this kind
    devices: int,
    bandwidth: float,
    latency: float = 0.0,
) -> float:
    """Seconds for a ring all-reduce.

    Args:
        bytes: size of the buffer on each device.
        devices: p.
        bandwidth: bytes per second that each device sends to its neighbour.
        latency: seconds per message.

    2 (p - 1) messages of bytes / p each: 2 (p - 1) latency + 2 (p - 1) / p bytes / bandwidth. The bandwidth term is
    the least any all-reduce can have. Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations" (2009).
    """
    p = whole("devices", devices)
    size, bandwidth = non_negative("bytes", bytes), positive("bandwidth", bandwidth)
    return 2 * (p - 1) * (non_negative("latency", latency) + size / p / bandwidth)
