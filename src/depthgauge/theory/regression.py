"""SGD on linear regression with Gaussian inputs, and the largest learning rate at which SGD is stable.

>>> regression_risk([1.0], learning_rate=0.5, batch_size=1, steps=[0, 1], label_noise=0.0).tolist()
[0.5, 0.375]
>>> stable_learning_rate([2.0, 1.0]), stable_learning_rate([2.0, 1.0], momentum=0.9)
(1.0, 1.9)
>>> round(stable_learning_rate(1.0, batch=4), 12)  # 2 B / (B + 2) of one dimension
1.333333333333
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative, positive
from depthgauge.theory.quadratic import eigenvalues, entries, share, whole_steps


def regression_risk(
    curvature: ArrayLike,
    learning_rate: float,
    batch_size: float,
    steps: int | ArrayLike,
    *,
    label_noise: float = 1.0,
    start: ArrayLike = 1.0,
    momentum: float = 0.0,
) -> float | Array:
    """Expected risk of SGD on linear regression whose every batch is fresh, exact at every step.

    Args:
        curvature: eigenvalues h_i of the inputs' covariance, which is the Hessian; a number or shape (d,).
        learning_rate: alpha.
        batch_size: B, number of examples in the mean gradient of a step.
        steps: t, number of updates done; an array of them gives an array.
        label_noise: variance s^2 of the labels' noise.
        start: E[theta_i^2] before the first step, theta the distance from the true weights along the eigenvectors.
        momentum: beta of the heavy ball, as in `noisy_quadratic`.

    Inputs x ~ N(0, H), y = x.w + noise, loss (x.w' - y)^2 / 2; returned is its mean over fresh examples,
    (sum_i h_i E[theta_i^2] + s^2) / 2. The gradient's variance along eigenvector i is
    (h_i^2 P_i + h_i sum_j h_j P_j + h_i s^2) / B with P = E[theta^2], by Isserlis' theorem: the directions are coupled
    through the loss. Without momentum
    P_i' = (1 - 2 alpha h_i + alpha^2 h_i^2 (1 + 1/B)) P_i + alpha^2 h_i (sum_j h_j P_j + s^2) / B.

    Raises:
        ValueError: an argument that is negative, not finite or out of its range.
    """
    h = eigenvalues(curvature)
    p = entries("start", start, h.shape)
    alpha, batch = non_negative("learning_rate", learning_rate), positive("batch_size", batch_size)
    s2, beta, t = non_negative("label_noise", label_noise), share("momentum", momentum), whole_steps(steps)
    wanted, places = np.unique(t, return_inverse=True)
    risks = np.full(len(wanted), np.nan)
    q, r, keep = np.zeros_like(h), np.zeros_like(h), 1 - alpha * h
    with np.errstate(all="ignore"):  # what diverges overflows, to infinity
        for step in range(int(t.max(initial=-1)) + 1):
            total = h @ p + s2
            risks[wanted == step] = total
            noise, old = h * (h * p + total) / batch, (p, q, r)
            p, q, r = (
                keep**2 * p - 2 * alpha * beta * keep * q + alpha * beta * (alpha * beta * r) + alpha * (alpha * noise),
                h * keep * p + beta * (keep - alpha * h) * q - alpha * beta**2 * r - alpha * noise,
                h**2 * p + 2 * beta * h * q + beta**2 * r + noise,
            )
            if all(map(partial(np.array_equal, equal_nan=True), old, (p, q, r))):  # so it stays
                risks[wanted > step] = total
                break
    risks = np.where(np.isnan(risks), np.inf, risks) / 2  # infinity less infinity, where it diverged
    risk = np.asarray(risks[places.reshape(t.shape)])
    return float(risk) if risk.ndim == 0 else risk


def stable_learning_rate(curvature: ArrayLike, batch: float | None = None, momentum: float = 0.0) -> float:
    """Largest learning rate at which the mean square of the weights stays bounded.

    Args:
        curvature: eigenvalues h_i of the Hessian, >= 0; a number or shape (d,).
        batch: None where the gradient's noise does not depend on the weights, or there is none; for linear regression
            on fresh Gaussian inputs of covariance H the batch size B.
        momentum: beta of the heavy ball, as in `noisy_quadratic`.

    Without a batch 2 (1 + beta) / max h. With one, the noise grows with the distance from the solution, and the rate is
    the largest alpha with sum_i x_i / (1 - x_i) < 1 and every x_i < 1,
    x_i = (1 + beta) alpha h_i / (B (1 - beta) (2 (1 + beta) - alpha h_i)):
    x_i B / h_i^2 is the mean square that one unit of gradient noise leaves in direction i, summed over steps, and noise
    that brings about more noise than it was diverges. At beta = 0 this is
    sum_i alpha h_i / (B (2 - alpha h_i (1 + 1/B))) < 1. A single run may converge at a larger rate: the mean square is
    then that of rare runs.

    Returns:
        The rate; infinity where no direction has curvature.

    Raises:
        ValueError: an argument that is negative, not finite or out of its range.
    """
    h = eigenvalues(curvature)
    beta = share("momentum", momentum)
    h = h[h > 0]
    if not len(h):
        return np.inf
    with np.errstate(over="ignore"):
        largest = float(2 * (1 + beta) / h.max())
    if batch is None or math.isinf(largest):
        return largest
    size, low, high = positive("batch", batch), 0.0, largest
    while low < (middle := (low + high) / 2) < high:
        x = (1 + beta) * middle * h / (size * (1 - beta) * (2 * (1 + beta) - middle * h))
        stable = bool(np.all(x < 1)) and float((x / (1 - x)).sum()) < 1
        low, high = (middle, high) if stable else (low, middle)
    return low
