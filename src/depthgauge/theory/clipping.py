"""Points of rest of clipped gradients, and how far back the gates of a recurrent cell let a gradient reach.

>>> from scipy import stats
>>> abs(clipped_rest(stats.expon(loc=-1).cdf, 16.0)) < 1e-3  # the mean, as the bound grows
True
>>> abs(clipped_rest(stats.expon(loc=-1).cdf, 1e-3) + 1 - 0.6931) < 1e-3  # the median, as it falls
True
>>> gate_decay(0.0, [0, 1, 2]).tolist()
[1.0, 0.5, 0.25]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)
_PANELS = 64


def clipped_mean(cdf: Callable[[Array], Array], at: float, largest: float) -> float:
    """Expected clipped gradient E[clip(w - y, -c, c)] of the loss (w - y)^2 / 2, exact for any law of y.

    As clip(z, -c, c) = -c + the length of {t in (-c, c): t < z}, it is -c plus the integral of the distribution
    function of y over (w - c, w + c); by Gauss-Legendre quadrature on panels.

    Args:
        cdf: the distribution function of y, over arrays.
        at: w.
        largest: c, above 0.

    Raises:
        ValueError: c is not above 0.
    """
    c = non_negative("largest", largest)
    if c == 0:
        raise ValueError("a gradient clipped at 0 is 0 everywhere")
    edges = np.linspace(at - c, at + c, _PANELS + 1)
    half = c / _PANELS
    nodes = (edges[:-1, None] + edges[1:, None]) / 2 + half * _NODES
    return float((cdf(nodes) @ _WEIGHTS).sum() * half - c)


def clipped_rest(cdf: Callable[[Array], Array], largest: float) -> float:
    """The w at which the expected clipped gradient of (w - y)^2 / 2 is 0, by bisection.

    SGD with small steps, each example's gradient clipped to -c .. c, rests there, between the median (c to 0) and the
    mean (c to infinity). For a symmetric law all three are one.

    Args:
        cdf: the distribution function of y, over arrays.
        largest: c, above 0.

    Raises:
        ValueError: c is not above 0.
    """
    low, high = -1.0, 1.0
    while clipped_mean(cdf, low, largest) > 0:
        low *= 2
    while clipped_mean(cdf, high, largest) < 0:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if clipped_mean(cdf, middle, largest) < 0 else (low, middle)
    return (low + high) / 2


def gate_decay(bias: ArrayLike, steps: ArrayLike) -> Array:
    """Root mean square over units of the product of forget gates sigmoid(bias) over some steps, of shape (steps,).

    The cell of an LSTM is c' = f c + ..., so that this is its gradient where gates do not depend on the state.

    Args:
        bias: forget biases of the units, one or many.
        steps: numbers of steps.
    """
    gates = 1 / (1 + np.exp(-np.atleast_1d(np.asarray(bias, float))))
    powers = gates[:, None] ** (2 * np.atleast_1d(np.asarray(steps, float)))
    return np.asarray(np.sqrt(powers.mean(0)))


def chrono_biases(longest: float, units: int = 4096) -> Array:
    """Forget biases ln u at the quantiles of u uniform in 1 .. longest - 1 (Tallec and Ollivier 2018)."""
    return np.log(1 + (np.arange(units) + 0.5) / units * (longest - 2))


def reach(decay: ArrayLike, share: float = 1 / math.e) -> float:
    """Steps after which a falling curve of values at 0, 1, 2, ... is first below a share; infinite where it never is.

    By straight lines over the logarithm.
    """
    values = np.asarray(decay, float)
    below = np.flatnonzero(~(values > share))
    if not len(below):
        return math.inf
    k = int(below[0])
    if k == 0:
        return 0.0
    start, end = np.log(values[k - 1]), np.log(max(values[k], 1e-300))
    return float(k - 1 + (start - math.log(share)) / (start - end))
