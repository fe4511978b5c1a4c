"""AlexNet (Krizhevsky, Sutskever and Hinton 2012), in the one-column form of Krizhevsky 2014."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.models.convolution import ConvNormAct, Stem, channels_of, output_shape
from depthgauge.models.slots import Activation, Norm, Slots


class AlexNet(nn.Module):
    """Five convolutions, three overlapping max-poolings, three dense layers with dropout."""

    def __init__(
        self,
        slots: Slots,
        input_shape: Sequence[int],
        classes: int,
        *,
        channels: Sequence[int],
        stem: Stem,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        c0 = channels_of(input_shape)
        c1, c2, c3, c4, c5 = channels
        kernel, stride, padding = stem
        self.features = nn.Sequential(
            OrderedDict(
                conv1=ConvNormAct(slots, c0, c1, kernel, stride=stride, padding=padding),
                pool1=nn.MaxPool2d(3, 2),
                conv2=ConvNormAct(slots, c1, c2, 5, padding=2),
                pool2=nn.MaxPool2d(3, 2),
                conv3=ConvNormAct(slots, c2, c3, 3, padding=1),
                conv4=ConvNormAct(slots, c3, c4, 3, padding=1),
                conv5=ConvNormAct(slots, c4, c5, 3, padding=1),
                pool5=nn.MaxPool2d(3, 2),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                dropout6=nn.Dropout(dropout),
                linear6=nn.Linear(output_shape(self.features, input_shape).numel(), hidden),
                activation6=slots.activation(),
                dropout7=nn.Dropout(dropout),
                linear7=nn.Linear(hidden, hidden),
                activation7=slots.activation(),
                output=nn.Linear(hidden, classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        out: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return out


def alexnet(
    *,
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    activation: Activation = "relu",
    norm: Norm = "none",
    channels: Sequence[int] = (64, 192, 384, 256, 256),
    stem: Stem = (11, 4, 2),
    hidden: int = 4096,
    dropout: float = 0.5,
) -> AlexNet:
    """AlexNet; local response normalization, which later work left out, is left out. `norm` follows convolutions."""
    slots = Slots.over("images", activation=activation, norm=norm)
    return AlexNet(slots, input_shape, classes, channels=channels, stem=stem, hidden=hidden, dropout=dropout)
