"""The walk of a signal's log-norm at finite width: exact laws where there are some, labelled asymptotics elsewhere.

Lengths are measured on the log scale, where a product of random layers is a sum:

    >>> bool(abs(lyapunov_exponents(2, critical_sigma(2))[0]) < 1e-14)
    True
    >>> mean, variance = relu_log_gain(512, sigma_w2=2.0)
    >>> round(variance * 512, 3)   # 5/n is only the leading order
    5.036
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from depthgauge.theory.activation import Activation, Array, Phi, activation
from depthgauge.theory.arguments import non_negative, positive, whole
from depthgauge.theory.expectation import Moments, moments
from depthgauge.theory.mean_field import variance_trajectory


class LogGain(NamedTuple):
    """Law of the log of a squared norm's growth in one layer, ln(|y|^2 / |x|^2); natural log.

    Attributes:
        mean: its mean.
        variance: its variance.
    """

    mean: float
    variance: float


def lyapunov_exponents(n: int, sigma: float) -> Array:
    """Lyapunov exponents of products of n x n real Gaussian matrices, entries N(0, sigma^2); per factor, descending.

    mu_i = (ln(2 sigma^2) + digamma((n - i + 1) / 2)) / 2, i = 1 .. n. Newman, "The distribution of Lyapunov exponents:
    exact results for random matrices" (1986), eq. 7. Exact at every n; the number of factors goes to infinity for all
    but the first, which is also the mean growth of a fixed vector's log-norm for any number of factors.
    """
    from scipy.special import digamma  # noqa: PLC0415 - scipy takes 0.3 s to import

    n, sigma = whole("n", n), positive("sigma", sigma)
    return np.asarray((math.log(2.0) + 2 * math.log(sigma) + digamma((n - np.arange(n)) / 2)) / 2, dtype=np.float64)


def log_norm_growth(n: int, sigma: float) -> LogGain:
    """Exact (mean, variance) per factor of ln(|G x| / |x|), G of size n x n with entries N(0, sigma^2).

    Increments are independent, (1/2) ln(sigma^2 chi^2_n): after L factors the log-norm of a fixed vector has mean
    L times this mean and variance L times this variance, at every L. Note the norm, not its square.
    """
    squared = linear_log_gain(n, whole("n", n) * positive("sigma", sigma) ** 2)
    return LogGain(squared.mean / 2, squared.variance / 4)


def critical_sigma(n: int) -> float:
    """The sigma at which the top Lyapunov exponent of n x n matrices is 0: exp(-digamma(n / 2) / 2) / sqrt(2).

    Larger than 1/sqrt(n), which keeps the mean square instead: a typical product shrinks there.
    """
    from scipy.special import digamma  # noqa: PLC0415 - scipy takes 0.3 s to import

    return math.exp(-float(digamma(whole("n", n) / 2)) / 2) / math.sqrt(2)


def linear_log_gain(width: int, sigma_w2: float) -> LogGain:
    """Exact (mean, variance) of ln(|W x|^2 / |x|^2), W of any fan-in and `width` rows, entries N(0, sigma_w2 / width).

    ln(sigma_w2 chi^2_n / n): mean ln(2 sigma_w2 / n) + digamma(n/2), variance trigamma(n/2).
    """
    from scipy.special import digamma, polygamma  # noqa: PLC0415 - scipy takes 0.3 s to import

    width, sigma_w2 = whole("width", width), positive("sigma_w2", sigma_w2)
    return LogGain(
        math.log(2 * sigma_w2 / width) + float(digamma(width / 2)),
        float(polygamma(1, width / 2)),
    )


def relu_log_gain(width: int, sigma_w2: float) -> LogGain:
    """Exact (mean, variance) of ln(|D W x|^2 / |x|^2) for one ReLU layer, given that a unit is active.

    Args:
        width: n, rows of W; the entries are N(0, sigma_w2 / width), D is the 0/1 mask of active units.
        sigma_w2: the He value is 2.

    Of n pre-activations m ~ Binomial(n, 1/2) are positive, independently of their sizes; given m, the squared norm's
    ratio is sigma_w2 chi^2_m / n. The mean and variance are of this mixture given m >= 1; with probability
    `relu_dying_probability(n)` = 2^-n all are negative and the log is -inf.

    The backward signal |W^T D v|^2 / |v|^2 has the same law for v of uniform direction, which every Gaussian layer
    above makes it: given m, |D v|^2 / |v|^2 is Beta(m/2, (n - m)/2), and its product with chi^2_n is chi^2_m. That D
    was computed from W does not matter, because changing the sign of a row of W and of its entry of v at once changes
    D but no law. Hanin and Nica, "Products of many large random matrices and gradients in deep neural networks"
    (2020), prove it for the whole product.

    To leading order mean ln(sigma_w2 / 2) - 5/(2n), variance 5/n; these are exact.
    """
    from scipy.special import digamma, gammaln, polygamma  # noqa: PLC0415 - scipy takes 0.3 s to import

    n, sigma_w2 = whole("width", width), positive("sigma_w2", sigma_w2)
    # Beyond 12 standard deviations the binomial holds less than 1e-31.
    reach = 6 * math.sqrt(n) + 40
    m = np.arange(max(1, math.floor(n / 2 - reach)), min(n, math.ceil(n / 2 + reach)) + 1, dtype=np.float64)
    log_weight = gammaln(n + 1) - gammaln(m + 1) - gammaln(n - m + 1)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    centre = digamma(m / 2)
    mean = float(weight @ centre)
    spread = float(weight @ (centre - mean) ** 2)
    return LogGain(math.log(2 * sigma_w2 / n) + mean, float(weight @ polygamma(1, m / 2)) + spread)


def relu_dying_probability(width: int, depth: int = 1) -> float:
    """Probability that no unit is active in at least one of `depth` ReLU layers: 1 - (1 - 2^-n)^depth.

    Exact for zero biases: each pre-activation is positive with probability 1/2, independently.
    """
    n, depth = whole("width", width), whole("depth", depth)
    return -math.expm1(depth * math.log1p(-(2.0**-n))) if n <= 1074 else 0.0  # 2^-1074 is the last double


def asymptotic_log_gain(phi: Phi, sigma_w: float, q: float, width: int) -> LogGain:
    """Asymptotic (mean, variance), to order 1/width, of the backward log-gain ln(|g_l|^2 / |g_l+1|^2) of one layer.

    Args:
        phi: any activation.
        sigma_w: weights are N(0, sigma_w^2 / width).
        q: variance of the layer's pre-activations, taken as known.
        width: n units.

    The gain is (sigma_w^2 / n) sum_j phi'(h_j)^2 g_j^2 with g_j standard normal: its mean is chi(q), its relative
    variance v / n with v = 3 E[phi'^4] / E[phi'^2]^2 - 1, and the log has mean ln(chi) - v / (2n), variance v / n. v is
    5 for ReLU and 2 for a linear layer; for those use the exact `relu_log_gain` and `linear_log_gain`. It leaves out
    that q itself differs by order 1/sqrt(n) from network to network, alike in neighbouring layers: `signal_law`
    adds that.
    """
    n = whole("width", width)
    sigma_w = positive("sigma_w", sigma_w)
    slopes = moments(activation(phi), np.array([non_negative("q", q)]))
    slope2, slope4 = float(slopes.slope2[0]), float(slopes.slope4[0])
    if slope2 == 0:
        return LogGain(-math.inf, math.nan)
    v = 3 * slope4 / slope2**2 - 1
    return LogGain(2 * math.log(sigma_w) + math.log(slope2) - v / (2 * n), v / n)


REUSE = 0.25
"""Nats a layer from which on what the weights of the forward pass do to the gradient is no first order in 1 / width."""


class SignalLaw(NamedTuple):
    """Signal and gradient over random networks of one width; natural log, each of shape (depth + 1,).

    Attributes:
        forward_mean: mean of ln(mean square of the pre-activations h_l).
        forward_std: its standard deviation.
        backward_mean: mean of ln(|g_l|^2 / |g_depth|^2), g_l the gradient with respect to h_l.
        backward_std: its standard deviation.
    """

    forward_mean: Array
    forward_std: Array
    backward_mean: Array
    backward_std: Array


def signal_law(phi: Phi, sigma_w: float, sigma_b: float, q_0: float, depth: int, *, width: int) -> SignalLaw:
    """Asymptotic law, to first order in depth / width, of signal and gradient at every layer of random networks.

    Args:
        phi: any activation.
        sigma_w: weights are N(0, sigma_w^2 / width).
        sigma_b: biases are N(0, sigma_b^2).
        q_0: variance of the first layer's pre-activations, exact for a given input.
        depth: L, layers after the first.
        width: n units in each.

    The gradient at the last layer is taken as isotropic and independent of the network. Propagation of small
    independent noise, to second order in it. The variance walks as dq_l+1 = V'(q_l) dq_l + V''(q_l) dq_l^2 / 2 + e_l,
    Var e = sigma_w^4 Var(phi^2) / n (compare Roberts, Yaida and Hanin, "The principles of deep learning theory", 2022,
    chapter 4). The log of the gradient gains ln chi(q_l + dq_l) + f_l in layer l: f has variance
    v / n, v = 3 E[phi'^4] / E[phi'^2]^2 - 1, covariance sigma_w^2 Cov(phi^2, phi'^2) / (n E[phi'^2]) with e_l, and mean
    -v / (2n) + x_l+1 E[phi^2 phi'^2] / (n E[phi^2] E[phi'^2]). The last term is there because the backward pass meets
    the weights of the forward pass: along phi(h_l) the weights of a unit add up to its pre-activation, and the gradient
    that arrives has variance 1 + x_l+1 there, 1 elsewhere; with all moments taken at layer l,
    x_l = (1 - sigma_b^2 / q) (E[h^2 phi'^2] / (q E[phi'^2]) - 1 + x_l+1 E[h phi phi']^2 / (q E[phi^2] E[phi'^2])),
    x_L = 0. It vanishes for ReLU and linear layers.

    Good while the standard deviations are well below 1. NaN where the squared variance leaves the range of a double,
    and of the gradient where that last term reaches REUSE in a layer: behind jumps, whose backward pass multiplies by a
    slope without the jump, x can grow from layer to layer, until the gradient has turned toward the signal.
    For ReLU and linear layers the exact laws are `relu_log_gain` and `linear_log_gain`.
    """
    n = whole("width", width)
    phi = activation(phi)
    q = variance_trajectory(phi, sigma_w, sigma_b, q_0, depth)
    q[q > 1e140] = math.nan  # phi^4 leaves the range of a double beyond
    usable = np.isfinite(q)
    step = 1e-3  # relative; the second derivatives only feed a correction of order 1/n
    with np.errstate(all="ignore"):
        at_q, less, more = (_moments_where(usable, phi, q * scale) for scale in (1.0, 1 - step, 1 + step))
        rate = sigma_w**2 * at_q.value2_rate
        curve = sigma_w**2 * (more.value2_rate - less.value2_rate) / (2 * step * q)
        noise = sigma_w**4 * (at_q.value4 - at_q.value2**2) / n
        bend = at_q.slope2_rate / at_q.slope2
        bend_rate = (more.slope2_rate / more.slope2 - less.slope2_rate / less.slope2) / (2 * step * q)
        slope_noise = (3 * at_q.slope4 / at_q.slope2**2 - 1) / n
        shared = sigma_w**2 * (at_q.mixed - at_q.value2 * at_q.slope2) / (n * at_q.slope2)
        excess = _excess(at_q, q, sigma_b)
        reuse = excess[1:] * (at_q.mixed / (at_q.value2 * at_q.slope2))[:-1] / n
        reach, shift, spread = _variance_walk(rate, curve, noise)

        mean, variance = np.zeros(len(q)), np.zeros(len(q))
        carried = np.zeros(len(q))
        local = 0.0
        for k in range(len(q) - 2, -1, -1):
            # A layer's own e_k enters only the q of later layers, whose share in `carried` is complete by now.
            local += slope_noise[k] + 2 * carried[k] * shared[k]
            carried += bend[k] * reach[k]
            variance[k] = carried[:-1] ** 2 @ noise[:-1] + local
            mean[k] = mean[k + 1] + math.log(sigma_w**2) + np.log(at_q.slope2[k]) - slope_noise[k] / 2
            mean[k] += bend[k] * shift[k] + bend_rate[k] * spread[k] / 2 + (reuse[k] if reuse[k] < REUSE else math.nan)
        variance[np.isnan(mean)] = math.nan
        # ln(chi^2_n / n) has mean -1/n and variance 2/n to this order.
        forward = np.log(q) + shift / q - spread / q**2 / 2 - 1 / n
        return SignalLaw(forward, np.sqrt(spread / q**2 + 2 / n), mean, np.sqrt(np.maximum(variance, 0.0)))


def _moments_where(usable: NDArray[np.bool_], phi: Activation, q: Array) -> Moments:
    """Moments at the usable variances, NaN elsewhere."""
    values = moments(phi, q[usable])
    full = np.full((len(values), len(q)), math.nan)
    full[:, usable] = values
    return Moments(*full)


def _excess(at_q: Moments, q: Array, sigma_b: float) -> Array:
    """x_l of `signal_law`, from E[h^2 phi'^2] / (q E[phi'^2]) = 1 + 2 q bend."""
    bend = at_q.slope2_rate / at_q.slope2
    handed = at_q.along**2 / (q * at_q.value2 * at_q.slope2)
    excess = np.zeros(len(q))
    for k in range(len(q) - 2, 0, -1):
        excess[k] = (1 - sigma_b**2 / q[k]) * (2 * q[k] * bend[k] + handed[k] * excess[k + 1])
    return excess


def _variance_walk(rate: Array, curve: Array, noise: Array) -> tuple[Array, Array, Array]:
    """reach[k, m]: how much of e_m is in dq_k; E[dq_k]; Var[dq_k]."""
    layers = len(rate)
    reach, shift, spread = np.zeros((layers, layers)), np.zeros(layers), np.zeros(layers)
    for k in range(1, layers):
        reach[k] = rate[k - 1] * reach[k - 1]
        reach[k, k - 1] = 1.0
        shift[k] = rate[k - 1] * shift[k - 1] + curve[k - 1] * spread[k - 1] / 2
        spread[k] = reach[k, :k] ** 2 @ noise[:k]
    return reach, shift, spread
