"""The signal through a plain network at initialization, predicted from its activation, sigmas and width.

>>> law = plain_signal("relu", 2**0.5, 0.0, math.inf, [1, 10, 20])
>>> law.forward.round(12).tolist(), law.backward.round(12).tolist()     # critical: ln 2 and 0, at every layer
([0.69314718056, 0.69314718056, 0.69314718056], [0.0, 0.0, 0.0])
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Activation, Array, Phi, activation
from depthgauge.theory.arguments import whole
from depthgauge.theory.finite_width import linear_log_gain, relu_log_gain, signal_law
from depthgauge.theory.mean_field import chi, gradient_trajectory, variance_trajectory

_EXACT = {"relu": relu_log_gain, "identity": linear_log_gain}
_REACH = 40.0  # how far a function that is ReLU, whatever its name, has ReLU's values and slopes


class PlainSignal(NamedTuple):
    """Predicted ln second moments at k layers of a plain network; natural log, each of shape (k,).

    Attributes:
        forward: of the pre-activations; -inf where the signal has died, inf where it left the range of a double.
        backward: of the gradient with respect to them, relative to the last of the layers, where it is 0.
    """

    forward: Array
    backward: Array


def plain_signal(
    phi: Phi,
    sigma_w: float,
    sigma_b: float,
    width: float,
    layers: ArrayLike,
    *,
    q_1: float | None = None,
    largest: float = math.inf,
) -> PlainSignal:
    """Mean of ln second moment at each layer of a network without shortcuts or normalization.

    The second moments of mean field, `variance_trajectory` and `gradient_trajectory` (Schoenholz et al. 2017, eqs. 3
    and 14): q_l+1 = sigma_w^2 E[phi^2] + sigma_b^2, and g_l = chi(q_l) g_l+1. Finite width adds to their logarithms, in
    equal parts to every layer passed:

    - ReLU and linear layers, exactly: E ln(|D W x|^2 / |x|^2) - ln chi, from `relu_log_gain` and `linear_log_gain`.
      Backward it holds with biases too, since a unit is active with probability 1/2 all the same; forward with biases
      it is unknown and left out.
    - other activations, to first order in layers / width: the whole net's difference between `signal_law` and mean
      field, over its layers. Left out where `signal_law` has none (a signal that died or overflowed).

    Args:
        phi: any activation, see `activation`.
        sigma_w: weights are N(0, sigma_w^2 / width).
        sigma_b: biases are N(0, sigma_b^2).
        width: units a layer; infinity for mean field alone, as for weights that are not independent Gaussians.
        layers: ascending numbers of layers, from 1 on, shape (k,).
        q_1: second moment of the pre-activations at layer 1; None: sigma_w^2 + sigma_b^2, as inputs of second moment 1
            make it.
        largest: a first order in 1 / width beyond this many nats a layer is no small correction, and is left out.

    Raises:
        ValueError: layers that are not ascending from 1 or later, or a parameter out of range.
    """
    at = np.asarray(layers, dtype=np.int64)
    if at.ndim != 1 or at.size == 0 or at[0] < 1 or (np.diff(at) <= 0).any():
        raise ValueError(f"layers are ascending numbers from 1 on; got {at.tolist()!r:.80}")
    phi, depth = activation(phi), int(at[-1]) - 1
    start = sigma_w**2 + sigma_b**2 if q_1 is None else q_1
    with np.errstate(divide="ignore"):
        log_q = np.log(variance_trajectory(phi, sigma_w, sigma_b, start, depth))
        log_g = np.log(gradient_trajectory(phi, sigma_w, sigma_b, start, depth))
    forward = backward = 0.0
    if math.isfinite(width):
        n = whole("width", width)
        exact = next((law for name, law in _EXACT.items() if _same(phi, activation(name))), None)
        if exact is not None:
            backward = exact(n, sigma_w**2).mean - math.log(chi(phi, sigma_w, 1.0))
            forward = backward if sigma_b == 0 else 0.0
        elif depth:
            law = signal_law(phi, sigma_w, sigma_b, start, depth, width=n)
            with np.errstate(invalid="ignore"):  # -inf - -inf, where the signal died
                ends = (law.forward_mean[-1] - log_q[-1], law.backward_mean[0] - log_g[0])
            forward, backward = (_small(float(end) / depth, largest) for end in ends)
    return PlainSignal(log_q[at - 1] + forward * (at - 1), log_g[at - 1] + backward * (at[-1] - at))


def _same(phi: Activation, other: Activation) -> bool:
    """Whether values and slopes are equal, at the middle and the thirds of every panel of both meshes.

    A kink or jump of either is the edge of a panel, however near to 0 it lies.
    """
    if phi is other:
        return True
    try:
        edges = np.union1d(phi.mesh(_REACH)[0], other.mesh(_REACH)[0])
    except ValueError:  # it varies too fast to be one of them
        return False
    points = np.concatenate([edges[:-1] + share * np.diff(edges) for share in (1 / 3, 1 / 2, 2 / 3)])
    return np.array_equal(phi.both(points), other.both(points))


def _small(correction: float, largest: float) -> float:
    return correction if math.isfinite(correction) and abs(correction) < largest else 0.0
