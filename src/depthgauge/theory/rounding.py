"""Losses of a number format: gradients to underflow, updates to rounding, a whole product to its range.

>>> underflow_fraction("float16", mu=-20.0, sigma=0.0, loss_scale=1), underflow_fraction("float16", -20.0, 0.0, 1024.0)
(1.0, 0.0)
>>> lost_update_fraction("bfloat16", weight_std=0.05, update=1e-6) > 0.99
True
>>> round(exit_depth(drift=math.log(1.5), std=0.0, fmt="float16").median)   # 1.5^28 is the first beyond 65504
28
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.formats import Format
from depthgauge.theory.activation import NODES, WEIGHTS
from depthgauge.theory.arguments import finite, non_negative, positive

_SQRT2 = math.sqrt(2.0)


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / _SQRT2)


def underflow_fraction(fmt: str | Format, mu: float, sigma: float, loss_scale: float = 1.0) -> float:
    """Fraction of gradients that round to zero, where ln|g| ~ N(mu, sigma^2) and g is multiplied by `loss_scale`.

    Args:
        fmt: name of a format, or a `Format`.
        mu: mean of ln|g|, natural log.
        sigma: standard deviation of ln|g|; 0 is a single magnitude.
        loss_scale: the factor of the loss, and hence of every gradient.

    Exact for rounding to nearest, ties to even: zero takes all of |g| loss_scale <= smallest_subnormal / 2.
    """
    fmt = formats.elementwise(fmt)
    mu, sigma, loss_scale = finite("mu", mu), non_negative("sigma", sigma), positive("loss_scale", loss_scale)
    # The halving is done on the log: half of float64's smallest subnormal is no float64.
    distance = math.log(fmt.smallest_subnormal) - math.log(2.0) - math.log(loss_scale) - mu
    if sigma == 0:
        return 1.0 if distance >= 0 else 0.0
    return _normal_cdf(distance / sigma)


def lost_update_fraction(fmt: str | Format, weight_std: float, update: float) -> float:
    """Fraction of weights, w ~ N(0, weight_std^2) held in `fmt`, that `w + update` leaves unchanged.

    Args:
        fmt: name of a format, or a `Format`.
        weight_std: standard deviation of the weights before they were rounded to `fmt`.
        update: what is added to each, of either sign. It is taken as it is: the sum is exact and rounded once, as in a
            fused step. Round it first where it is itself held in `fmt`.

    Exact for rounding to nearest, ties to even, with subnormals; a sum over binades. Between w = 2^e and 2^(e+1) the
    spacing is s = 2^(e - mantissa_bits): the update is lost below s / 2, at s / 2 where w's significand is even, and
    towards zero from w = 2^e itself, where the spacing halves, up to s / 4. Weights that overflow stay infinite (NaN
    in e4m3fn) and count as unchanged.
    """
    fmt = formats.elementwise(fmt)
    weight_std, step = positive("weight_std", weight_std), abs(finite("update", update))
    if step == 0:
        return 1.0

    def mass(low: float, high: float) -> float:
        """P(low < |w| < high)."""
        a, b = low / weight_std / _SQRT2, high / weight_std / _SQRT2
        return math.erf(b) - math.erf(a) if b < 0.5 else math.erfc(a) - math.erfc(b)

    def cell(k: int, spacing: float, below: float) -> float:
        """P(|w| rounds to k * spacing), where the spacing below it is `below`."""
        return mass(k * spacing - below / 2, k * spacing + spacing / 2)

    m = fmt.mantissa_bits
    lowest = math.frexp(fmt.smallest_normal)[1] - 1
    highest = math.frexp(fmt.max)[1] - 1
    tiny = fmt.smallest_subnormal
    top = fmt.max / math.ldexp(1.0, highest - m)  # significand of the largest value, as an integer

    # Zero, and what overflowed. Both signs of w are in `mass`; the update goes outwards for one, inwards for the other.
    lost = mass(0.0, tiny / 2) if step <= tiny / 2 else 0.0
    lost += math.erfc((fmt.max + math.ldexp(0.5, highest - m)) / weight_std / _SQRT2)
    for e in range(lowest - 1, highest + 1):
        subnormal = e < lowest
        spacing = tiny if subnormal else math.ldexp(1.0, e - m)
        first = 1 if subnormal else 2**m
        last = 2**m - 1 if subnormal else (int(top) if e == highest else 2 ** (m + 1) - 1)
        below = spacing if e <= lowest else spacing / 2
        inside = mass(first * spacing - below / 2, last * spacing + spacing / 2)
        edge = cell(first, spacing, below)
        if step < spacing / 2:
            lost += inside
            if below < spacing and step > below / 2:
                lost -= edge / 2  # towards zero from 2^e; at the tie the even significand of 2^e wins
        elif step == spacing / 2:
            # Neighbouring cells of 2^12 and more differ so little that the even ones hold half, to 1e-8.
            even = inside / 2
            if m < 12:
                even = sum(
                    cell(k, spacing, below if k == first else spacing) for k in range(first + first % 2, last + 1, 2)
                )
            lost += even - (edge / 2 if below < spacing else 0.0)
    return min(lost, 1.0)


def landing_probability(fmt: str | Format, point: float, std: float) -> float:
    """Probability that x ~ N(0, std^2), rounded to `fmt`, is exactly `point`.

    Args:
        fmt: name of a format, or a `Format`.
        point: a value; one that the format cannot hold is never met.
        std: standard deviation before rounding.

    Exact for rounding to nearest: the mass between the midpoints to the neighbours of `point`, whose spacing halves
    below a power of two. It is the chance of meeting a kink of an activation when only the result is rounded; a sum
    that cancels term by term has more.
    """
    fmt = formats.elementwise(fmt)
    point, std = abs(finite("point", point)), positive("std", std)
    m = fmt.mantissa_bits
    if point < fmt.smallest_normal:
        above = below = fmt.smallest_subnormal
    else:
        exponent = math.frexp(point)[1] - 1
        above = math.ldexp(1.0, exponent - m)
        below = above / 2 if point == math.ldexp(1.0, exponent) > fmt.smallest_normal else above
    if point > fmt.max or not (point / above).is_integer():
        return 0.0
    low, high = (point - below / 2) / std, (point + above / 2) / std
    if low < 0 or high - low > 0.5:
        return _normal_cdf(high) - _normal_cdf(low)
    # Of a narrow cell the distribution function's difference has no digits left.
    x = (low + high) / 2 + (high - low) / 2 * NODES
    return float((high - low) / 2 * (WEIGHTS @ np.exp(-x * x / 2))) / math.sqrt(2 * math.pi)


def landing_share(fmt: str | Format, point: float, stds: NDArray[np.float64]) -> float:
    """Mean of `landing_probability` over many standard deviations; x of standard deviation 0 is 0 for certain.

    Args:
        fmt: name of a format, or a `Format`.
        point: a value.
        stds: of any shape; those above 0 are taken to a hundredth of their logarithm, which moves the chance as little.
    """
    bins, counts = np.unique(np.round(100 * np.log(stds[stds > 0])), return_counts=True)
    chances = (landing_probability(fmt, point, math.exp(place / 100)) for place in bins)
    mass = sum(count * chance for count, chance in zip(counts, chances, strict=True))
    return float(mass + (point == 0) * (stds == 0).sum()) / stds.size


class ExitDepth(NamedTuple):
    """The depth at which a random walk leaves a format's range.

    Attributes:
        median: depth by which half of the walks have left; infinity where they never do.
        mean: mean depth.
        overflow: probability that the walk leaves at the top.
    """

    median: float
    mean: float
    overflow: float


def exit_depth(drift: float, std: float, fmt: str | Format, start: float = 0.0) -> ExitDepth:
    """The depth at which a magnitude first leaves [smallest_subnormal, max] of a format.

    Args:
        drift: mean growth of ln|x| per layer, natural log of the magnitude (half that of its square).
        std: standard deviation of that growth per layer, independent between layers.
        fmt: name of a format, or a `Format`.
        start: ln|x| before the first layer.

    Exact for std = 0: the first whole number of layers that is outside. Otherwise asymptotic: Brownian first passage,
    with the barriers moved out by 0.5826 std for the walk's discrete steps (Siegmund, "Sequential analysis", 1985,
    chapter 10). Mean and probability are those of two barriers; the median solves F_up(t) + F_down(t) = 1/2 with the
    inverse Gaussian laws of the single ones, which counts twice the few walks that would have reached both by then.
    """
    fmt = formats.elementwise(fmt)
    drift, std, start = finite("drift", drift), non_negative("std", std), finite("start", start)
    up = math.log(fmt.max) - start
    down = start - math.log(fmt.smallest_subnormal)
    if up < 0 or down < 0:
        return ExitDepth(0.0, 0.0, 1.0 if up < 0 else 0.0)
    if std == 0:
        if drift == 0:
            return ExitDepth(math.inf, math.inf, math.nan)
        depth = math.floor((up if drift > 0 else down) / abs(drift)) + 1.0
        return ExitDepth(depth, depth, 1.0 if drift > 0 else 0.0)
    up, down = (up + 0.5826 * std) / std, (down + 0.5826 * std) / std
    mu = drift / std
    overflow = _leaves_above(mu, up, down)
    mean = up * down if abs(mu) * (up + down) < 1e-6 else (up * overflow - down * (1 - overflow)) / mu
    return ExitDepth(_median(mu, up, down), mean, overflow)


def _leaves_above(mu: float, up: float, down: float) -> float:
    """P(a unit Brownian motion with drift mu reaches `up` before -`down`)."""
    if mu < 0:
        return 1 - _leaves_above(-mu, down, up)
    if mu * (up + down) < 1e-12:
        return down / (up + down)
    return math.expm1(-2 * mu * down) / math.expm1(-2 * mu * (up + down))


def _passed(mu: float, barrier: float, t: float) -> float:
    """P(first passage of `barrier` > 0 by time t); inverse Gaussian, defective for mu < 0."""
    root = math.sqrt(t)
    direct = _normal_cdf((mu * t - barrier) / root)
    x = (mu * t + barrier) / root
    # exp(2 mu b) Phi(-x), where 2 mu b <= x^2 / 2: beyond, the exponents are joined, as neither factor stays in range.
    if x > 35:
        tail = (
            math.exp(2 * mu * barrier - x * x / 2)
            * (1 - 1 / x**2 + 3 / x**4 - 15 / x**6)
            / (x * math.sqrt(2 * math.pi))
        )
    else:
        tail = math.exp(2 * mu * barrier) * _normal_cdf(-x)
    return direct + tail


def _median(mu: float, up: float, down: float) -> float:
    low, high = 1e-12, 1.0

    def left(t: float) -> float:
        return _passed(mu, up, t) + _passed(-mu, down, t) - 0.5

    while left(high) < 0:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) < 0 else (low, middle)
        if high - low <= 1e-12 * high:
            break
    return (low + high) / 2
