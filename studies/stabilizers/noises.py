"""Norms of the noise of gradients: of a linear model under a known law, of networks, and what Hill's index reads."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

FEATURES = 16


def linear(index: float, count: int, draws: torch.Generator) -> np.ndarray[Any, Any]:
    """Norms (count,) of a linear model's gradients, at its minimum, whose targets have symmetric Pareto noise.

    The gradient of half a square is the error times the features, which are normal: P(e r > x) = x^-a E r^a for an
    error e of P(e > x) = x^-a, as long as features' norms r stay below x, so that the index is the error's.

    Args:
        index: tail index of the noise.
        count: of examples.
        draws: of features and noise.
    """
    features = torch.randn(count, FEATURES, generator=draws, dtype=torch.float64)
    sizes_of = torch.rand(count, generator=draws, dtype=torch.float64).clamp(min=1e-15) ** (-1 / index)
    signs = torch.randint(0, 2, (count,), generator=draws).double() * 2 - 1
    return np.asarray((features * (sizes_of * signs)[:, None]).norm(dim=1))


def gradients(model: nn.Module, x: Tensor, y: Tensor, together: int = 100) -> Tensor:
    """Gradients (n, P) of each example's mean cross-entropy."""
    parameters = {name: each.detach() for name, each in model.named_parameters()}

    def loss(given: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        out = functional_call(model, given, (one[None],))
        return nn.functional.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))

    each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=together)(parameters, x, y)
    return torch.cat([value.flatten(1) for value in each.values()], 1)


def noise(each: Tensor, batch: int, draws: torch.Generator) -> np.ndarray[Any, Any]:
    """Norms (n,) of gradients of batches, drawn anew, less the mean gradient of all examples."""
    rest = each.double() - each.double().mean(0)
    if batch > 1:
        n = len(each)
        chosen = torch.randint(0, n, (n, batch), generator=draws)
        weights = torch.zeros(n, n, dtype=torch.float64).scatter_add_(
            1, chosen, torch.full(chosen.shape, 1 / batch, dtype=torch.float64)
        )
        rest = weights.to(rest.device) @ rest
    return np.asarray(rest.norm(dim=1).cpu())


def lognormal_index(sigma: float, share: float) -> float:
    """Give Hill's index over a largest share of a lognormal law, of which all moments are finite, without end of data.

    One over the mean of ln x - ln q over the x beyond the quantile q: sigma (phi(z) / share - z), z the normal
    quantile of that share.
    """
    normal = NormalDist()
    z = normal.inv_cdf(1 - share)
    return 1 / (sigma * (normal.pdf(z) / share - z))
