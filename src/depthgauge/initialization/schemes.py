"""Weights at the start, by name, drawn from one CPU generator.

A scheme is a function of a model and a generator that sets the model's weights in place; any such callable can stand
where a name can. A scheme sets the weights of linear and convolutional layers, and zeroes their biases unless it says
otherwise; embeddings keep PyTorch's N(0, 1), normalization its ones and zeros. Groups of a convolution, and the maps
that a `Stacked` layer holds, are layers of their own here: each has its own fans, each is orthogonal by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from depthgauge.initialization.maps import Weighted, fans, maps, weighted
from depthgauge.structure import branch_ends

Scheme = Callable[[nn.Module, torch.Generator], None]
Init = str | Scheme


@dataclass(frozen=True)
class Normal:
    """Weights from N(0, variance(fan-in, fan-out)), biases from N(0, sigma_b^2)."""

    variance: Callable[[int, int], float]
    sigma_b: float = 0.0

    def __call__(self, model: nn.Module, generator: torch.Generator) -> None:
        """Set every weight and bias of `model`."""
        for module in weighted(model):
            for weight in maps(module):
                nn.init.normal_(weight, 0.0, math.sqrt(self.variance(*fans(weight))), generator=generator)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, self.sigma_b, generator=generator)


def gaussian(sigma_w: float, sigma_b: float = 0.0) -> Scheme:
    """Mean-field convention: weights from N(0, sigma_w^2 / fan-in), biases from N(0, sigma_b^2) (Poole et al. 2016)."""
    return Normal(lambda fan_in, _: sigma_w**2 / fan_in, sigma_b)


def orthogonal(model: nn.Module, generator: torch.Generator) -> None:
    """Every map, as a matrix of outputs by fan-in, semi-orthogonal (Saxe et al. 2014); biases zero."""
    for module in weighted(model):
        for weight in maps(module):
            nn.init.orthogonal_(weight, generator=generator)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def default(_model: nn.Module, _generator: torch.Generator) -> None:
    """Leave what PyTorch's modules drew when they were built: uniform in +-1/sqrt(fan-in) where there is a fan-in."""


def gpt2(model: nn.Module, generator: torch.Generator) -> None:
    """N(0, 0.02^2) for weights and embeddings, over sqrt(N) for those that end one of N residual branches; biases zero.

    Radford et al. 2019, section 2.3; 0.02 is their code's.
    """
    ends = set(branch_ends(model))
    drawn: set[torch.Tensor] = set()
    for name, module in model.named_modules():
        if isinstance(module, Weighted | nn.Embedding) and module.weight not in drawn:
            drawn.add(module.weight)
            std = 0.02 / math.sqrt(len(ends)) if name in ends else 0.02
            nn.init.normal_(module.weight, 0.0, std, generator=generator)
        if isinstance(module, Weighted) and module.bias is not None:
            nn.init.zeros_(module.bias)


SCHEMES: Mapping[str, Scheme] = {
    "default": default,
    "lecun": Normal(lambda fan_in, _: 1.0 / fan_in),  # LeCun et al. 1998, eq. 16
    "xavier": Normal(lambda fan_in, fan_out: 2.0 / (fan_in + fan_out)),  # Glorot and Bengio 2010, eq. 12
    "he": Normal(lambda fan_in, _: 2.0 / fan_in),  # He et al. 2015, eq. 10
    "orthogonal": orthogonal,
    "gpt2": gpt2,
}


def scheme(init: Init) -> Scheme:
    """The scheme of that name, or the callable itself.

    Raises:
        ValueError: there is none of that name.
    """
    if not isinstance(init, str):
        return init
    if init not in SCHEMES:
        raise ValueError(f"no initialization {init!r}; there is {', '.join(SCHEMES)}, or any f(model, generator)")
    return SCHEMES[init]
