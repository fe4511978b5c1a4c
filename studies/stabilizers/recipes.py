"""Training of the transformers, and figures of what they became."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from depthgauge.models.transformer import Attention

Z_WEIGHT = 1e-4  # of log Z squared (Wortsman et al. 2023)
WARM = 0.25  # share of the steps over which a rate grows


def with_z_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy and Z_WEIGHT times the mean square of log Z, the logarithm of softmax's denominator."""
    return functional.cross_entropy(outputs, targets) + Z_WEIGHT * torch.logsumexp(outputs, -1).square().mean()


def schedule(steps: int, *, warm: bool) -> Callable[[int], float]:
    """A factor of the rate that grows over the first WARM of the steps, if it does, and falls as a cosine to zero."""
    first = round(WARM * steps) if warm else 0

    def factor(step: int) -> float:
        past = max(0, step - first) / max(1, steps - first)
        return min(1.0, (step + 1) / (first + 1)) * 0.5 * (1 + math.cos(math.pi * past))

    return factor


def logits(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """The largest absolute attention logit of all layers and heads, and the mean of abs(log Z) of the output.

    Infinite where the network is not finite.
    """
    found: list[float] = []

    def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        own = cast("Attention", module).logits(given[0])
        found.append(float(own.masked_fill(own == -math.inf, 0.0).abs().max()))  # the future is masked

    hooks = [each.register_forward_pre_hook(see) for each in model.modules() if isinstance(each, Attention)]
    with torch.no_grad():
        log_z = float(torch.logsumexp(model(x), -1).abs().mean())
    for hook in hooks:
        hook.remove()
    return (max(found), log_z) if np.isfinite([*found, log_z]).all() else (math.inf, math.inf)
