"""Signals in an infinitely wide random network: gains, fixed points, depth scales, trajectories.

Conventions. Layer l computes h_l = W_l phi(h_{l-1}) + b_l with independent W ~ N(0, sigma_w^2 / fan_in) and
b ~ N(0, sigma_b^2). q_l is the variance of a pre-activation, c_l the correlation of two inputs' pre-activations:

    q_{l+1} = V(q_l) = sigma_w^2 E[phi(sqrt(q_l) z)^2] + sigma_b^2                                   (Poole 2016, eq. 3)
    c_{l+1} = (sigma_w^2 E[phi(u_a) phi(u_b)] + sigma_b^2) / sqrt(q_a q_b)                           (Poole 2016, eq. 5)
    chi(q)  = sigma_w^2 E[phi'(sqrt(q) z)^2]          growth of the squared gradient per layer  (Schoenholz 2017, eq. 5)

    >>> round(gain("relu").forward ** 2, 12), round(gain("relu").backward ** 2, 12)
    (2.0, 2.0)
    >>> field = mean_field("tanh", sigma_w=2.0, sigma_b=0.0)
    >>> field.chi_1 > 1, field.c_star < 1
    (True, True)
    >>> critical_sigma_w("tanh", 0.0)
    1.0

Poole, Lahiri, Raghu, Sohl-Dickstein and Ganguli, "Exponential expressivity in deep neural networks through transient
chaos" (2016). Schoenholz, Gilmer, Ganguli and Sohl-Dickstein, "Deep information propagation" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from depthgauge.theory.activation import Activation, Array, Phi, activation
from depthgauge.theory.arguments import non_negative, whole
from depthgauge.theory.expectation import Moments, correlated, moments, second_moment

# What the quadrature can tell from zero: closer to 1 than this, a slope is 1 and its depth scale infinite.
_EXACT = 2e-12


class NoFixedPoint(ValueError):  # noqa: N818 - the field's word; it is the answer that there is none
    """The variance grows without bound: the network has no fixed point at these parameters."""


@dataclass(frozen=True)
class Gain:
    """Gains that keep the second moment at unit variance.

    Attributes:
        forward: E[phi(z)^2]^(-1/2): weights N(0, forward^2 / fan_in) keep the second moment of activations.
        backward: E[phi'(z)^2]^(-1/2): weights N(0, backward^2 / fan_out) keep that of gradients.
    """

    forward: float
    backward: float


@dataclass(frozen=True)
class MeanField:
    """The fixed point of an infinitely wide network, and how fast it is reached.

    Attributes:
        q_star: variance of pre-activations at the fixed point.
        chi_1: growth of the squared gradient per layer there; below 1 the network is ordered, above it chaotic.
        c_star: stable correlation of two inputs; 1 unless chaotic.
        xi_q: depth scale, in layers, on which the variance approaches q_star.
        xi_c: depth scale, in layers, on which the correlation approaches c_star: -1 / ln(chi_1) where c_star = 1.
            Infinite at chi_1 = 1.
    """

    q_star: float
    chi_1: float
    c_star: float
    xi_q: float
    xi_c: float


def _parameters(sigma_w: float, sigma_b: float) -> tuple[float, float]:
    return non_negative("sigma_w", sigma_w), non_negative("sigma_b", sigma_b)


def gain(phi: Phi) -> Gain:
    """Forward and backward gain of an activation at unit variance.

    sqrt(2) for ReLU (He et al. 2015, eq. 10), 1 for the identity (Glorot and Bengio 2010). For tanh they are 1.5925
    and 1.4674, which `torch.nn.init.calculate_gain` puts at 5/3.

    Raises:
        ValueError: phi or its slope is zero almost everywhere, so that no gain keeps the signal.
    """
    return _gain(activation(phi))


@lru_cache(maxsize=256)
def _gain(phi: Activation) -> Gain:
    at_one = moments(phi, np.ones(1))
    value2, slope2 = float(at_one.value2[0]), float(at_one.slope2[0])
    if not (value2 > 0 and slope2 > 0):
        raise ValueError(f"activation {phi.name!r} or its slope is zero almost everywhere; no gain keeps the signal")
    return Gain(value2**-0.5, slope2**-0.5)


def chi(phi: Phi, sigma_w: float, q: float) -> float:
    """Growth of the squared gradient through one layer whose pre-activations have variance `q`.

    sigma_w^2 E[phi'(sqrt(q) z)^2] (Schoenholz 2017, eq. 5, at any q). At q = 0 it is the limit from above.
    """
    sigma_w, _ = _parameters(sigma_w, 0.0)
    return sigma_w**2 * float(moments(activation(phi), np.array([non_negative("q", q)])).slope2[0])


def mean_field(phi: Phi, sigma_w: float, sigma_b: float) -> MeanField:
    """Fixed point and depth scales of a wide network (Poole 2016; Schoenholz 2017, eq. 7 to 10).

    Args:
        phi: any activation, see `activation`.
        sigma_w: weights are N(0, sigma_w^2 / fan_in).
        sigma_b: biases are N(0, sigma_b^2).

    Where several fixed points exist (GELU, SiLU), this is the one that variance 1 flows to: the first met from q = 1
    in the direction in which V moves it. Where every q is a fixed point (ReLU at sigma_w^2 = 2, the identity at
    sigma_w = 1, both without bias), it is hence q = 1, with chi_1 = 1 and infinite depth scales. Where the variance
    dies out, q_star = 0 and everything is the limit q -> 0; the correlation as such then need not move, and xi_c is
    the depth scale of the gradient and of the unnormalized covariance.

    For a discontinuous activation (hardshrink) chi_1 holds the slope almost everywhere, which is what gradients see;
    the correlation also feels the jump, so that c_star < 1 although chi_1 may be below 1.

    Raises:
        NoFixedPoint: the variance grows without bound.
        ValueError: sigma_w or sigma_b is negative or not finite.
    """
    sigma_w, sigma_b = _parameters(sigma_w, sigma_b)
    return _mean_field(activation(phi), sigma_w, sigma_b)


@lru_cache(maxsize=4096)
def _mean_field(phi: Activation, sigma_w: float, sigma_b: float) -> MeanField:
    q_star = _fixed_variance(phi, sigma_w, sigma_b)
    at_q_star = moments(phi, np.array([q_star]))
    chi_1 = sigma_w**2 * float(at_q_star.slope2[0])
    xi_q = _depth_scale(sigma_w**2 * float(at_q_star.value2_rate[0]))
    _, kinks = phi.mesh(38 * math.sqrt(max(q_star, 1e-6)))
    jumps = phi.jumps(kinks)
    if q_star == 0 or sigma_w == 0 or (chi_1 <= 1 + _EXACT and not jumps):
        return MeanField(q_star, chi_1, 1.0, xi_q, _depth_scale(chi_1))
    c_star, slope = _fixed_correlation(phi, sigma_w, sigma_b, q_star)
    if jumps and c_star < 1:
        slope = _numerical_slope(lambda c: _correlate(phi, sigma_w, sigma_b, q_star, c)[0], c_star)
    return MeanField(q_star, chi_1, c_star, xi_q, _depth_scale(slope))


def depth_scales(phi: Phi, sigma_w: float, sigma_b: float) -> tuple[float, float]:
    """Layers over which the correlation of two inputs settles (xi_c), and the squared gradient changes by a factor e.

    Returns:
        xi_c, NaN where there is no fixed point; and 1/|ln chi_1|, infinite at criticality and 0 where no gradient
        passes: without a fixed point chi at unit variance, as ReLU and linear layers have one chi at every variance.
    """
    try:
        field = mean_field(phi, sigma_w, sigma_b)
        slope, xi_c = field.chi_1, field.xi_c
    except NoFixedPoint:
        slope, xi_c = chi(phi, sigma_w, 1.0), math.nan
    if slope == 0:
        return xi_c, 0.0
    return xi_c, 1 / abs(math.log(slope)) if abs(slope - 1) > 1e-9 else math.inf


def _depth_scale(slope: float) -> float:
    slope = abs(slope)
    if slope == 0:
        return 0.0
    return math.inf if abs(slope - 1) <= _EXACT else -1 / math.log(slope)


def _fixed_variance(phi: Activation, sigma_w: float, sigma_b: float) -> float:
    from scipy.optimize import brentq  # noqa: PLC0415 - scipy takes 0.3 s to import; names and gains need none of it

    def excess(q: Array) -> Array:
        """V(q) / q - 1."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray((sigma_w**2 * second_moment(phi, q) + sigma_b**2) / q - 1)

    start = float(excess(np.ones(1))[0])
    if abs(start) <= _EXACT:
        return 1.0
    upwards = start > 0
    # V is monotone for all but contrived activations, so q moves monotonically to the next root in its direction.
    steps = 2.0 ** (np.arange(0, 17) / 4 * (1 if upwards else -1))
    low = 1.0
    for _ in range(12 if upwards else 26):
        q = low * steps
        value = excess(q)
        crossed = np.flatnonzero((value < -_EXACT) if upwards else (value > _EXACT))
        if len(crossed):
            at = int(crossed[0])
            if at == 0:
                return float(q[0])
            if abs(float(value[at - 1])) <= _EXACT:  # a fixed point on the search grid itself
                return float(q[at - 1])
            bracket = sorted((float(q[at - 1]), float(q[at])))
            return float(brentq(lambda x: float(excess(np.array([x]))[0]), *bracket, xtol=1e-300, rtol=1e-14))
        if not np.all(np.isfinite(value)):
            break
        low = float(q[-1])
    if upwards:
        raise NoFixedPoint(
            f"{phi.name} with sigma_w = {sigma_w:g} and sigma_b = {sigma_b:g} has no fixed point: from variance 1 the "
            "signal grows without bound; a smaller sigma_w has one"
        )
    return 0.0


def _correlate(phi: Activation, sigma_w: float, sigma_b: float, q: float, c: float) -> tuple[float, float]:
    value, slope = correlated(phi, q, q, c)
    return (sigma_w**2 * value + sigma_b**2) / q, sigma_w**2 * slope


def _fixed_correlation(phi: Activation, sigma_w: float, sigma_b: float, q_star: float) -> tuple[float, float]:
    """(c*, slope of the correlation map there).

    The map is a power series in c with non-negative coefficients, hence convex on [0, 1]: Newton's method from 0
    climbs to the lower root without overshooting.
    """
    c = 0.0
    for _ in range(200):
        value, slope = _correlate(phi, sigma_w, sigma_b, q_star, c)
        # The second: what is left is rounding of the integral (odd activations without bias have c* = 0).
        if slope >= 1 or abs(value - c) <= 2e-15 + 1e-13 * c:
            break
        c = min(c + (value - c) / (1 - slope), 1.0)
    return c, slope


def _numerical_slope(f: Callable[[float], float], c: float) -> float:
    step = 1e-3 * min(1 - c, 1.0)
    return (8 * (f(c + step) - f(c - step)) - (f(c + 2 * step) - f(c - 2 * step))) / (12 * step)


def critical_sigma_w(phi: Phi, sigma_b: float) -> float:
    """The sigma_w on the edge of chaos at this sigma_b: chi_1 = 1 at the fixed point (Schoenholz 2017, section 3).

    The edge is a curve in q: sigma_w^2 = 1 / E[phi'^2], sigma_b^2 = q - E[phi^2] / E[phi'^2]. Where it meets the given
    sigma_b more than once, this is the point that variance 1 flows to; failing that, the one of least variance (GELU
    without bias: 2, at q -> 0, which is unstable).

    Raises:
        NoFixedPoint: the edge never reaches this sigma_b (ReLU with any bias).
        ValueError: sigma_b is negative or not finite.
    """
    _, sigma_b = _parameters(0.0, sigma_b)
    return _critical(activation(phi), sigma_b)


@lru_cache(maxsize=1024)
def _critical(phi: Activation, sigma_b: float) -> float:
    from scipy.optimize import brentq  # noqa: PLC0415 - see _fixed_variance

    def excess(q: Array) -> Array:
        """(sigma_b^2 on the edge - sigma_b^2) / q."""
        at_q = moments(phi, q)
        with np.errstate(all="ignore"):
            return np.asarray(1 - (at_q.value2 / at_q.slope2 + sigma_b**2) / q)

    candidates: list[float] = []
    if sigma_b == 0 and float(moments(phi, np.zeros(1)).value2[0]) < 1e-150:  # phi(0) = 0
        candidates.append(0.0)
    if abs(float(excess(np.ones(1))[0])) <= _EXACT:
        candidates.append(1.0)
    for low in 10.0 ** np.arange(-12, 9):
        q = low * 10.0 ** (np.arange(9) / 8)
        value = excess(q)
        for k in range(8):
            left, right = float(value[k]), float(value[k + 1])
            if min(abs(left), abs(right)) > _EXACT and left * right < 0:
                candidates.append(
                    float(brentq(lambda x: float(excess(np.array([x]))[0]), q[k], q[k + 1], xtol=1e-300, rtol=1e-14))
                )
    sigmas = []
    for q_star in candidates:
        slope2 = float(moments(phi, np.array([q_star])).slope2[0])
        if slope2 > 0:
            sigmas.append(_settle(1 / math.sqrt(slope2)))
    if not sigmas:
        raise NoFixedPoint(f"{phi.name} has no critical sigma_w at sigma_b = {sigma_b:g}: chi_1 = 1 at no fixed point")
    for sigma_w in sigmas:
        try:
            if abs(_mean_field(phi, sigma_w, sigma_b).chi_1 - 1) < 1e-6:  # the same point, not another
                return sigma_w
        except NoFixedPoint:
            continue
    return sigmas[0]


def _settle(x: float) -> float:
    """1.0 for 1.0000000000000002: the last bits of a quadrature are noise."""
    return float(f"{x:.14g}")


def variance_trajectory(phi: Phi, sigma_w: float, sigma_b: float, q_0: float, depth: int) -> Array:
    """q_0 .. q_depth: pre-activation variance layer by layer, of shape (depth + 1,).

    `q_0` is the variance of the first layer's pre-activations: sigma_w^2 |x|^2 / fan_in + sigma_b^2 for input x.
    Infinity is a result: a variance that leaves the range of a double.
    """
    sigma_w, sigma_b = _parameters(sigma_w, sigma_b)
    return _variances(
        activation(phi), sigma_w, sigma_b, non_negative("q_0", q_0), whole("depth", depth, least=0)
    ).copy()


@lru_cache(maxsize=1024)
def _variances(phi: Activation, sigma_w: float, sigma_b: float, q_0: float, depth: int) -> Array:
    """`variance_trajectory`, kept: signal, gradient and both of finite width ask for the same one."""
    q = np.empty(depth + 1)
    q[0] = q_0
    for layer in range(1, len(q)):
        q[layer] = _next_variance(phi, sigma_w, sigma_b, float(q[layer - 1]))
        if q[layer] == q[layer - 1]:
            q[layer:] = q[layer]
            break
    return q


def _next_variance(phi: Activation, sigma_w: float, sigma_b: float, q: float) -> float:
    if q > 1e290:  # phi^2 would overflow under the integral
        return math.inf
    return sigma_w**2 * float(second_moment(phi, np.array([q]))[0]) + sigma_b**2


def correlation_trajectory(
    phi: Phi, sigma_w: float, sigma_b: float, c_0: float, depth: int, *, q_0: float | tuple[float, float] | None = None
) -> Array:
    """c_0 .. c_depth: correlation of two inputs' pre-activations layer by layer, of shape (depth + 1,).

    Args:
        phi: any activation.
        sigma_w: weights are N(0, sigma_w^2 / fan_in).
        sigma_b: biases are N(0, sigma_b^2).
        c_0: correlation at the first layer, -1 to 1.
        depth: number of further layers.
        q_0: variance of the two inputs at the first layer, one or a pair; they follow their own map and need not have
            converged. By default both are at the fixed point.

    Where a variance has died out or left the range of a double, the correlation is NaN from there on.
    """
    sigma_w, sigma_b = _parameters(sigma_w, sigma_b)
    phi = activation(phi)
    if not -1 <= c_0 <= 1:
        raise ValueError(f"c_0 is {c_0!r}, where a correlation between -1 and 1 was expected")
    if q_0 is None:
        q_0 = _mean_field(phi, sigma_w, sigma_b).q_star
    pair = q_0 if isinstance(q_0, tuple) else (q_0, q_0)
    q_a, q_b = (non_negative("q_0", q) for q in pair)
    c = np.full(whole("depth", depth, least=0) + 1, math.nan)
    c[0] = c_0
    for layer in range(1, len(c)):
        next_a = _next_variance(phi, sigma_w, sigma_b, q_a)
        next_b = next_a if q_b == q_a else _next_variance(phi, sigma_w, sigma_b, q_b)
        if not (0 < next_a < math.inf and 0 < next_b < math.inf):
            break
        value, _ = correlated(phi, q_a, q_b, float(c[layer - 1]))
        c[layer] = np.clip((sigma_w**2 * value + sigma_b**2) / math.sqrt(next_a) / math.sqrt(next_b), -1.0, 1.0)
        still = max(abs(next_a - q_a) / next_a, abs(next_b - q_b) / next_b, abs(c[layer] - c[layer - 1])) <= 2e-15
        if still:  # it has arrived; what would follow is rounding
            c[layer:] = c[layer]
            break
        q_a, q_b = next_a, next_b
    return c


def gradient_trajectory(phi: Phi, sigma_w: float, sigma_b: float, q_0: float, depth: int) -> Array:
    """Squared gradient at each layer over that at the last, of shape (depth + 1,); the last entry is 1.

    Entry l is the product over k = l .. depth - 1 of chi(q_k): the gradient with respect to pre-activations h_l, per
    unit, for layers of one width (times n_k+1 / n_k where widths differ). Schoenholz 2017, eq. 14, at unconverged q.
    Asymptotic: leading order in 1 / width.
    """
    q = variance_trajectory(phi, sigma_w, sigma_b, q_0, depth)
    rate = np.full(len(q) - 1, math.nan)
    usable = q[:-1] <= 1e290  # see _next_variance
    if usable.any():
        rate[usable] = sigma_w**2 * moments(activation(phi), q[:-1][usable]).slope2
    return np.concatenate([np.cumprod(rate[::-1])[::-1], [1.0]])


def layer_moments(phi: Phi, q: float) -> Moments:
    """Gaussian moments of phi(u) and phi'(u), u ~ N(0, q), as floats: see `Moments`."""
    arrays = moments(activation(phi), np.array([non_negative("q", q)]))
    return Moments(*(float(value[0]) for value in arrays))  # type: ignore[arg-type]  # scalars where arrays stand


def default_linear(fan_in: int) -> tuple[float, float]:
    """(sigma_w, sigma_b) of `torch.nn.Linear`'s default initialization.

    Weights and biases are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), of variance 1 / (3 fan_in): sigma_w = 1/sqrt(3) at any
    width, sigma_b = 1/sqrt(3 fan_in).
    """
    return 1 / math.sqrt(3), 1 / math.sqrt(3 * whole("fan_in", fan_in))
