"""Noise scale from the squared norms of gradients at two batch sizes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from depthgauge.formats.arguments import numbers, whole
from depthgauge.noise.ratio import Floats, NoiseError, NoiseScale, accepted, checked, checked_population, ratio
from depthgauge.stats.location import FEWEST, check_confidence


def from_batches(
    small_batch: int,
    small_norms_squared: ArrayLike,
    big_batch: int,
    big_norms_squared: ArrayLike,
    *,
    population: int | None = None,
    paired: bool = False,
    confidence: float = 0.95,
) -> NoiseScale:
    """Noise scale from many squared gradient norms at each of two batch sizes: a ratio of means, not a mean of ratios.

    E|G_B|^2 = |G|^2 + f(B) tr(Sigma) / B with f = 1, and (N - B) / (N - 1) for batches drawn without replacement from N
    examples, solved for the means at both sizes (McCandlish 2018, appendix A.1).

    Args:
        small_batch: examples of each small batch.
        small_norms_squared: (m,) squared norm of the mean gradient of each.
        big_batch: examples of each big batch.
        big_norms_squared: (k,) likewise; one number is enough where the big batch is the whole population.
        population: N.
        paired: whether the k-th small and big batch share examples, as in data-parallel training, where a small one is
            a worker's (or the mean over the workers).
        confidence: of the interval.

    Raises:
        NoiseError: sizes that do not grow or exceed the population, negative norms, no norms, or no pairs.
    """
    check_confidence(confidence)
    small_batch, big_batch = (
        checked(whole, name, each) for name, each in (("small_batch", small_batch), ("big_batch", big_batch))
    )
    population = checked_population(population)
    small, big = (
        np.atleast_1d(np.asarray(checked(numbers, name, each), dtype=np.float64))
        for name, each in (("small_norms_squared", small_norms_squared), ("big_norms_squared", big_norms_squared))
    )
    _check(small_batch, small, big_batch, big, population, paired=paired)
    peak = float(max(small.max(), big.max()))
    peak = peak if 0 < peak < math.inf else 1.0  # the scale does not depend on it, and squares shall not overflow
    small, big = small / peak, big / peak
    weights = [_finite(batch, population) / batch for batch in (small_batch, big_batch)]
    gap = weights[0] - weights[1]
    noise = float(small.mean() - big.mean()) / gap
    signal = float(weights[0] * big.mean() - weights[1] * small.mean()) / gap
    value = ratio(noise, signal)
    method = f"mean squared norms of {len(small)} gradients of {small_batch} and {len(big)} of {big_batch} examples"
    if population is not None:
        method += f" out of {population:,}"
    n, test = min(len(small), len(big)), "paired" if paired else "Welch's"
    if not math.isfinite(noise) or not math.isfinite(signal):
        low = high = value = math.nan
    else:
        exact = big_batch == population
        n, test = (len(small), "Student's") if exact else (n, test)
        low, high = _interval(small, np.full(1, big.mean()) if exact else big, weights, paired=paired and not exact,
                              confidence=confidence, value=value) if n >= FEWEST else (0.0, math.inf)  # fmt: skip
        method += f", Fieller's set with {test} t" if n >= FEWEST else f"; fewer than {FEWEST} reject no scale"
    return NoiseScale(value, low, high, signal * peak, noise * peak, n, confidence, method)


def _interval(
    small: Floats, big: Floats, weights: list[float], *, paired: bool, confidence: float, value: float
) -> tuple[float, float]:
    """Scales r at which noise - r signal, a difference of two means, is not rejected; degrees by Welch.

    Fieller's set for a ratio (1954, JRSS B 16, 175).
    """
    means = small.mean(), big.mean()
    variances = [float(each.var(ddof=1)) / len(each) if len(each) > 1 else 0.0 for each in (small, big)]
    shared = float(np.cov(small, big)[0, 1]) / len(small) if paired else 0.0

    def excess(scale: float) -> float:
        # (noise - scale signal) times the gap; an infinite scale leaves -signal
        a, b = (weights[1], -weights[0]) if math.isinf(scale) else (1 + scale * weights[1], -1 - scale * weights[0])
        parts = a * a * variances[0], b * b * variances[1]
        square = sum(parts) + 2 * a * b * shared
        difference = a * means[0] + b * means[1]
        if square <= 0:
            return 0.0 if difference == 0 else math.copysign(math.inf, difference)
        degrees = len(small) - 1.0
        if not paired:
            degrees = sum(parts) ** 2 / sum(
                part**2 / (len(each) - 1) for part, each in zip(parts, (small, big), strict=True) if len(each) > 1
            )
        return float(difference / math.sqrt(square) / special.stdtrit(degrees, 0.5 + confidence / 2))

    start = float(means[0]) / weights[0] / max(float(means[1]), 1e-300)
    return accepted(excess, start, value)


def _finite(batch: int, population: int | None) -> float:
    """Factor of a mean's variance without replacement."""
    return 1.0 if population is None else (population - batch) / (population - 1)


def _check(
    small_batch: int, small: Floats, big_batch: int, big: Floats, population: int | None, *, paired: bool
) -> None:
    if not 0 < small_batch < big_batch:
        raise NoiseError(f"the small batch ({small_batch}) must be smaller than the big one ({big_batch})")
    if population is not None and big_batch > population:
        raise NoiseError(f"a batch of {big_batch} examples cannot be drawn without replacement from {population}")
    for name, norms in (("small", small), ("big", big)):
        if norms.ndim != 1 or not len(norms):
            raise NoiseError(f"{name}_norms_squared has the shape {norms.shape}, where one number a batch was expected")
        if (norms < 0).any():
            raise NoiseError(f"{name}_norms_squared has a negative entry: a squared norm is none")
    if paired and len(small) != len(big):
        raise NoiseError(f"{len(small)} small and {len(big)} big batches are no pairs")
