"""Rotation of scale-invariant weights under weight decay: the angle of a step once their size is steady.

>>> round(equilibrium_angle(0.1, 0.01, momentum=0.9, optimizer="sgd"), 5)
0.03244
"""

from __future__ import annotations

import math
from typing import Literal

from depthgauge.theory.arguments import non_negative

Rotating = Literal["sgd", "adamw"]


def equilibrium_angle(lr: float, weight_decay: float, *, momentum: float = 0.0, optimizer: Rotating = "sgd") -> float:
    """Root mean square angle, in radians, between a scale-invariant weight vector before and after a step.

    Gradients of what does not change with a vector's size are at right angles to it, so that steps lengthen it and
    decay shortens it; where both are equal, with p = lr x weight_decay, small, and momentum b,

    - SGD (momentum summed, decay added to the gradient): sqrt(2 p / (1 + b));
    - AdamW (momentum averaged, decay apart): sqrt(2 p (1 - b) / (1 + b)),

    whatever the gradients' size and, to first order in p, their correlation from step to step. With AdamW this supposes
    that gradients are at right angles to the weight after the division by their own size too, which is not so where
    entries differ. Source: Kosson, Messmer, Jaggi, Rotational equilibrium, ICML 2024, with their code; for SGD also
    Wan et al., Spherical motion dynamics, NeurIPS 2021.

    Args:
        lr: learning rate.
        weight_decay: as of `torch.optim`.
        momentum: of SGD, or AdamW's first beta.
        optimizer: "sgd" or "adamw".

    Raises:
        ValueError: no such optimizer, a momentum outside [0, 1), or a number that is negative or not finite.
    """
    if optimizer not in {"sgd", "adamw"}:
        raise ValueError(f"an optimizer is sgd or adamw, not {optimizer!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum!r}, where a number from 0 to below 1 was expected")
    product = non_negative("lr", lr) * non_negative("weight_decay", weight_decay)
    averaged = 1 - momentum if optimizer == "adamw" else 1.0
    return math.sqrt(2 * product * averaged / (1 + momentum))
