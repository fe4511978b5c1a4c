"""Correlation of the gradients at two inputs, by depth: how far a network's gradient is shattered.

>>> [round(float(c), 3) for c in gradient_correlation("relu", 2**0.5, depth=4)]  # orthogonal inputs, no shortcuts
[1.0, 0.5, 0.302, 0.2, 0.142]
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from depthgauge.theory.activation import Array, Phi, activation
from depthgauge.theory.arguments import non_negative, whole
from depthgauge.theory.expectation import correlated, moments

Block = Literal["plain", "batch-norm", "skip", "skip-norm"]
BLOCKS: tuple[Block, ...] = ("plain", "batch-norm", "skip", "skip-norm")


def gradient_correlation(phi: Phi, sigma_w: float, *, depth: int, block: Block = "plain", c_0: float = 0.0) -> Array:
    """Correlation of the gradients at two inputs after 0 .. depth layers, of shape (depth + 1,); infinite width.

    Gradients are those of one function of the last layer with respect to the first pre-activations, which have
    variance 1 and correlation c_0; weights are N(0, sigma_w^2 / fan-in). Every layer multiplies the gradients' product
    by E[phi'(u_a) phi'(u_b)] sigma_w^2 and their squares by E[phi'^2] sigma_w^2, over the layer's own correlation (for
    ReLU the arc-cosine kernels of Cho and Saul 2009); a shortcut adds 1 to both.

    - `plain`, x' = W phi(x): inputs grow alike, so that the factor goes to 1, and the gradient falls as a power.
    - `batch-norm`, x' = W phi(norm(x)) over many unrelated inputs: their correlation is 0 in every layer, as
      normalization takes each unit's mean, and the factor is the same: for ReLU 1/2 (Balduzzi et al. 2017, section 3).
    - `skip`, x' = x + W phi(x).
    - `skip-norm`, x' = x + W phi(norm(x)), norm over the units (layer normalization).

    Args:
        phi: any activation.
        sigma_w: of every linear map.
        depth: layers.
        block: one of `BLOCKS`.
        c_0: correlation of the two inputs, -1 to 1.

    Raises:
        ValueError: no such block, a correlation outside -1 to 1, or a parameter that is negative or not finite.
    """
    if block not in BLOCKS:
        raise ValueError(f"a block is {', '.join(BLOCKS)}, not {block!r}")
    if not -1 <= c_0 <= 1:
        raise ValueError(f"c_0 is {c_0!r}, where a correlation between -1 and 1 was expected")
    phi, strength = activation(phi), non_negative("sigma_w", sigma_w) ** 2
    shortcut = float(block.startswith("skip"))
    squares, products = 1.0, float(c_0)  # of the two streams, a unit
    found = np.ones(whole("depth", depth, least=0) + 1)
    for layer in range(1, len(found)):
        normed = block.endswith("norm")
        inside = 1.0 if normed else squares
        c = 0.0 if block == "batch-norm" else float(np.clip(products / squares, -1.0, 1.0))
        at = moments(phi, np.array([inside]))
        value, slope = correlated(phi, inside, inside, c)
        passed = strength * (inside / squares)  # a norm divides by the stream's size, forward and backward
        found[layer] = found[layer - 1] * (shortcut + passed * slope) / (shortcut + passed * float(at.slope2[0]))
        squares = shortcut * squares + strength * float(at.value2[0])
        products = shortcut * products + strength * value
    return found
