"""Linear problems whose true errors are known, and the models of which one is to be chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRAINED = 80  # examples that the models to choose from are fitted to
NOISE = 1.0  # variance of the targets' noise; as large as that of what the inputs say


def problem(sets: int, examples: int, inputs: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (S, n, d), targets (S, n), and the true weights (d,), all alike, whose sum of squares is 1."""
    weights = torch.full((inputs,), inputs**-0.5, dtype=torch.float64)
    x = torch.randn(sets, examples, inputs, generator=draws, dtype=torch.float64)
    noise = torch.randn(sets, examples, generator=draws, dtype=torch.float64) * math.sqrt(NOISE)
    return x, x @ weights + noise, weights


def fit(x: Tensor, y: Tensor, penalty: float = 0.0) -> Tensor:
    """Ridge regression, (S, d); least squares without a penalty."""
    squares = x.mT @ x + penalty * torch.eye(x.shape[2]).to(x)
    solved: Tensor = torch.linalg.solve(squares, x.mT @ y[:, :, None])
    return solved[:, :, 0]


def accuracies(fitted: Tensor, weights: Tensor) -> Tensor:
    """Chance (S, m) that the sign of a fitted function is that of a new target, exactly: one minus angle over pi."""
    return 1 - torch.arccos((weights @ fitted) / fitted.norm(dim=1) / math.sqrt(1 + NOISE)) / math.pi


def models(x: Tensor, y: Tensor, kind: str, count: int, draws: torch.Generator) -> Tensor:
    """Weights of the models of each data set, (S, d, m)."""
    sets, _, d = x.shape
    if kind == "penalties":
        return torch.stack([fit(x, y, 10.0**power) for power in np.linspace(-2, 4, count)], 2)
    if kind == "subsets":
        fitted = x.new_zeros(sets, d, count)
        for model in range(count):
            part = torch.randperm(d, generator=draws)[: d // 2]
            fitted[:, part, model] = fit(x[:, :, part], y)
        return fitted
    free = torch.randn(sets, d, count, generator=draws, dtype=x.dtype).to(x)
    free -= free.mean(1, keepdim=True)  # the true weights are all alike
    orthogonal: Tensor = torch.linalg.qr(free)[0]  # to each other and to the truth: their signs are independent
    return orthogonal


def right(fitted: Tensor, n: int, d: int, draws: torch.Generator) -> np.ndarray[Any, Any]:
    """Shares of signs that each model gets right on n new examples, (S, m)."""
    x, y, _ = (each.to(fitted) for each in problem(len(fitted), n, d, draws))
    return ((x @ fitted > 0) == (y > 0)[:, :, None]).double().mean(1).cpu().numpy()
