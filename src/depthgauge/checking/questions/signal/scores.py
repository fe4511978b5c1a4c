"""Scores on their way into a classification's loss: their size, and the same loss of smaller ones."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthgauge.workload import Training

_LOSSES = (nn.functional.cross_entropy, nn.functional.binary_cross_entropy_with_logits)


class Scaled(TorchFunctionMode):
    """Multiplies the scores that cross-entropies of them get."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor
        self.sizes: list[float] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it, with smaller scores where it is such a loss."""
        if function in _LOSSES and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
            self.sizes.append(_spread(args[0].detach(), among=function is _LOSSES[0]))
            args = (self._factor * args[0], *args[1:])
        return function(*args, **(kwargs or {}))


def _spread(scores: Tensor, *, among: bool) -> float:
    """Standard deviation among the classes of a row, or about 0."""
    scores = scores.double()
    if among and scores.dim() > 1:
        scores = scores - scores.mean(1, keepdim=True)
    return float(scores.square().mean().sqrt())


def spread_of_scores(training: Training, batch: Any) -> float:
    """Size of the scores of the only cross-entropy of a pass; NaN where there are none, or several."""
    with training.untouched(), torch.no_grad():
        seen = Scaled(1.0)
        with seen:
            training.value(batch)
    return seen.sizes[0] if len(seen.sizes) == 1 else math.nan
