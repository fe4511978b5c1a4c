"""A multilayer perceptron of any width in the standard and in the maximal update parametrization, under one rate.

A layer's weights are W = m w, and w is trained by the common learning rate. Under SGD that trains W at m² times the
rate, under Adam at m times; so a rate for each layer becomes a multiplier for each. There are no biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Parametrization = Literal["standard", "mu"]
Method = Literal["SGD", "Adam"]
LAYERS = ("input", "hidden", "output")
EXPONENTS = {  # of the change of each layer's output in the width, after a step at a rate that does not know the width
    ("SGD", "standard"): (-0.5, 0.5, 1.0), ("Adam", "standard"): (0.0, 1.0, 1.0),
    ("SGD", "mu"): (0.0, 0.0, 0.0), ("Adam", "mu"): (0.0, 0.0, 0.0),
}  # fmt: skip


@dataclass(frozen=True)
class Net:
    """A ReLU network of three weight layers.

    Attributes:
        inputs: features.
        width: units of both hidden layers.
        classes: outputs.
        base: the width at which both parametrizations are one.
        parametrization: `standard` or `mu`.
        method: `SGD` or `Adam`, whose rate is set by layer.
        readout: factor of the output weights' deviation.
    """

    inputs: int
    width: int
    classes: int
    base: int
    parametrization: Parametrization
    method: Method
    readout: float = 1.0

    @property
    def rates(self) -> tuple[float, float, float]:
        """Factors of the learning rates of W, by layer (Yang et al. 2022, table 3, against the base width)."""
        wider = self.width / self.base
        if self.parametrization == "standard":
            return 1.0, 1.0, 1.0
        return (wider, 1.0, 1 / wider) if self.method == "SGD" else (1.0, 1 / wider, 1 / wider)

    @property
    def multipliers(self) -> tuple[float, float, float]:
        """Factor m of each layer."""
        a, b, c = (math.sqrt(rate) if self.method == "SGD" else rate for rate in self.rates)
        return a, b, c

    @property
    def deviations(self) -> tuple[float, float, float]:
        """Standard deviations of W: He's for hidden layers; in mu that of the output falls as 1 / width."""
        output = self.readout / math.sqrt(self.width)
        if self.parametrization == "mu":
            output *= math.sqrt(self.base / self.width)
        return math.sqrt(2 / self.inputs), math.sqrt(2 / self.width), output

    def template(self) -> nn.Sequential:
        """The network without its multipliers, which for ReLU may all stand at the end: see `loss`."""
        return self._layers(lambda inputs, outputs, _: nn.Linear(inputs, outputs, bias=False))

    def module(self) -> nn.Sequential:
        """The network with each multiplier in its place; weights are drawn by `draw`."""
        return self._layers(Scaled)

    def _layers(self, linear: Callable[[int, int, float], nn.Module]) -> nn.Sequential:
        sizes = (self.inputs, self.width, self.width, self.classes)
        net = nn.Sequential()
        net.add_module("flatten", nn.Flatten())
        for name, inputs, outputs, m in zip(LAYERS, sizes[:-1], sizes[1:], self.multipliers, strict=True):
            net.add_module(name, linear(inputs, outputs, m))
            if name != LAYERS[-1]:
                net.add_module(f"{name}_relu", nn.ReLU())
        return net

    @torch.no_grad()
    def draw(self, net: nn.Module, generator: torch.Generator) -> None:
        """Set w; the same generator gives all parametrizations the same numbers but for their scale."""
        weights = [net.get_parameter(f"{name}.weight") for name in LAYERS]
        for weight, deviation, m in zip(weights, self.deviations, self.multipliers, strict=True):
            weight.copy_(torch.randn(weight.shape, generator=generator) * (deviation / m))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of the template's outputs, times all multipliers."""
        scores = math.prod(self.multipliers) * outputs
        return functional.cross_entropy(scores.flatten(0, -2), targets.flatten())


class Scaled(nn.Linear):
    """A linear layer without bias whose weights are m w."""

    def __init__(self, inputs: int, outputs: int, multiplier: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.multiplier * super().forward(x)
