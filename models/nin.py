"""Network in network (Lin, Chen and Yan 2014)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.models.convolution import ConvNormAct, Stem, channels_of
from depthgauge.models.slots import Activation, Norm, Slots


def _block(slots: Slots, widths: Sequence[int], kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """A convolution and two 1 x 1 convolutions: a small perceptron slid over the image."""
    inputs, outputs, middle, last = widths
    return nn.Sequential(
        OrderedDict(
            conv1=ConvNormAct(slots, inputs, outputs, kernel, stride=stride, padding=padding),
            conv2=ConvNormAct(slots, outputs, middle, 1),
            conv3=ConvNormAct(slots, middle, last, 1),
        )
    )


class NiN(nn.Module):
    """Four perceptron convolutions; the last has one map a class, averaged over the image: no dense layer."""

    def __init__(
        self,
        slots: Slots,
        input_shape: Sequence[int],
        classes: int,
        *,
        channels: Sequence[int],
        stem: Stem,
        dropout: float,
    ) -> None:
        super().__init__()
        c0 = channels_of(input_shape)
        c1, c2, c3, c4 = channels
        kernel, stride, padding = stem
        self.features = nn.Sequential(
            OrderedDict(
                block1=_block(slots, (c0, c1, c1, c1), kernel, stride=stride, padding=padding),
                pool1=nn.MaxPool2d(3, 2),
                block2=_block(slots, (c1, c2, c2, c2), 5, padding=2),
                pool2=nn.MaxPool2d(3, 2),
                block3=_block(slots, (c2, c3, c3, c3), 3, padding=1),
                pool3=nn.MaxPool2d(3, 2),
                dropout=nn.Dropout(dropout),
                block4=_block(slots, (c3, c4, c4, classes), 3, padding=1),
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        out: torch.Tensor = self.pool(self.features(x))
        return out.flatten(1)


def nin(
    *,
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    activation: Activation = "relu",
    norm: Norm = "none",
    channels: Sequence[int] = (96, 256, 384, 1024),
    stem: Stem = (11, 4, 0),
    dropout: float = 0.5,
) -> NiN:
    """Network in network; `channels` of its four blocks, the last before its final 1 x 1 convolution to the classes."""
    slots = Slots.over("images", activation=activation, norm=norm)
    return NiN(slots, input_shape, classes, channels=channels, stem=stem, dropout=dropout)
