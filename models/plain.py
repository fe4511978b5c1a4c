"""A plain stack of 3 x 3 convolutions of any depth: a ResNet without shortcuts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.models.convolution import ConvNormAct, channels_of
from depthgauge.models.slots import Activation, Norm, Slots


class PlainCNN(nn.Module):
    """depth - 1 convolutions in three stages of 1, 2 and 4 times `width` channels, average pooling, one dense layer."""

    def __init__(
        self, slots: Slots, input_shape: Sequence[int], classes: int, *, depth: int, width: int, bias: bool
    ) -> None:
        super().__init__()
        if depth < 4:
            raise ValueError(
                f"a plain convolutional net has at least 4 weight layers, one a stage and the output: {depth}"
            )
        self.features = nn.Sequential()
        inputs = channels_of(input_shape)
        convolutions = depth - 1
        for number in range(convolutions):
            stage = 3 * number // convolutions
            first = stage > 0 and stage != 3 * (number - 1) // convolutions
            outputs = width * 2**stage
            unit = ConvNormAct(slots, inputs, outputs, 3, stride=2 if first else 1, padding=1, bias=bias)
            self.features.add_module(f"conv{number + 1}", unit)
            inputs = outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        out: torch.Tensor = self.output(self.pool(self.features(x)).flatten(1))
        return out


def plain_cnn(
    *,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    activation: Activation = "relu",
    norm: Norm = "none",
    depth: int = 20,
    width: int = 16,
) -> PlainCNN:
    """Plain convolutional network of `depth` weight layers; at depth 20 the plain net for CIFAR of He et al. 2016a."""
    slots = Slots.over("images", activation=activation, norm=norm)
    return PlainCNN(slots, input_shape, classes, depth=depth, width=width, bias=norm == "none")
