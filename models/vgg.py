"""VGG (Simonyan and Zisserman 2015, table 1): configurations A (11), B (13), D (16) and E (19)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from depthgauge.models.convolution import ConvNormAct, channels_of, output_shape
from depthgauge.models.slots import Activation, Norm, Slots

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (1, 2, 4, 8, 8)  # of the five blocks, in multiples of the first


def _block(slots: Slots, inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    block = OrderedDict[str, nn.Module]()
    for number in range(1, convolutions + 1):
        block[f"conv{number}"] = ConvNormAct(slots, inputs if number == 1 else outputs, outputs, 3, padding=1)
    # At 224 the sides are even down to 7 and rounding up changes nothing; it lets 28 x 28 through five poolings.
    block["pool"] = nn.MaxPool2d(2, ceil_mode=True)
    return nn.Sequential(block)


class VGG(nn.Module):
    """Five blocks of 3 x 3 convolutions, each halving the image, then three dense layers."""

    def __init__(
        self,
        slots: Slots,
        input_shape: Sequence[int],
        classes: int,
        *,
        convolutions: Sequence[int],
        width: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        inputs = channels_of(input_shape)
        for number, (count, multiple) in enumerate(zip(convolutions, WIDTHS, strict=True), start=1):
            self.features.add_module(f"block{number}", _block(slots, inputs, multiple * width, count))
            inputs = multiple * width
        self.classifier = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(output_shape(self.features, input_shape).numel(), hidden),
                activation1=slots.activation(),
                dropout1=nn.Dropout(dropout),
                linear2=nn.Linear(hidden, hidden),
                activation2=slots.activation(),
                dropout2=nn.Dropout(dropout),
                output=nn.Linear(hidden, classes),
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        out: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return out


def vgg(
    *,
    depth: int,
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    activation: Activation = "relu",
    norm: Norm = "none",
    width: int = 64,
    hidden: int = 4096,
    dropout: float = 0.5,
) -> VGG:
    """VGG of 11, 13, 16 or 19 weight layers; `width` channels in the first block; `norm` follows convolutions."""
    slots = Slots.over("images", activation=activation, norm=norm)
    return VGG(
        slots,
        input_shape,
        classes,
        convolutions=CONVOLUTIONS[depth],
        width=width,
        hidden=hidden,
        dropout=dropout,
    )
