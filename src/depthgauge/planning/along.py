"""The critical batch size of a training, from the gradient noise scale at several points along it.

A step at batch size B, at the best rate, does as much as 1 / (1 + scale / B) steps on the whole gradient (McCandlish et
al. 2018). So the T steps of a training at its present batch size are worth

    least = sum_i T_i / (1 + scale_i / present)        steps without noise,

T_i of them near the i-th point, and at any batch size the same training takes

    sum_i least_i (1 + scale_i / B) = least (1 + critical / B)

steps, a hyperbola whose critical batch size is the mean of the scales, each weighted by the steps that it is worth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from depthgauge import theory


def weights(points: Sequence[int], steps: int) -> NDArray[np.float64]:
    """Share of a training's steps that each point stands for: those nearer to it than to its neighbours.

    What comes after the last point is shared evenly by the points from half of the last on: the scale at one point
    depends on how far the last steps happened to lead.

    Args:
        points: numbers of steps done, ascending.
        steps: of the whole training.
    """
    at = np.minimum(np.asarray(points, dtype=np.float64), steps)
    borders = np.concatenate([[0.0], (at[1:] + at[:-1]) / 2, at[-1:]])
    late = at >= at[-1] / 2
    return np.asarray((np.diff(borders) + (steps - at[-1]) * late / late.sum()) / steps)


def critical_batch(scales: Sequence[float], shares: Sequence[float], present: int) -> float:
    """Critical batch size, in examples, of a training whose noise scale has these values along it.

    It rises with each of the scales, so that the ends of their intervals give its ends.

    Args:
        scales: in examples; infinite where a step's worth is nothing but noise.
        shares: of the steps at the present batch size, adding to 1.
        present: that batch size.

    Returns:
        Examples; infinite where all scales are, NaN where one is.
    """
    scale, share = np.asarray(scales, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    scale, share = scale[share > 0], share[share > 0]
    with np.errstate(invalid="ignore"):
        worth = share / (1 + scale / present)
        noise = np.where(np.isinf(scale), share * present, scale * worth)
    least = float(worth.sum())
    return math.inf if least == 0 else float(noise.sum()) / least


def relative_steps(batch: float, present: float, critical: float) -> float:
    """Steps at a batch size over those at the present one: (1 + critical / batch) / (1 + critical / present)."""
    if math.isinf(critical):
        return present / batch
    at, now = np.asarray(theory.steps_at([batch, present], 1.0, critical)).tolist()
    return float(at / now)
