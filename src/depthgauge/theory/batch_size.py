"""Noise of a gradient, and what a larger batch buys: steps against examples, and the learning rate.

>>> noise_scale(covariance_trace=400.0, gradient_norm=2.0)
100.0
>>> steps_at([25, 100, 400], least_steps=1000, critical_batch=100).tolist()
[5000.0, 2000.0, 1250.0]
>>> examples_at([25, 100, 400], least_steps=1000, critical_batch=100).tolist()
[125000.0, 200000.0, 500000.0]
>>> scaled_rate(100, largest_rate=0.5, noise_scale=100)
0.25
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative, positive, reals, whole

Regime = Literal["perfect scaling", "diminishing returns", "maximal data parallelism"]


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


def steps_at(batch: ArrayLike, least_steps: float, critical_batch: float) -> float | Array:
    """Steps to a target at a batch size: least_steps (1 + critical_batch / batch).

    Args:
        batch: B > 0; a number or an array.
        least_steps: steps that an unlimited batch would need.
        critical_batch: the batch size that takes twice the least steps and twice the least examples; 0 where noise
            costs nothing.

    Together with `examples_at` the hyperbola (steps / least - 1) (examples / least - 1) = 1. McCandlish et al. 2018;
    fitted to the steps of tuned trainings there, exact for none.

    Raises:
        ValueError: a batch that is not positive; a negative number.
    """
    sizes, least, critical = _batches(batch), *_curve(least_steps, critical_batch)
    with np.errstate(over="ignore"):  # to infinity
        return _plain(least * (1 + critical / sizes))


def examples_at(batch: ArrayLike, least_steps: float, critical_batch: float) -> float | Array:
    """Examples to a target at a batch size: least_steps (batch + critical_batch).

    The least is least_steps x critical_batch, that of a batch that is small against the critical one. Arguments,
    source and errors as in `steps_at`.
    """
    sizes, least, critical = _batches(batch), *_curve(least_steps, critical_batch)
    with np.errstate(over="ignore"):  # to infinity
        return _plain(least * (sizes + critical))


def batch_for(steps: ArrayLike, least_steps: float, critical_batch: float) -> float | Array:
    """Batch size that reaches the target in so many steps, the inverse of `steps_at`: critical / (steps / least - 1).

    Args:
        steps: a number or an array; at the least number of steps and below no batch is large enough: infinity.
        least_steps: as in `steps_at`, positive.
        critical_batch: as in `steps_at`.

    Raises:
        ValueError: steps or least steps that are not positive.
    """
    wanted = _batches(steps, "steps")
    least, critical = positive("least_steps", least_steps), non_negative("critical_batch", critical_batch)
    with np.errstate(over="ignore"):  # to infinity, whose batch is 0
        over = wanted / least - 1
        return _plain(np.where(over > 0, critical / np.where(over > 0, over, 1.0), np.inf))


def regime_bounds(critical_batch: float, within: float = 0.25) -> tuple[float, float]:
    """Batch sizes at which perfect scaling ends and maximal data parallelism begins.

    Args:
        critical_batch: as in `steps_at`.
        within: share by which examples, and steps, may exceed the least to count as the least.

    Up to within x critical_batch examples exceed the least by no more than that share; from critical_batch / within
    on steps do. Where to draw the lines is a convention; the names are those of Shallue et al., "Measuring the effects
    of data parallelism on neural network training" (2019).

    Raises:
        ValueError: a negative batch; a share that is not between 0 and 1.
    """
    critical, share = non_negative("critical_batch", critical_batch), positive("within", within)
    if share > 1:
        raise ValueError(f"within is {within!r}, where a share of at most 1 was expected")
    return critical * share, critical / share


def regime(batch: float, critical_batch: float, within: float = 0.25) -> Regime:
    """Name of the regime that a batch size lies in; arguments, source and errors as in `regime_bounds`."""
    (low, high), size = regime_bounds(critical_batch, within), positive("batch", batch)
    if size >= high:
        return "maximal data parallelism"
    return "perfect scaling" if size <= low else "diminishing returns"


def scaled_rate(batch: ArrayLike, largest_rate: float, noise_scale: float) -> float | Array:
    """Best learning rate of SGD at a batch size: largest_rate / (1 + noise_scale / batch).

    Args:
        batch: B > 0; a number or an array.
        largest_rate: the best rate of the gradient without noise.
        noise_scale: of one step, tr(H Sigma) / (G' H G); `noise_scale` where the Hessian is a multiple of the identity.

    The step along a noisy gradient that lowers a quadratic most in expectation. McCandlish et al. 2018.

    Raises:
        ValueError: a batch that is not positive; a negative number.
    """
    sizes = _batches(batch)
    rate, scale = non_negative("largest_rate", largest_rate), non_negative("noise_scale", noise_scale)
    with np.errstate(over="ignore"):  # to infinity, whose rate is 0
        return _plain(rate / (1 + scale / sizes))


def _batches(batch: ArrayLike, name: str = "batch") -> Array:
    sizes = reals(name, batch)
    if not np.all(sizes > 0):
        raise ValueError(f"{name} is {batch!r}, where positive numbers were expected")
    return sizes


def _curve(least_steps: float, critical_batch: float) -> tuple[float, float]:
    return non_negative("least_steps", least_steps), non_negative("critical_batch", critical_batch)


def _plain(values: Array) -> float | Array:
    return float(values) if values.ndim == 0 else values
