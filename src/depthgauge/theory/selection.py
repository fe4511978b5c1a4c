"""Errors of models as they are measured and chosen: few examples, many candidates, smoothed targets.

>>> least_squares_error(40, 10), least_squares_error(11, 10)
(1.3448275862068966, inf)
>>> selection_optimism([0.5, 0.5], 1)  # right at their one try in 3 of 4 cases
0.25
>>> round(smoothed_gap(0.1, 10), 12)  # ln 91
4.510859506517
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative, reals, whole


def least_squares_error(examples: int, inputs: int, noise: float = 1.0) -> float:
    """Expected squared error, on new examples, of least squares without an intercept and with normal inputs.

    Args:
        examples: m, that it is fitted to.
        inputs: d, whose number is that of the weights.
        noise: variance s^2 of the targets' noise.

    s^2 (1 + d / (m - d - 1)), exact: the weights are off by noise of covariance s^2 (X'X)^-1, of which the expectation
    is s^2 C^-1 / (m - d - 1) for inputs of covariance C, the mean of an inverse Wishart matrix. k-fold cross-validation
    fits to m = n (1 - 1/k) examples, and its expectation is this error. Rosset and Tibshirani, From Fixed-X to Random-X
    Regression (2020).

    Returns:
        The error; infinity where m < d + 2.

    Raises:
        ValueError: an argument that is negative or no number.
    """
    m, d, s2 = whole("examples", examples, 1), whole("inputs", inputs, 1), non_negative("noise", noise)
    return s2 * (1 + d / (m - d - 1)) if m > d + 1 else math.inf


def selection_optimism(accuracies: ArrayLike, examples: int) -> float | Array:
    """Expected excess of the best validation accuracy over that model's true accuracy, for independent models.

    Args:
        accuracies: true accuracies p_j of the models, shape (..., m).
        examples: n, of the validation set.

    Counts of right answers are independent binomials; of models that are equal the first is chosen. So model j wins
    with c right in P(B_j = c) prod_(i<j) P(B_i < c) prod_(i>j) P(B_i <= c) of cases, exactly, with the excess
    c/n - p_j.
    Models that err on the same examples differ less, and are overrated less.

    Returns:
        The excess, shape (...).

    Raises:
        ValueError: an accuracy outside 0 to 1, no model, or a number of examples that is no positive integer.
    """
    from scipy.special import bdtr  # noqa: PLC0415 - theory is imported where no scipy is needed

    p, n = reals("accuracies", accuracies), whole("examples", examples, 1)
    if not p.shape or not p.shape[-1] or not np.all((p >= 0) & (p <= 1)):
        raise ValueError("accuracies lie between 0 and 1, and there is at least one")
    counts = np.arange(n + 1)
    upto = np.asarray(bdtr(counts, n, p[..., None]))  # (..., m, n + 1)
    below = np.concatenate([np.zeros_like(upto[..., :1]), upto[..., :-1]], -1)
    ones = np.ones_like(upto[..., :1, :])
    earlier = np.concatenate([ones, np.cumprod(below, -2)[..., :-1, :]], -2)
    later = np.concatenate([np.cumprod(upto[..., ::-1, :], -2)[..., ::-1, :][..., 1:, :], ones], -2)
    wins = (upto - below) * earlier * later
    excess = np.asarray((wins * (counts / n - p[..., None])).sum((-2, -1)))
    return float(excess) if excess.ndim == 0 else excess


def smoothed_gap(smoothing: float, classes: int) -> float:
    """Gap between the logit of the right class and every other at the least cross-entropy with smoothed targets.

    Args:
        smoothing: e; the targets are 1 - e + e/K for the right class and e/K for the others.
        classes: K.

    ln((1 - e + e/K) / (e/K)), exact: cross-entropy is least where the softmax is the target. Szegedy et al.,
    Rethinking the Inception Architecture (2016), section 7, for these targets.

    Returns:
        The gap; infinity at e = 0.

    Raises:
        ValueError: a smoothing outside 0 to 1, or fewer than two classes.
    """
    e, k = non_negative("smoothing", smoothing), whole("classes", classes, 2)
    if e > 1:
        raise ValueError(f"smoothing is {smoothing!r}, where 0 to 1 was expected")
    return math.log1p((1 - e) * k / e) if e else math.inf
