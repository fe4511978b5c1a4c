"""GoogLeNet (Szegedy et al. 2015, table 1), without the auxiliary classifiers and local response normalization."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from depthgauge.models.convolution import ConvNormAct, channels_of
from depthgauge.models.slots import Activation, Norm, Slots

# Channels of a block's four branches: 1x1 | 1x1, 3x3 | 1x1, 5x5 | pooling, 1x1.
Branches = tuple[int, tuple[int, int], tuple[int, int], int]
INCEPTIONS: dict[str, Branches] = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}


class Inception(nn.Module):
    """Four branches side by side, concatenated over channels."""

    def __init__(self, unit: partial[ConvNormAct], inputs: int, branches: Branches, large_kernel: int) -> None:
        super().__init__()
        c1, (c2_reduce, c2), (c3_reduce, c3), c4 = branches
        self.branch1 = unit(inputs, c1, 1)
        self.branch2 = nn.Sequential(
            OrderedDict(reduce=unit(inputs, c2_reduce, 1), conv=unit(c2_reduce, c2, 3, padding=1))
        )
        self.branch3 = nn.Sequential(
            OrderedDict(
                reduce=unit(inputs, c3_reduce, 1),
                conv=unit(c3_reduce, c3, large_kernel, padding=large_kernel // 2),
            )
        )
        self.branch4 = nn.Sequential(
            OrderedDict(pool=nn.MaxPool2d(3, stride=1, padding=1), project=unit(inputs, c4, 1))
        )
        self.outputs = c1 + c2 + c3 + c4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class GoogLeNet(nn.Module):
    """Three convolutions, nine inception blocks in three stages, average pooling, one dense layer."""

    def __init__(
        self,
        slots: Slots,
        input_shape: Sequence[int],
        classes: int,
        *,
        width: float,
        large_kernel: int,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        unit = partial(ConvNormAct, slots, bias=bias)

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        self.features = nn.Sequential(
            OrderedDict(
                conv1=unit(channels_of(input_shape), scaled(64), 7, stride=2, padding=3),
                pool1=nn.MaxPool2d(3, 2, padding=1),
                conv2=unit(scaled(64), scaled(64), 1),
                conv3=unit(scaled(64), scaled(192), 3, padding=1),
                pool2=nn.MaxPool2d(3, 2, padding=1),
            )
        )
        inputs = scaled(192)
        for name, (c1, (c2_reduce, c2), (c3_reduce, c3), c4) in INCEPTIONS.items():
            if name in {"4a", "5a"}:
                self.features.add_module(f"pool{int(name[0]) - 1}", nn.MaxPool2d(3, 2, padding=1))
            branches = (
                scaled(c1),
                (scaled(c2_reduce), scaled(c2)),
                (scaled(c3_reduce), scaled(c3)),
                scaled(c4),
            )
            block = Inception(unit, inputs, branches, large_kernel)
            self.features.add_module(f"inception{name}", block)
            inputs = block.outputs
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        pooled = self.pool(self.features(x)).flatten(1)
        out: torch.Tensor = self.output(self.dropout(pooled))
        return out


def googlenet(
    *,
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    activation: Activation = "relu",
    norm: Norm = "none",
    width: float = 1.0,
    large_kernel: int = 5,
    dropout: float = 0.4,
) -> GoogLeNet:
    """GoogLeNet; `width` scales every channel count. Convolutions have biases where no normalization follows.

    The paper has neither normalization nor `large_kernel=3`; torchvision has `norm="batch"` and, in the place of the
    5 x 5 convolutions, 3 x 3.
    """
    slots = Slots.over("images", activation=activation, norm=norm)
    return GoogLeNet(
        slots,
        input_shape,
        classes,
        width=width,
        large_kernel=large_kernel,
        dropout=dropout,
        bias=norm == "none",
    )
