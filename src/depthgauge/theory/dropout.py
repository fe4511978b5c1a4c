"""Dropout on average: a ridge penalty in linear regression, and a larger variance behind it.

>>> dropout_ridge([[1.0], [1.0]], [1.0, 1.0], p=0.5).tolist()
[0.5]
>>> variance_shift(variance=1.0, squares=1.0, p=0.5)
0.5
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative


def dropout_ridge(inputs: ArrayLike, targets: ArrayLike, p: float) -> Array:
    """Weights that minimize the expected squared loss of linear regression with dropout of its inputs, exact.

    Args:
        inputs: (examples, d) X.
        targets: (examples,) or (examples, outputs) y.
        p: share dropped; what is kept is divided by 1 - p.

    Over the masks E|y - (M X / (1 - p)) w|^2 = |y - X w|^2 + p / (1 - p) sum_j w_j^2 sum_i x_ij^2: a ridge penalty that
    is the stronger for an input the larger its sum of squares is. So w = (X'X + p / (1 - p) diag(X'X))^-1 X'y.
    Srivastava et al., *Dropout* (2014), section 9.1, whose p is the share kept; Wager, Wang and Liang (2013).

    Returns:
        (d,) or (d, outputs); the smallest of the weights, where several do equally well.

    Raises:
        ValueError: p is negative or not below 1.
    """
    x, y = np.asarray(inputs, dtype=float), np.asarray(targets, dtype=float)
    moments = x.T @ x
    weights: Array = np.linalg.lstsq(moments + _noise(p) * np.diag(np.diag(moments)), x.T @ y, rcond=None)[0]
    return weights


def variance_shift(variance: ArrayLike, squares: ArrayLike, p: float) -> float | Array:
    """Variance of a unit without dropout over that with it, by which batch normalization is off in evaluation.

    Args:
        variance: of the unit over examples, without dropout.
        squares: sum_j w_j^2 E[x_j^2] over the inputs x that are dropped; of a unit that is dropped itself its own mean
            square.
        p: share dropped; what is kept is divided by 1 - p.

    variance / (variance + p / (1 - p) squares), exact where nothing before the inputs is dropped. A unit of mean 0 that
    is dropped itself has 1 - p: Li et al., *Understanding the disharmony between dropout and batch normalization by
    variance shift* (2019), figure 1, whose p is the share kept.

    Raises:
        ValueError: p is negative or not below 1.
    """
    v = np.asarray(variance, dtype=float)
    shift = np.asarray(v / (v + _noise(p) * np.asarray(squares, dtype=float)))
    return float(shift) if shift.ndim == 0 else shift


def _noise(p: float) -> float:
    """Variance of a mask of mean 1."""
    if non_negative("p", p) >= 1:
        raise ValueError(f"p must be below 1; got {p!r}")
    return p / (1 - p)
