"""Distance of the replicas of a network from an affine map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from depthgauge.replicas.signals import Floats
from depthgauge.replicas.stack import Stack


@dataclass(frozen=True)
class Affinity:
    """Ranks and residuals of R replicas on some inputs, each of shape (R,).

    Attributes:
        rank: of the centred activations of the last hidden layer; of the outputs where there is none.
        input_rank: of the centred inputs, the same for all.
        residual: share of the outputs, in the 2-norm, that the best affine map of the inputs leaves.
    """

    rank: Floats
    input_rank: Floats
    residual: Floats


@torch.no_grad()
def affinity(stack: Stack, inputs: Tensor) -> Affinity:
    """Compare every replica with the affine map that fits it best, in float64; a rank of what is not finite is NaN.

    Args:
        stack: replicas of a model whose layers but the last are its submodule `hidden`, as in `models.build("mlp")`.
        inputs: (N, ...) examples, the same for all; flattened.
    """
    x = inputs.flatten(1).double().cpu()
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    basis, singular, _ = torch.linalg.svd(design, full_matrices=False)
    basis = basis[:, singular > singular[0] * len(x) * torch.finfo(x.dtype).eps]
    ranks, residuals = [], []
    for i in range(len(stack)):
        module = stack.module(i).double().eval()
        hidden, outputs = module.get_submodule("hidden")(x), module(x)
        left = outputs - basis @ (basis.mT @ outputs)
        ranks.append(_rank(hidden if hidden is not x else outputs))
        residuals.append(float(left.norm() / outputs.norm()))
    return Affinity(np.array(ranks), np.full(len(stack), _rank(x)), np.array(residuals))


def _rank(features: Tensor) -> float:
    """Singular values of the centred features above rounding: shape (N, d)."""
    centred = features - features.mean(0)
    if not torch.isfinite(centred).all():
        return float("nan")
    singular = torch.linalg.svdvals(centred)
    # rounding of a few dozen layers, as a share of the largest singular value
    return float((singular > singular[0] * max(features.shape) * 1e2 * torch.finfo(features.dtype).eps).sum())
