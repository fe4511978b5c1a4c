"""Growth of signal and gradient along residual blocks, by norm, shortcut and factor; and along a pre-LN transformer.

>>> growth = residual_growth("layer", 7)  # the stream gains 1 a block, and the gradient as much on its way back
>>> [round(float(q), 6) for q in growth.forward], round(float(growth.backward[0]), 6)
([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 8.0)
>>> [round(float(q), 3) for q in transformer_stream(2, tokens=1, q_0=1.0)]  # attention 1, feed-forward 0.32
[1.0, 2.32, 3.64]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from depthgauge.theory.activation import Array
from depthgauge.theory.arguments import non_negative, whole

Norm = Literal["none", "layer", "batch", "post"]
NORMS: tuple[Norm, ...] = ("none", "layer", "batch", "post")


@dataclass(frozen=True)
class ResidualGrowth:
    """Signal and gradient along a stack of residual blocks.

    Attributes:
        forward: second moment of the stream before the first block and after each, (depth + 1,).
        backward: squared gradient of the stream there, over that after the last block, (depth + 1,).
        share: the branch's share of the second moment of the sum, by block, (depth,).
        batch_share: its share of the variance over the batch, by block, (depth,); NaN unless the norm is `batch`.
    """

    forward: Array
    backward: Array
    share: Array
    batch_share: Array


def residual_growth(
    norm: Norm,
    depth: int,
    *,
    scale: float = 1.0,
    shortcut: float = 1.0,
    layers: int = 2,
    q_0: float = 1.0,
    width: float = math.inf,
) -> ResidualGrowth:
    """Follow signal and gradient through ReLU blocks whose branches keep the second moment of what they are given.

    A branch is `layers` times a ReLU and He's weights; its second moment is that of its input, forward and backward.

    - `none`, x' = a x + s f(x): q' = (a^2 + s^2) q, and the squared gradient grows by as much on its way back.
    - `layer`, x' = a x + s f(norm(x)): q' = a^2 q + s^2; the norm divides the branch's gradient by sqrt(q), so that it
      grows by a^2 + s^2 / q: for a = s = 1 by q' / q, and the gradient's growth is that of the signal (Xiong et al.
      2020 for the signal).
    - `batch`, the same with a norm over the batch before every ReLU, in a batch of many unrelated examples: the second
      moment is that of `layer` (De and Smith 2020). A ReLU's outputs are alike by 1 / pi, so that the variance over the
      batch gains only s^2 (1 - 1 / pi) a block, and every norm divides the gradient by that smaller variance: it grows
      by a^2 + s^2 / (v (1 - 1 / pi)^(layers - 1)), v the variance at the block's input.
    - `post`, x' = norm(a x + s f(x)): 1 forward. Backward the norm divides by a^2 + s^2 what the sum has multiplied by
      that. As f is homogeneous, the gradient that one norm has made orthogonal to its input is orthogonal to that of
      the norm before, too; only its mean over the units is lost, a share s^2 / (a^2 + s^2) / width of it.

    Infinite width but for that last share.

    Args:
        norm: one of `NORMS`.
        depth: blocks.
        scale: factor s on the branch.
        shortcut: factor a on the shortcut.
        layers: pairs of ReLU and weights in a branch.
        q_0: second moment before the first block, of inputs that are unrelated.
        width: units of the stream.

    Raises:
        ValueError: no such norm; a number that is negative or not finite; no layers.
    """
    if norm not in NORMS:
        raise ValueError(f"a norm is {', '.join(NORMS)}, not {norm!r}")
    depth, layers = whole("depth", depth, least=0), whole("layers", layers, least=1)
    a2, s2, start = (non_negative(*p) ** 2 for p in (("shortcut", shortcut), ("scale", scale), ("q_0", q_0**0.5)))
    apart = 1 - 1 / math.pi if norm == "batch" else 1.0
    forward, variance, factors = np.full(depth + 1, start), np.full(depth + 1, start), np.ones(depth)
    for block in range(depth):
        q, v = forward[block], variance[block]
        if norm == "post":
            forward[block], forward[block + 1] = (start if block == 0 else 1.0), 1.0
            factors[block] = 1 - s2 / (a2 + s2) / width
            continue
        branch = s2 * (q if norm == "none" else 1.0)
        forward[block + 1] = a2 * q + branch
        variance[block + 1] = a2 * v + branch * apart
        factors[block] = a2 + (s2 if norm == "none" else s2 / (v * apart ** (layers - 1)))
    backward = np.append(np.cumprod(factors[::-1])[::-1], 1.0)
    if norm == "post":
        return ResidualGrowth(forward, backward, np.full(depth, s2 / (a2 + s2)), np.full(depth, math.nan))
    share, spread = (1 - a2 * each[:-1] / each[1:] for each in (forward, variance))
    return ResidualGrowth(forward, backward, share, spread if norm == "batch" else np.full(depth, math.nan))


def transformer_stream(depth: int, *, tokens: int, q_0: float = 1.0, widen: int = 4) -> Array:
    """Second moment of the stream of a pre-LN transformer at its last token, before and after each block, (depth + 1,).

    Xavier's weights, ReLU, causal attention that is uniform, as queries and keys of zero make it (the setting of Xiong
    et al. 2020); tokens that start unrelated, with second moment q_0. Infinite width. The covariances C of
    the tokens' streams follow, with R = C over its diagonal (what the norm leaves) and A the mean over tokens so far,

        C' = C + A R A^T,    C'' = C' + 2 w / (1 + w)^2 k(R')

    k the arc-cosine kernel of Cho and Saul 2009, 1 at correlation 1, and w the widening: a feed-forward branch of
    Xavier's weights has the second moment 2 w / (1 + w)^2, 0.32 for w = 4.

    Args:
        depth: blocks, of attention and feed-forward.
        tokens: tokens of the sequence.
        q_0: second moment before the first block.
        widen: inner width of the feed-forward branch over that of the stream.

    Raises:
        ValueError: a number that is negative or not finite; no token.
    """
    depth, tokens, widen = (
        whole(name, value, least=least)
        for name, value, least in (("depth", depth, 0), ("tokens", tokens, 1), ("widen", widen, 1))
    )
    covariance = np.eye(tokens) * non_negative("q_0", q_0)
    mean = np.tril(np.ones((tokens, tokens))) / np.arange(1, tokens + 1)[:, None]
    found = np.full(depth + 1, covariance[-1, -1])
    for block in range(1, depth + 1):
        covariance = covariance + mean @ _correlations(covariance) @ mean.T
        c = _correlations(covariance)
        kernel = (np.sqrt(1 - c**2) + (math.pi - np.arccos(c)) * c) / math.pi  # of relu over its second moment 1/2
        covariance = covariance + 2 * widen / (1 + widen) ** 2 * kernel
        found[block] = covariance[-1, -1]
    return found


def _correlations(covariance: Array) -> Array:
    size = np.sqrt(np.diag(covariance))
    return np.asarray(np.clip(covariance / np.outer(size, size), -1.0, 1.0))
