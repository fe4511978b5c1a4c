"""Signs that a model has learnt already: then small rates are sound, and no rate need lower its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthgauge.checking.steps import losses
from depthgauge.seeding import Purpose, generator
from depthgauge.workload import Training

BETTER = 0.7  # of the loss with shuffled weights: 0.9 to 1.1 at 24 kinds of initial weights, below 0.3 once they learnt
OUTLIER = 1.5  # times the largest singular value of the shuffled matrix: 0.5 to 1.1 of what is drawn independently
MATRICES, ROUNDS = 6, 12  # looked at, and rounds of the power iteration
SMALLEST = 24  # rows and columns of a matrix whose singular values say something


def learnt(training: Training, batches: Sequence[Any], before: Sequence[float]) -> str:
    """The sign that the model is no longer at its start, in words; empty where there is none.

    Args:
        training: left as it was.
        batches: the first ones.
        before: their losses, at the weights as they are.
    """
    model, optimizer = training.model, training.optimizer
    if optimizer is not None and any(
        float(state.get("step", 1)) > 0 for state in optimizer.state.values() if isinstance(state, dict)
    ):
        return "its optimizer has made steps"
    if any(not each.requires_grad for each in model.parameters()):
        return "a part of it is frozen"
    matrices = sorted(_matrices(model), key=Tensor.numel, reverse=True)[:MATRICES]
    structured = [_norm(each) > OUTLIER * _norm(_shuffled(each)) for each in matrices]
    if structured and np.mean(structured) > 0.5:
        return "its weights have a structure that no initialization draws"
    if _shuffled_loss(training, batches) * BETTER > np.mean(before) > 0:
        return "its loss is far below that of the same weights in random places"
    return ""


def _shuffled_loss(training: Training, batches: Sequence[Any]) -> float:
    """Mean loss with the numbers of each weight in random places."""
    with training.untouched():
        with torch.no_grad():
            for each in training.model.parameters():
                if each.dim() > 1 and each.layout is torch.strided:
                    each.copy_(_shuffled(each))
        return float(np.mean(losses(training, batches)))


def _matrices(model: torch.nn.Module) -> Iterator[Tensor]:
    for each in model.parameters():
        flat = each.detach().flatten(1) if each.dim() > 1 and each.is_floating_point() else None
        if flat is not None and each.layout is torch.strided and min(flat.shape) >= SMALLEST:
            yield flat.float()


def _shuffled(weight: Tensor) -> Tensor:
    places = torch.randperm(weight.numel(), generator=generator(0, Purpose.ORDER)).to(weight.device)
    return weight.detach().flatten()[places].view(weight.shape)


def _norm(matrix: Tensor) -> float:
    """The largest singular value, by power iteration: from below, and as closely for both that are compared."""
    vector = torch.randn(matrix.shape[1], generator=generator(0, Purpose.DIRECTIONS)).to(matrix)
    for _ in range(ROUNDS):
        vector = matrix.T @ (matrix @ vector)
        vector = vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)
    return float((matrix @ vector).norm())
