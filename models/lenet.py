"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998), as taught today.

Every map of the second convolution sees every map of the first, pooling has no weights, and the output is linear:
61,706 parameters, where the original's partial connections and trained pooling have about 60,000.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.models.convolution import ConvNormAct, channels_of, output_shape
from depthgauge.models.slots import Activation, Norm, Slots


class LeNet5(nn.Module):
    """Two convolutions with average pooling, then three dense layers."""

    def __init__(self, images: Slots, features: Slots, input_shape: Sequence[int], classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv1=ConvNormAct(images, channels_of(input_shape), 6, 5, padding=2),
                pool1=nn.AvgPool2d(2),
                conv2=ConvNormAct(images, 6, 16, 5),
                pool2=nn.AvgPool2d(2),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(output_shape(self.features, input_shape).numel(), 120),
                norm1=features.norm(120),
                activation1=features.activation(),
                linear2=nn.Linear(120, 84),
                norm2=features.norm(84),
                activation2=features.activation(),
                output=nn.Linear(84, classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        out: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return out


def lenet5(
    *,
    input_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    activation: Activation = "sigmoid",
    norm: Norm = "none",
) -> LeNet5:
    """LeNet-5; with `norm="batch"` normalized after every layer but the last, as in Ioffe and Szegedy 2015."""
    images = Slots.over("images", activation=activation, norm=norm)
    features = Slots.over("features", activation=activation, norm=norm)
    return LeNet5(images, features, input_shape, classes)
