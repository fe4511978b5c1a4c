"""Rounding error of a sum by its length: the worst case, the probabilistic bound, and the law of random summands.

>>> round(worst_case("float16", 1000) / probabilistic_bound("float16", 1000, confidence=0.95), 1)
22.1
>>> short, long = sum_errors("bfloat16", mean=1.0, std=0.5, lengths=(64, 4096))
>>> round(short.rms / 64, 4)        # of the sum, where the worst case is 0.33
0.0073
>>> round(long.bias / 4096, 2)      # the sum has stood still for most of the way
-0.79

u = 2^-(m + 1) is the unit roundoff of a format of m mantissa bits. Errors are those of the computed sum; relative to
the sum of the summands' magnitudes they are backward errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.formats import Format
from depthgauge.theory.arguments import finite, non_negative, whole

Floats = NDArray[np.float64]
Method = Literal["naive", "pairwise", "blocked", "compensated", "stochastic"]


_NORMAL_LAW = NormalDist()


def normal_points(count: int) -> Floats:
    """Points of equal weight that stand for a standard normal number: medians of its quantiles, at its variance."""
    medians = np.array([_NORMAL_LAW.inv_cdf((place + 0.5) / count) for place in range(count)])
    return np.asarray(medians / math.sqrt(np.square(medians).mean()))


_NORMAL = normal_points(24)
# To nearest, ties become even: of two sums with a spacing half of the result's, both even with probability p, one is
# odd with probability 2 p (1 - p), a tie; p = 1/2 + p (1 - p) is what stays the same from level to level, p^2 = 1/2.
_TIE = math.sqrt(2) - 1
_STRIDE = 24  # additions advance by 1/24 of those done: within a binade nothing changes but the share of it


def unit_roundoff(fmt: str | Format) -> float:
    """Largest relative error of one rounding to nearest in the normal range, u = 2^-(mantissa_bits + 1)."""
    return math.ldexp(0.5, -formats.get(fmt).mantissa_bits)


def worst_case(fmt: str | Format, additions: int) -> float:
    """Largest backward error of a sum in which a summand passes `additions` roundings; infinite from 1/u on.

    gamma_k = k u / (1 - k u): Higham, "Accuracy and stability of numerical algorithms" (2002), lemma 3.1. k is n - 1
    for a sum of n numbers from left to right, and the number of levels for a pairwise one.
    """
    reach = whole("additions", additions, 0) * unit_roundoff(fmt)
    return reach / (1 - reach) if reach < 1 else math.inf


def probabilistic_bound(fmt: str | Format, additions: int, *, confidence: float) -> float:
    """Bound of k relative errors of mean zero together, exp(lambda sqrt(k) u + k u^2 / (1 - u)) - 1.

    Args:
        fmt: name of a format, or a `Format`.
        additions: roundings that a summand passes.
        confidence: chance that the bound holds for one summand, 1 - 2 exp(-lambda^2 (1 - u)^2 / 2).

    Higham and Mary, "A new approach to probabilistic rounding error analysis" (2019), theorem 2.4, where errors of mean
    zero that are independent of each other are an assumption; for stochastic rounding it is none (Connolly, Higham and
    Mary, "Stochastic rounding and its probabilistic backward error analysis", 2021).

    Raises:
        ValueError: a confidence outside 0 .. 1.
    """
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence is {confidence!r}, where a chance below 1 was expected")
    u, k = unit_roundoff(fmt), whole("additions", additions, 0)
    spread = math.sqrt(-2 * math.log((1 - confidence) / 2)) / (1 - u)
    return math.expm1(min(spread * math.sqrt(k) * u + k * u * u / (1 - u), 700.0))


class SumError(NamedTuple):
    """The error of a computed sum.

    Attributes:
        bias: its mean.
        std: its standard deviation.
    """

    bias: float
    std: float

    @property
    def rms(self) -> float:
        """Root of its mean square."""
        return math.hypot(self.bias, self.std)


def rounding_moments(mean: float, std: float, spacing: Floats, *, stochastic: bool = False) -> tuple[Floats, Floats]:
    """Mean and mean square of the error that rounding x ~ N(mean, std^2) to multiples of a spacing makes.

    Args:
        mean: of x.
        std: of x; 0 is a single number.
        spacing: any shape.
        stochastic: up with the chance that keeps the mean, else to nearest.

    Exact: the Fourier series of the sawtooth and of its square, each term damped by the Gaussian's characteristic
    function. A spacing below std / 2 has the mean 0 and the square 1/12 (1/6) of the spacing's.
    """
    h = np.asarray(spacing, dtype=np.float64)[..., None]
    if std == 0:
        part = mean / h[..., 0] - np.floor(mean / h[..., 0])
        off = np.where(part > 0.5, 1 - part, -part)
        return (
            (0 * off, h[..., 0] ** 2 * part * (1 - part)) if stochastic else (h[..., 0] * off, (h[..., 0] * off) ** 2)
        )
    k = np.arange(1, 2 + math.ceil(1.4 * min(float(np.max(h)) / std, 2e3)))
    damped = np.exp(-2 * np.square(np.pi * k * std / h))
    waves = damped * np.cos(2 * np.pi * k * mean / h) / np.square(np.pi * k)
    if stochastic:
        return 0 * h[..., 0], h[..., 0] ** 2 * (1 / 6 - waves.sum(-1))
    sign = np.where(k % 2, -1.0, 1.0)
    bias = (sign * damped * np.sin(2 * np.pi * k * mean / h) / (np.pi * k)).sum(-1)
    return h[..., 0] * bias, h[..., 0] ** 2 * (1 / 12 + (sign * waves).sum(-1))


class _Normal(NamedTuple):
    """A Gaussian number, and by how many bits it is finer than the format."""

    mean: float
    variance: float
    finer: int = 0

    def of(self, count: float) -> _Normal:
        """The sum of so many independent ones."""
        return _Normal(count * self.mean, count * self.variance)

    @property
    def points(self) -> Floats:
        """Points that stand for it, of equal weight."""
        return self.mean + math.sqrt(self.variance) * _NORMAL


def sum_errors(
    fmt: str | Format, mean: float, std: float, lengths: Sequence[int], method: Method = "naive", *, block: int = 32,
    products: bool = False,
) -> tuple[SumError, ...]:  # fmt: skip
    """Law of the error of sums of numbers from N(mean, std^2), held in the format and added in it, by length.

    Args:
        fmt: name of a format, or a `Format`.
        mean: of the summands.
        std: of the summands.
        lengths: ascending; powers of two for `pairwise`, multiples of the block beyond it for `blocked`.
        method: from left to right (`naive`; `stochastic`: rounded stochastically), in pairs of pairs, in blocks and
            then over the blocks, or compensated (Kahan): the roundings of each corrected summand and of the last sum.
        block: summands of a block.
        products: summands are products of two numbers in the format, added unrounded (a fused multiply-add).

    To first order: the partial sums are taken as Gaussian. While a sum stays in a binade, of spacing h, each addition
    rounds its summand to a multiple of h: errors are independent, of mean square h^2 / 12, until h is as large as the
    summands' spread; then they have a bias, and where h is above twice the summands the sum stands still.
    """
    fmt, each = formats.get(fmt), [whole("length", n) for n in lengths]
    item = _Normal(finite("mean", mean), non_negative("std", std) ** 2, fmt.mantissa_bits + 1 if products else 0)
    if method == "pairwise":
        return tuple(_pairwise(fmt, item, n) for n in each)
    if method == "compensated":
        corrected, *ends = (float(np.square(_spacing(fmt, item.of(n).points)).mean()) for n in (1, *each))
        return tuple(SumError(0.0, math.sqrt((end + n * corrected) / 12)) for n, end in zip(each, ends, strict=True))
    if method == "blocked":
        return _blocked(fmt, item, each, block)
    return _in_order(fmt, item, each, stochastic=method == "stochastic")


def equal_sum_errors(fmt: str | Format, values: Floats, n: int) -> Floats:
    """Error of the sum of n equal numbers from left to right, for each of these values: the worst case of a sum.

    Within a binade every addition makes the same error, so that they add up to n times as much, and the sum stands
    still once its spacing is above twice the summand. Exact but for the addition that enters a binade: it counts as one
    of the last.
    """
    fmt, x, n = formats.get(fmt), np.abs(np.asarray(values, dtype=np.float64)), whole("n", n)
    total, left = x.copy(), np.full(x.shape, n - 1.0)
    while left.any():
        h = _spacing(fmt, total)
        step = h * np.rint(x / h)
        top = np.exp2(np.frexp(total)[1])
        steps = np.minimum(left, np.ceil(np.divide(top - total, step, out=np.full(x.shape, np.inf), where=step > 0)))
        total, left = total + steps * step, left - steps
    error: Floats = np.sign(values) * (total - n * x)
    return error


def variance_error(
    fmt: str | Format, mean: float, std: float, n: int, formula: Literal["one-pass", "two-pass"]
) -> float:
    """Relative error, root mean square, of the variance of n numbers from N(mean, std^2), every result rounded.

    Args:
        fmt: name of a format, or a `Format`.
        mean: of the numbers.
        std: of the numbers.
        n: how many, a power of two; sums are pairwise.
        formula: mean of the squares minus squared mean, or mean of the squared deviations.

    To first order, of the sums' errors (`sum_errors`) and the squared mean's rounding: one pass subtracts two numbers
    that are 1 + (mean / std)^2 times as large as their difference; two passes add the square of the mean's error.
    """
    fmt, m, s = formats.get(fmt), abs(finite("mean", mean)), non_negative("std", std)
    (first,) = sum_errors(fmt, m, s, (n,), "pairwise")
    if formula == "two-pass":
        (second,) = sum_errors(fmt, s * s, math.sqrt(2) * s * s, (n,), "pairwise")
        return math.hypot(second.rms / n, math.sqrt(3) * (first.rms / n) ** 2) / s**2  # E[e^4] = 3 E[e^2]^2
    (second,) = sum_errors(fmt, m * m + s * s, math.sqrt(4 * m * m + 2 * s * s) * s, (n,), "pairwise")
    square = float(_spacing(fmt, np.array(m * m))) / math.sqrt(12)
    return math.hypot(second.rms / n, 2 * m * first.rms / n, square) / s**2


def _in_order(fmt: Format, item: _Normal, lengths: Sequence[int], *, stochastic: bool = False) -> tuple[SumError, ...]:
    bias, variance, done, errors = 0.0, 0.0, 1, []
    for n in lengths:
        while done < n:
            steps = min(1 + done // _STRIDE, n - done)
            middle = done + (steps - 1) / 2
            total = _Normal(middle * item.mean + bias, middle * item.variance + variance)
            off, square = _addition(fmt, total, item, stochastic=stochastic)
            bias, variance, done = bias + steps * off, variance + steps * (square - off**2), done + steps
        errors.append(SumError(bias, math.sqrt(max(variance, 0.0))))
    return tuple(errors)


def _blocked(fmt: Format, item: _Normal, lengths: Sequence[int], block: int) -> tuple[SumError, ...]:
    short = _in_order(fmt, item, [n for n in lengths if n <= block])
    (inner,) = _in_order(fmt, item, [block])
    total = _Normal(block * item.mean + inner.bias, block * item.variance + inner.std**2)
    counts = [n // block for n in lengths if n > block]
    outer = zip(counts, _in_order(fmt, total, counts), strict=True)
    return *short, *(SumError(k * inner.bias + o.bias, math.hypot(math.sqrt(k) * inner.std, o.std)) for k, o in outer)


def _pairwise(fmt: Format, item: _Normal, n: int) -> SumError:
    bias, variance, size = 0.0, 0.0, 1
    while size < n:
        half = item.of(size) if size > 1 else item
        off, square = _addition(fmt, half, half, tie=_TIE if size > 1 else 0.5)
        size *= 2
        bias, variance = bias + n / size * off, variance + n / size * (square - off**2)
    return SumError(bias, math.sqrt(max(variance, 0.0)))


def _addition(
    fmt: Format, total: _Normal, item: _Normal, *, stochastic: bool = False, tie: float = 0.5
) -> tuple[float, float]:
    """Mean and mean square of the error of one addition.

    Both numbers are multiples of a spacing of their own. Where the result's is 2^j of the finer, its residues are 2^j
    fractions of it: the mean square is (1 + 2 / 4^j) / 12 of its square to nearest, (1 - 1 / 4^j) / 6 stochastically,
    and nothing where j is 0. At j = 1 there are ties alone, with probability `tie`.
    """
    a, x = total.points[:, None], item.points
    h = _spacing(fmt, a + x)
    own = np.minimum(np.ldexp(_spacing(fmt, a), -total.finer), np.ldexp(_spacing(fmt, x), -item.finer))
    ratio = np.square(own / h)
    graded = np.where(ratio < 1, 1 - ratio if stochastic else np.where(ratio == 0.25, 3 * tie, 1 + 2 * ratio), 0.0)
    spacings, where = np.unique(h, return_inverse=True)
    bias, square = rounding_moments(item.mean, math.sqrt(item.variance), spacings, stochastic=stochastic)
    return float(bias[where].mean()), float((square[where].reshape(h.shape) * graded).mean())


def _spacing(fmt: Format, x: Floats) -> Floats:
    """Distance between neighbours in the format at |x|; overflow is not looked for."""
    exponent = np.frexp(np.maximum(np.abs(x), fmt.smallest_normal))[1] - 1
    spacing: Floats = np.ldexp(1.0, exponent - fmt.mantissa_bits)
    return spacing
