"""Growth of the signal along a stack of residual blocks, by block order and by the factor on the branch.

>>> q = residual_trajectory("relu", 2**0.5, scale=1.0, depth=10)      # x + W relu(x): doubles with every block
>>> round(float(q[-1]), 9)
1024.0
>>> q = residual_trajectory("relu", 2**0.5, scale=10**-0.5, depth=10)
>>> round(float(q[-1]), 9) == round(1.1**10, 9)
True
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from depthgauge.theory.activation import NODES, WEIGHTS, Activation, Array, Phi, activation
from depthgauge.theory.arguments import non_negative, whole
from depthgauge.theory.expectation import second_moment

Order = Literal["pre", "post", "pre-norm"]

_REACH = 9.0  # standard deviations to either side that the law of a unit is followed over
_MOST_PANELS = 400


def residual_trajectory(
    phi: Phi, sigma_w: float, scale: float, depth: int, *, order: Order = "pre", q_0: float = 1.0
) -> Array:
    """Second moment at the sums of `depth` residual blocks, q_0 .. q_depth, of shape (depth + 1,); infinite width.

    The stream starts at N(0, q_0), as a first linear layer leaves it; weights are N(0, sigma_w^2 / fan-in), no biases.

    - `pre`, x' = x + scale W phi(x) (He et al. 2016b): the stream stays Gaussian, and
      q' = q + scale^2 sigma_w^2 E[phi(sqrt(q) z)^2]; for ReLU q' = q (1 + scale^2 sigma_w^2 / 2), so that
      scale = 1/sqrt(L) bounds the growth by e^(sigma_w^2 / 2) at any depth (Zhang et al. 2019, section 2, for L
      branches).
    - `post`, x' = phi(x) + scale W phi(x), the sum before the activation of He et al. 2016a:
      q' = (1 + scale^2 sigma_w^2) E[phi(x)^2] over a law that is no longer Gaussian, as the shortcut is not symmetric
      under ReLU. The law of a unit is followed exactly, from sum to sum: a density on Gauss-Legendre panels.
    - `pre-norm`, x' = x + scale W phi(norm(x)) (Xiong et al. 2020): q' = q + scale^2 sigma_w^2 E[phi(z)^2], a straight
      line.

    Args:
        phi: any activation.
        sigma_w: sigma_w of the branch's linear map.
        scale: factor on the branch.
        depth: blocks.
        order: `pre`, `post` or `pre-norm`.
        q_0: second moment before the first block.

    Raises:
        ValueError: an unknown order, a parameter that is negative or not finite, or (post) a branch so small that the
            law cannot be resolved.
    """
    sigma_w, scale, q_0 = (non_negative(*pair) for pair in (("sigma_w", sigma_w), ("scale", scale), ("q_0", q_0)))
    depth, phi = whole("depth", depth, least=0), activation(phi)
    if order not in ("pre", "post", "pre-norm"):
        raise ValueError(f"the order of a block is 'pre', 'post' or 'pre-norm', not {order!r}")
    if order == "post":
        return _post(phi, sigma_w * scale, q_0, depth)
    q = np.empty(depth + 1)
    q[0] = q_0
    for block in range(depth):
        if q[block] > 1e290:  # phi^2 would overflow under the integral
            q[block:] = math.inf
            break
        at = q[block] if order == "pre" else 1.0
        q[block + 1] = q[block] + (scale * sigma_w) ** 2 * float(second_moment(phi, np.array([at]))[0])
    return q


def _post(phi: Activation, strength: float, q_0: float, depth: int) -> Array:
    """Follow the density of a unit at the sum: phi(x) plus a Gaussian of variance strength^2 E[phi(x)^2]."""
    if strength == 0 or q_0 == 0:
        return _without_branch(phi, q_0, depth)
    q = np.empty(depth + 1)
    nodes, weights = _panels(phi, 0.0, math.sqrt(q_0), math.sqrt(q_0))
    mass = weights * _normal(nodes, math.sqrt(q_0))
    for block in range(depth + 1):
        q[block] = float(mass @ nodes**2)
        value = phi.value(nodes)
        spread = strength * math.sqrt(float(mass @ value**2))
        centre = float(mass @ value)
        deviation = math.sqrt(max(float(mass @ value**2) - centre**2, 0.0) + spread**2)
        if not (0 < spread < 1e150):
            q[block + 1 :] = 0.0 if spread == 0 else math.inf
            break
        new, weights = _panels(phi, centre, deviation, spread)
        mass = weights * (_normal(new[:, None] - value, spread) @ mass)
        mass /= mass.sum()  # what lies beyond the reach
        nodes = new
    return q


def _without_branch(phi: Activation, q_0: float, depth: int) -> Array:
    """Phi applied again and again to N(0, q_0)."""
    nodes, weights = _panels(phi, 0.0, math.sqrt(q_0) or 1.0, math.sqrt(q_0) or 1.0)
    mass = weights * _normal(nodes, math.sqrt(q_0) or 1.0)
    values = nodes if q_0 else np.zeros_like(nodes)
    q = np.empty(depth + 1)
    for block in range(depth + 1):
        q[block] = float(mass @ values**2)
        values = phi.value(values)
    return q


def _normal(x: Array, std: float) -> Array:
    return np.asarray(np.exp(-0.5 * (x / std) ** 2) / (std * math.sqrt(2 * math.pi)))


def _panels(phi: Activation, centre: float, deviation: float, spread: float) -> tuple[Array, Array]:
    """Nodes and weights of panels no wider than a density smoothed by `spread` bends, with phi's kinks as edges."""
    low, high = centre - _REACH * deviation, centre + _REACH * deviation
    count = math.ceil((high - low) / (3 * spread))
    if count > _MOST_PANELS:
        raise ValueError("the branch is too small against its shortcut for the law of the sum to be followed")
    _, kinks = phi.mesh(max(abs(low), abs(high)))
    inside = kinks[(kinks > low) & (kinks < high)]
    edges = np.unique(np.concatenate([np.linspace(low, high, max(count, 12) + 1), inside]))
    half, middle = np.diff(edges)[:, None] / 2, ((edges[1:] + edges[:-1]) / 2)[:, None]
    return (middle + half * NODES).ravel(), (half * WEIGHTS).ravel()
