"""Batch normalization: growth of a gradient through one layer, and the variance that a part of a batch sees.

Conventions. A layer is x -> phi(BN(W x)), wide, W ~ N(0, sigma_w^2 / fan_in), BN by the statistics of the batch of B
examples, without its epsilon. A unit's B pre-activations are jointly Gaussian; centred and divided by their norm they
are uniform on the unit sphere of the B - 1 dimensions orthogonal to (1, ..., 1), whatever sigma_w and the bias are. So
where no example is special, the batch's Gram matrix is at its fixed point after a single layer.

    >>> round(batch_norm_growth("identity", 10), 12) == round(8 / 7, 12)      # (B - 2) / (B - 3)
    True
    >>> round(batch_norm_growth("relu", math.inf), 12) == round(math.pi / (math.pi - 1), 12)
    True

Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz, "A mean field theory of batch normalization" (2019).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from depthgauge.theory.activation import NODES, WEIGHTS, Activation, Array, Phi, activation
from depthgauge.theory.arguments import whole
from depthgauge.theory.expectation import adaptive, moments

# Panels narrow enough for the density cos^k, in units of 1 / sqrt(k); beyond the last it is below a double's rounding.
_PANELS = np.array([1.5, 3.0, 4.5, 6.5, 9.0])


def batch_norm_growth(phi: Phi, batch: float) -> float:
    """Growth of the squared gradient through one layer of Linear, BatchNorm and activation, at batch size `batch`.

    With z the normalized pre-activations of a unit, d = phi'(z) and examples 1 and 2,

        ((B - 1) E[d_1^2] - E[z_1^2 d_1^2] + E[d_1 d_2] + E[z_1 d_1 z_2 d_2])
            / ((B - 3) (E[phi(z_1)^2] - E[phi(z_1) phi(z_2)])).

    1 / (B - 3) is the mean of 1 / chi^2 with B - 1 degrees of freedom, by which a unit's spread in the batch divides
    its gradient: infinite at B = 3, of infinite variance at B <= 5. At B = 2 every z is +-1 and no gradient passes. At
    B = infinity it is E[phi'^2] / Var[phi] over a standard normal: pi / (pi - 1) for ReLU.

    Infinite width, at the fixed point of the batch's statistics, weights of the backward pass taken as independent of
    the forward pass; the expectations are exact to about 1e-9. Yang et al. 2019 have the cases of the identity,
    (B - 2) / (B - 3), and of ReLU at large B; docs/theory.md has the derivation.

    Args:
        phi: any activation, see `activation`.
        batch: a whole number of at least 2, or infinity.

    Raises:
        ValueError: a batch of less than 2, or an activation that is constant over it.
    """
    function = activation(phi)
    return _growth(function, math.inf if batch == math.inf else whole("batch", batch, least=2))


def batch_norm_shard_bias(batch: int, ranks: int) -> float:
    """Expected biased variance of a rank's shard over that of the whole batch, where every rank has its own statistics.

        mean over ranks of (1 - 1 / n_r) B / (B - 1)        (B - k) / (B - 1) for k equal shards

    Exact for any values, over random splits of a batch, as over independent examples: the unbiased variance of a part
    is that of the whole in the mean. 0 at one example a rank. Of images the pixels of one example correlate, so that B
    counts examples, and the bias is smaller.

    >>> round(batch_norm_shard_bias(4, ranks=2), 12)            # two examples a rank: a third of the variance is lost
    0.666666666667

    Args:
        batch: B, examples of all ranks together, at least 2.
        ranks: k; where B / k is no whole number, the first B mod k ranks have one example more, as by
            `torch.tensor_split`.

    Raises:
        ValueError: a batch of less than 2, or fewer examples than ranks.
    """
    size, parts = whole("batch", batch, least=2), whole("ranks", ranks)
    if parts > size:
        raise ValueError(f"a batch of {size} leaves some of {parts} ranks without an example")
    small, larger = divmod(size, parts)
    inverse = (larger / (small + 1) + (parts - larger) / small) / parts
    return (1 - inverse) * size / (size - 1)


@lru_cache(maxsize=1024)
def _growth(phi: Activation, batch: float) -> float:
    if math.isinf(batch):
        at_one = moments(phi, np.ones(1))
        return float(at_one.slope2[0]) / _spread(phi, float(at_one.value2[0]), float(at_one.value[0] ** 2))
    if batch <= 3:
        return 0.0 if batch == 2 else math.inf
    size = int(batch)
    value2, slope2, steep2 = _single(phi, size)
    value, slope, steep = _pair(phi, size)
    spread = _spread(phi, value2, value)
    return ((size - 1) * slope2 - steep2 + slope + steep) / ((size - 3) * spread)


def _spread(phi: Activation, square: float, product: float) -> float:
    if square - product <= 1e-12 * square:  # rounding of the integrals
        raise ValueError(f"activation {phi.name!r} is constant: batch normalization cannot revive it")
    return square - product


def _single(phi: Activation, batch: int) -> tuple[float, float, float]:
    """(E[phi(z)^2], E[d^2], E[z^2 d^2]) of one example: z = sqrt(B - 1) sin s, s of density cos^(B - 3)."""
    radius = math.sqrt(batch - 1)
    edges = _angles(phi.mesh(radius)[0] / radius, batch - 3)

    def integrand(s: Array) -> tuple[Array, ...]:
        z = radius * np.sin(s)
        value, slope = phi.both(z)
        return value**2, slope**2, (z * slope) ** 2

    first, second, third = adaptive(integrand, edges, lambda s: _density(s, batch - 3))
    return first, second, third


def _pair(phi: Activation, batch: int) -> tuple[float, float, float]:
    """(E[phi(z_1) phi(z_2)], E[d_1 d_2], E[z_1 d_1 z_2 d_2]) of two examples, which correlate by -1 / (B - 1).

    Given z_1, z_2 is its regression on z_1 plus a length times sin t, t of density cos^(B - 4).
    """
    radius, correlation = math.sqrt(batch - 1), -1 / (batch - 1)
    mesh, kinks = phi.mesh(radius)
    across = radius * math.sqrt(1 - correlation**2)

    def inner(s: Array) -> tuple[Array, ...]:
        z_1 = radius * np.sin(s)
        middle, length = correlation * z_1[:, None], across * np.cos(s)[:, None]
        t, weight = _rule(_angles((mesh - middle) / length, batch - 4))
        weight = weight * _density(t, batch - 4)
        z_2 = middle + length * np.sin(t)
        (value_1, slope_1), (value_2, slope_2) = phi.both(z_1), phi.both(z_2)
        steep_2 = z_2 * slope_2
        return (
            value_1 * (value_2 * weight).sum(1),
            slope_1 * (slope_2 * weight).sum(1),
            z_1 * slope_1 * (steep_2 * weight).sum(1),
        )

    # A kink enters or leaves the range of z_2 where radius sin(s +- tilt) meets it.
    tilt = math.acos(correlation)
    at = np.arcsin(np.clip(kinks / radius, -1, 1))
    meets = np.concatenate([angle + shift for angle in (at, math.pi - at) for shift in (tilt, -tilt)])
    meets = np.arctan2(np.sin(meets), np.cos(meets))
    edges = _angles(np.concatenate([mesh / radius, np.sin(meets[np.abs(meets) < math.pi / 2])]), batch - 3)
    first, second, third = adaptive(inner, edges, lambda s: _density(s, batch - 3))
    return first, second, third


def _density(angle: Array, power: int) -> Array:
    """cos^power over its integral from -pi/2 to pi/2."""
    log_total = 0.5 * math.log(math.pi) + math.lgamma((power + 1) / 2) - math.lgamma(power / 2 + 1)
    with np.errstate(divide="ignore", under="ignore"):
        return np.asarray(np.exp(power * np.log(np.cos(angle)) - log_total))


def _angles(sines: Array, power: int) -> Array:
    """Sorted panel edges from -pi/2 to pi/2: the arcsines of `sines` (..., k), and panels narrow enough for cos^power.

    With a large power all the weight lies near 0, and the edges end where it ends.
    """
    end = min(math.pi / 2, float(_PANELS[-1]) / math.sqrt(power)) if power else math.pi / 2
    panels = end * _PANELS / _PANELS[-1]
    fixed = np.concatenate([-panels[::-1], [0.0], panels])
    edges = np.clip(np.arcsin(np.clip(sines, -1, 1)), -end, end)
    return np.sort(np.concatenate([edges, np.broadcast_to(fixed, (*edges.shape[:-1], len(fixed)))], axis=-1), axis=-1)


def _rule(edges: Array) -> tuple[Array, Array]:
    """Composite Gauss-Legendre: nodes and weights, (..., panels * 20), between sorted edges (..., panels + 1)."""
    half = np.diff(edges)[..., None] / 2
    nodes = ((edges[..., 1:] + edges[..., :-1]) / 2)[..., None] + half * NODES
    shape = (*edges.shape[:-1], -1)
    return nodes.reshape(shape), (half * WEIGHTS).reshape(shape)
