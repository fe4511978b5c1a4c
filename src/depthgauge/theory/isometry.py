"""Singular values of the input-output Jacobian of a random network: J = D_L W_L ... D_1 W_1, D_l = diag phi'(h_l).

    >>> jacobian_spectrum("identity", 1.0, 1.0, depth=10)
    Spectrum(mean=1.0, variance=10.0)
    >>> jacobian_spectrum("identity", 1.0, 1.0, depth=10, weights="orthogonal").variance
    0.0

Pennington, Schoenholz and Ganguli, "Resurrecting the sigmoid in deep learning through dynamical isometry" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from depthgauge.theory.activation import Phi, activation
from depthgauge.theory.arguments import non_negative, whole
from depthgauge.theory.expectation import moments

Weights = Literal["gaussian", "orthogonal"]

_S1 = {"gaussian": -1.0, "orthogonal": 0.0}  # first coefficient of the S-transform of W W^T


class Spectrum(NamedTuple):
    """Moments of the n squared singular values of one network's Jacobian, expected over networks.

    Attributes:
        mean: mean of the squared singular values.
        variance: variance of the squared singular values about their own mean.
    """

    mean: float
    variance: float


def critical_sigmas(phi: Phi, q: float) -> tuple[float, float]:
    """(sigma_w, sigma_b) whose fixed variance is `q` and whose mean squared singular value is 1 at every depth.

    sigma_w^2 = 1 / E[phi'^2], sigma_b^2 = q - E[phi^2] / E[phi'^2], both at q: the edge of chaos as a curve in q.

    Raises:
        ValueError: q is not on the edge, as sigma_b^2 would be negative, or phi has no slope there.
    """
    at_q = moments(activation(phi), np.array([non_negative("q", q)]))
    value2, slope2 = float(at_q.value2[0]), float(at_q.slope2[0])
    sigma_w = slope2**-0.5 if slope2 > 0 else math.inf
    rest = q - sigma_w**2 * value2
    if not rest > -1e-12 * q:
        raise ValueError(f"{activation(phi).name} has no critical point of variance {q:g}")
    return sigma_w, math.sqrt(rest) if rest > 1e-12 * q else 0.0  # a smaller rest is the quadrature's rounding


def jacobian_spectrum(
    phi: Phi,
    sigma_w: float,
    q: float | Sequence[float],
    depth: int,
    *,
    weights: Weights = "gaussian",
    width: int | None = None,
) -> Spectrum:
    """Mean and variance of the squared singular values of the Jacobian of `depth` square layers.

    mean = prod_l sigma_w^2 mu_1, variance = mean^2 sum_l (mu_2 / mu_1^2 - 1 - s_1), mu_k = E[phi'(sqrt(q_l) z)^2k],
    with s_1 = -1 for Gaussian and 0 for orthogonal weights (Pennington et al. 2017, who have one q). Infinite width.
    Isometry is a mean of 1 and a variance that stays bounded: orthogonal weights need mu_2 = mu_1^2, which ReLU
    (mu_1 = mu_2 = 1/2) never has.

    With `width`, exact at that width, for ReLU and the identity without biases under Gaussian weights: what a layer
    makes of A = J J^T has closed second moments, since flipping the signs of a row of W changes no entry's square, so
    that which units are active is independent of W A W^T up to signs.

    Args:
        phi: any activation.
        sigma_w: weights are N(0, sigma_w^2 / n), or sigma_w times orthogonal.
        q: variance of the pre-activations, the same at every layer or one a layer.
        depth: layers.
        weights: `gaussian` or `orthogonal`.
        width: n; None: infinite.

    Raises:
        ValueError: an unknown kind of weights, as many variances as there are no layers, or a finite width where no
            exact law is known.
    """
    sigma_w, depth, phi = non_negative("sigma_w", sigma_w), whole("depth", depth), activation(phi)
    if weights not in _S1:
        raise ValueError(f"weights are 'gaussian' or 'orthogonal', not {weights!r}")
    if width is not None:
        return _exact(phi.name, sigma_w, depth, weights, whole("width", width))
    layers = np.array([non_negative("q", value) for value in np.atleast_1d(np.asarray(q, dtype=np.float64))])
    if len(layers) not in (1, depth):
        raise ValueError(f"q has {len(layers)} variances for {depth} layers; give one, or one a layer")
    layers = np.broadcast_to(layers, depth)
    at_layers = moments(phi, layers)
    mean = float(np.prod(sigma_w**2 * at_layers.slope2))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = at_layers.slope4 / at_layers.slope2**2 - 1 - _S1[weights]
    # What the quadrature leaves of mu_2 - mu_1^2 where phi' is constant is no variance.
    relative[np.abs(relative) < 1e-12] = 0.0
    return Spectrum(_settle(mean), _settle(mean**2 * float(relative.sum())))


def _settle(x: float) -> float:
    return float(f"{x:.13g}") if math.isfinite(x) else x


def _exact(name: str, sigma_w: float, depth: int, weights: str, n: int) -> Spectrum:
    """By recursion of a = E[tr A^2] / n and b = E[(tr A)^2] / n^2 over layers A -> D W A W^T D."""
    if name == "identity" and weights == "orthogonal":
        return Spectrum(sigma_w ** (2 * depth), 0.0)
    if name not in ("identity", "relu") or weights != "gaussian":
        raise ValueError(
            "at finite width the spectrum is known exactly for ReLU and the identity under Gaussian weights (and for "
            f"the identity under orthogonal ones), not for {name} under {weights} ones; leave the width out"
        )
    a = b = 1.0
    for _ in range(depth):
        squares = a * (1 + 1 / n) + b  # of W A W^T: E[tr B^2] / n
        traces = b + 2 * a / n**2  # E[(tr B)^2] / n^2
        diagonal = b + 2 * a / n  # E[sum B_ii^2] / n
        if name == "relu":  # each unit active with probability 1/2
            squares, traces = (squares + diagonal) / 4, (traces + diagonal / n) / 4
        a, b = sigma_w**4 * squares, sigma_w**4 * traces
    slope2 = 0.5 if name == "relu" else 1.0
    return Spectrum((sigma_w**2 * slope2) ** depth, a - b)
