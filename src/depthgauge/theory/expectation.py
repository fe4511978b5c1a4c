"""Expectations over one Gaussian, and over two correlated ones.

    >>> from depthgauge.theory import activation
    >>> relu = activation("relu")
    >>> moments(relu, np.array([1.0, 4.0])).value2
    array([0.5, 2. ])
    >>> value, slope = correlated(relu, 1.0, 1.0, 0.0)
    >>> bool(np.isclose(value, 1 / (2 * np.pi), rtol=1e-12)), bool(np.isclose(slope, 1 / 4, rtol=1e-12))
    (True, True)

The rule is composite Gauss-Legendre (20 nodes a panel) whose panels end wherever the activation bends or the
Gaussian does: kinks (ReLU) are edges, and a sigmoidal step that is a hundredth of a standard deviation wide (tanh at
variance 1e4) has its own panels. Plain Gauss-Hermite is wrong by parts in a thousand for either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from depthgauge.theory.activation import NODES, WEIGHTS, Activation, Array

_SQRT_2PI = math.sqrt(2 * math.pi)

# Panels narrow enough for the Gaussian itself. The wide set reaches as far as a double's exponent, for activations
# that are zero near the origin (hardshrink at small variance); the narrow one ends at a weight of 1e-18.
_HALF_WIDE = np.array([1.5, 3.0, 4.5, 6.5, 9.0, 12.0, 16.0, 21.0, 28.0, 38.0])
_HALF_NARROW = np.array([1.5, 3.0, 4.5, 6.5, 9.0])
_WIDE = np.concatenate([-_HALF_WIDE[::-1], [0.0], _HALF_WIDE])
_NARROW = np.concatenate([-_HALF_NARROW[::-1], [0.0], _HALF_NARROW])

# Below this variance phi is taken at +-0: phi^2 would leave the range of a double. It keeps one-sided slopes apart.
_TINY = 1e-200


def _rule(edges: Array) -> tuple[Array, Array]:
    """(nodes, weights) of E[f(z)] for panels between sorted `edges` (..., k): each of shape (..., (k - 1) * 20)."""
    half = np.diff(edges)[..., None] / 2
    middle = ((edges[..., 1:] + edges[..., :-1]) / 2)[..., None]
    z = middle + half * NODES
    weight = half * WEIGHTS * np.exp(-z * z / 2) / _SQRT_2PI
    shape = (*edges.shape[:-1], -1)
    return z.reshape(shape), weight.reshape(shape)


class Moments(NamedTuple):
    """Gaussian moments of an activation; each an array over the variances asked for.

    Attributes:
        value: E[phi(u)], u ~ N(0, q).
        value2: E[phi(u)^2].
        value4: E[phi(u)^4].
        slope2: E[phi'(u)^2].
        slope4: E[phi'(u)^4].
        mixed: E[phi(u)^2 phi'(u)^2].
        along: E[phi(u) phi'(u) u], with the slope almost everywhere.
        value2_rate: d E[phi(u)^2] / dq, which is `along` / q where phi does not jump.
        slope2_rate: d E[phi'(u)^2] / dq = E[phi'(u)^2 (u^2 / q - 1)] / (2 q).
    """

    value: Array
    value2: Array
    value4: Array
    slope2: Array
    slope4: Array
    mixed: Array
    along: Array
    value2_rate: Array
    slope2_rate: Array


def _panels(phi: Activation, q: Array) -> tuple[Array, Array, Array, Array]:
    """Standard deviations (n, 1), the kinks that are met, nodes and weights (n, k) of a rule for each variance."""
    sigma = np.sqrt(np.maximum(np.atleast_1d(np.asarray(q, dtype=np.float64)), _TINY))[:, None]
    edges, kinks = phi.mesh(float(38 * sigma.max()))
    wide = np.broadcast_to(_WIDE, (len(sigma), len(_WIDE)))
    z, weight = _rule(np.sort(np.concatenate([np.clip(edges / sigma, -38, 38), wide], 1)))
    return sigma, kinks, z, weight


def second_moment(phi: Activation, q: Array) -> Array:
    """E[phi(u)^2] alone, u ~ N(0, q): to the bit `moments(phi, q).value2`, in a third of its time."""
    sigma, _, z, weight = _panels(phi, q)
    value = phi.value(z * sigma)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return np.asarray(np.einsum("ij,ij->i", value * value, weight))


def moments(phi: Activation, q: Array) -> Moments:
    """Moments of phi(u) and phi'(u), u ~ N(0, q), for every variance of the vector `q` (0 is taken as a limit)."""
    sigma, kinks, z, weight = _panels(phi, q)
    value, slope = phi.both(z * sigma)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        value2, slope2 = value * value, slope * slope

        def mean(f: Array) -> Array:
            return np.asarray(np.einsum("ij,ij->i", f, weight))

        projected = mean(value * slope * z)
        rate = projected / sigma[:, 0]
        if phi.jumps(kinks):  # the derivative of a step is not in phi'; this form needs none, at some cancellation
            rate = mean(value2 * (z * z - 1)) / (2 * sigma[:, 0] ** 2)
        return Moments(
            mean(value),
            mean(value2),
            mean(value2 * value2),
            mean(slope2),
            mean(slope2 * slope2),
            mean(value2 * slope2),
            projected * sigma[:, 0],
            rate,
            mean(slope2 * (z * z - 1)) / (2 * sigma[:, 0] ** 2),
        )


def correlated(phi: Activation, q_a: float, q_b: float, c: float) -> tuple[float, float]:
    """(E[phi(u_a) phi(u_b)], E[phi'(u_a) phi'(u_b)]) for Gaussians of variances q_a, q_b and correlation c.

    In the rotated variables u_a = sqrt(q_a) (a s + b d), u_b = sqrt(q_b) (a s - b d), a^2 = (1 + c) / 2,
    b^2 = (1 - c) / 2, the inner integral over s has its kinks at known places for each d, and what it leaves has its
    own only where two of them meet. Nothing degenerates as c approaches 1.
    """
    sigma_a, sigma_b = math.sqrt(max(q_a, _TINY)), math.sqrt(max(q_b, _TINY))
    a, b = math.sqrt((1 + c) / 2), math.sqrt((1 - c) / 2)
    reach = _NARROW[-1]
    edges, kinks = phi.mesh(1.5 * reach * max(sigma_a, sigma_b))
    edges_a = edges[np.abs(edges) <= 1.5 * reach * sigma_a] / sigma_a
    edges_b = edges[np.abs(edges) <= 1.5 * reach * sigma_b] / sigma_b
    symmetric = sigma_a == sigma_b  # then the inner integral is even in d

    def inner(d: Array) -> tuple[Array, Array]:
        column = d[:, None]
        if a > 0:
            panels = np.concatenate(
                [
                    np.clip((edges_a - b * column) / a, -reach, reach),
                    np.clip((edges_b + b * column) / a, -reach, reach),
                    np.broadcast_to(_NARROW, (len(d), len(_NARROW))),
                ],
                axis=1,
            )
            s, weight = _rule(np.sort(panels))
        else:
            s, weight = np.zeros((len(d), 1)), np.ones((len(d), 1))
        value_a, slope_a = phi.both(sigma_a * (a * s + b * column))
        value_b, slope_b = phi.both(sigma_b * (a * s - b * column))
        return (value_a * value_b * weight).sum(1), (slope_a * slope_b * weight).sum(1)

    if b == 0:
        value, slope = inner(np.zeros(1))
        return float(value[0]), float(slope[0])

    meet = (kinks[:, None] / sigma_a - kinks / sigma_b).ravel() / (2 * b)
    # Sharp features (a step of width 1 in u) leave a feature of this width in d; graded panels start there.
    graded = np.outer([-1, 1], 2.0 ** np.arange(0, 7, 2)).ravel() / (2 * b * max(sigma_a, sigma_b))
    graded = graded[np.abs(graded) < _HALF_NARROW[0]]
    outer = np.unique(np.concatenate([_NARROW, meet, graded]))
    outer = outer[np.abs(outer) <= reach]
    if symmetric:
        outer = outer[outer >= 0]
    outer = outer[np.concatenate([[True], np.diff(outer) > 1e-14])]  # coinciding up to rounding
    value_sum, slope_sum = adaptive(inner, outer, _gaussian)
    factor = 2.0 if symmetric else 1.0
    return factor * value_sum, factor * slope_sum


# Tail of a panel's Legendre coefficients: what the integrand's interpolant of degree 19 may still miss. Gauss with 20
# nodes squares that error for a smooth integrand.
_TAIL = np.linalg.inv(np.polynomial.legendre.legvander(NODES, 19))[-4:]


def _gaussian(d: Array) -> Array:
    return np.asarray(np.exp(-d * d / 2) / _SQRT_2PI)


def adaptive(
    integrands: Callable[[Array], tuple[Array, ...]], edges: Array, density: Callable[[Array], Array]
) -> tuple[float, ...]:
    """Integrals of several functions over one density, by panels that are halved until each is resolved.

    Args:
        integrands: (n,) points -> one (n,) array a function.
        edges: sorted; where the functions are known to bend. Neighbours may coincide.
        density: (n,) points -> (n,) weights.
    """
    low, high = edges[:-1], edges[1:]
    sums: list[float] = []
    sizes: list[float] = []
    for _ in range(40):
        half = (high - low) / 2
        d = ((high + low) / 2)[:, None] + half[:, None] * NODES
        weight = density(d)
        bad = np.zeros(len(low), dtype=bool)
        parts = []
        for k, f in enumerate(integrands(d.ravel())):
            if k == len(sums):
                sums.append(0.0)
                sizes.append(1e-300)
            g = f.reshape(d.shape) * weight
            tail = np.abs(g @ _TAIL.T).max(axis=1) * half
            part = half * (g @ WEIGHTS)
            sizes[k] = max(sizes[k], float(np.abs(sums[k] + part.sum())), float((half * (np.abs(g) @ WEIGHTS)).max()))
            bad |= tail > 1e-9 * sizes[k]  # squared by the Gauss rule, see _TAIL
            parts.append(part)
        bad &= half > 1e-13  # no double lies between
        for k, part in enumerate(parts):
            sums[k] += float(part[~bad].sum())
        if not bad.any():
            break
        middle = ((low + high) / 2)[bad]
        low, high = np.concatenate([low[bad], middle]), np.concatenate([middle, high[bad]])
    return tuple(sums)
