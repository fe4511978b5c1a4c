"""Ridge regression, and least squares in the ball that its solution touches: two ways to one solution."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge.seeding import Purpose, generator

Floats = NDArray[np.float64]


def regression(examples: int, features: int, seed: int) -> tuple[Floats, Floats]:
    """Normal inputs (n, p), and targets (n,) that are the first of them with noise as large."""
    source = generator(seed, Purpose.INPUTS)
    x = torch.randn(examples, features, generator=source, dtype=torch.float64).numpy()
    return x, x[:, 0] + torch.randn(examples, generator=source, dtype=torch.float64).numpy()


def apart(x: Floats, y: Floats, penalty: float, steps: int = 2000) -> float:
    """Distance, over the length, of ridge regression from least squares in the ball that its solution touches.

    The ball's solution is found by projected gradient descent, which knows no penalty.

    Args:
        x: (n, p), of rank p.
        y: (n,).
        penalty: times the squared length of the solution, beside the sum of squared errors.
        steps: of descent.
    """
    moment, target = x.T @ x, x.T @ y
    ridge = np.linalg.solve(moment + penalty * np.eye(len(moment)), target)
    radius, rate = float(np.linalg.norm(ridge)), 1 / np.linalg.eigvalsh(moment)[-1]
    found = np.zeros_like(ridge)
    for _ in range(steps):
        found = found - rate * (moment @ found - target)
        found *= min(1.0, radius / float(np.linalg.norm(found)))
    return float(np.linalg.norm(found - ridge)) / radius
