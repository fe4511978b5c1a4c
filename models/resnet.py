"""Residual networks: ResNet (He et al. 2016a), its pre-activation form (He et al. 2016b), ResNeXt (Xie et al. 2017)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from depthgauge.models.convolution import channels_of
from depthgauge.models.slots import Activation, Norm, Residual, Slots

Order = Literal["post", "pre"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}  # He et al. 2016a, table 1


def _basic(inputs: int, width: int, stride: int, *, bias: bool) -> list[nn.Conv2d]:
    """Two 3 x 3 convolutions (figure 5, left)."""
    return [
        nn.Conv2d(inputs, width, 3, stride, padding=1, bias=bias),
        nn.Conv2d(width, width, 3, padding=1, bias=bias),
    ]


def _bottleneck(inputs: int, width: int, outputs: int, stride: int, groups: int, *, bias: bool) -> list[nn.Conv2d]:
    """1 x 1, 3 x 3, 1 x 1 (figure 5, right); the 3 x 3 has the stride, as in every implementation since 2016."""
    return [
        nn.Conv2d(inputs, width, 1, bias=bias),
        nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=bias),
        nn.Conv2d(width, outputs, 1, bias=bias),
    ]


class PostActivation(nn.Module):
    """`act(join(shortcut(x), norm(conv(... act(norm(conv(x)))))))`: the original order."""

    def __init__(self, slots: Slots, convolutions: Sequence[nn.Conv2d], shortcut: nn.Conv2d | None) -> None:
        super().__init__()
        self.branch = nn.Sequential()
        for number, conv in enumerate(convolutions, start=1):
            self.branch.add_module(f"conv{number}", conv)
            self.branch.add_module(f"norm{number}", slots.norm(conv.out_channels))
            if number < len(convolutions):
                self.branch.add_module(f"activation{number}", slots.activation())
        self.shortcut = (
            nn.Identity()
            if shortcut is None
            else nn.Sequential(OrderedDict(conv=shortcut, norm=slots.norm(shortcut.out_channels)))
        )
        self.join = slots.join()
        self.activation = slots.activation()
        self.branch_ends = (f"branch.conv{len(convolutions)}",) if slots.residual else ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        branch = self.branch(x)
        out: torch.Tensor = self.activation(self.join(self.shortcut(x), branch))
        return out


class PreActivation(nn.Module):
    """`join(x, conv(act(norm(... conv(act(norm(x)))))))`: nothing but sums on the shortcut.

    Where the shape changes, the shortcut projects the activated input, as the authors' code does.
    """

    def __init__(self, slots: Slots, convolutions: Sequence[nn.Conv2d], shortcut: nn.Conv2d | None) -> None:
        super().__init__()
        self.norm = slots.norm(convolutions[0].in_channels)
        self.activation = slots.activation()
        self.branch = nn.Sequential()
        for number, conv in enumerate(convolutions, start=1):
            if number > 1:
                self.branch.add_module(f"norm{number}", slots.norm(conv.in_channels))
                self.branch.add_module(f"activation{number}", slots.activation())
            self.branch.add_module(f"conv{number}", conv)
        self.shortcut = shortcut
        self.join = slots.join()
        self.branch_ends = (f"branch.conv{len(convolutions)}",) if slots.residual else ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        activated = self.activation(self.norm(x))
        branch = self.branch(activated)
        out: torch.Tensor = self.join(x if self.shortcut is None else self.shortcut(activated), branch)
        return out


@dataclass(frozen=True, kw_only=True)
class ResNetSettings:
    """ResNet-18, -34 (basic blocks) or -50 (bottlenecks); `width` channels in the first stage.

    Without `residual` it is the plain network of the same convolutions: no shortcut, hence no projection either.
    `order="pre"` is the pre-activation form. Convolutions have biases only where there is no normalization.
    `stem="cifar"` is one 3 x 3 convolution in the place of the 7 x 7 of stride 2 and the pooling.
    """

    depth: int
    input_shape: Sequence[int] = (3, 224, 224)
    classes: int = 1000
    activation: Activation = "relu"
    norm: Norm = "batch"
    residual: Residual = True
    order: Order = "post"
    width: int = 64
    stem: str = "imagenet"

    @property
    def bias(self) -> bool:
        """Tell whether convolutions have biases."""
        return self.norm == "none"

    def convolutions(self, inputs: int, stage: int, stride: int) -> list[nn.Conv2d]:
        """List the convolutions of one block, in a stage counted from 0."""
        planes = self.width * 2**stage
        if self.depth < 50:
            return _basic(inputs, planes, stride, bias=self.bias)
        return _bottleneck(inputs, planes, 4 * planes, stride, 1, bias=self.bias)

    def build(self) -> ResNet:
        """The model of these settings."""
        return ResNet(self)


@dataclass(frozen=True, kw_only=True)
class ResNeXtSettings(ResNetSettings):
    """ResNeXt-50: a bottleneck whose 3 x 3 convolution has `groups` groups of `group_width` channels (first stage)."""

    groups: int = 32
    group_width: int = 4

    def convolutions(self, inputs: int, stage: int, stride: int) -> list[nn.Conv2d]:
        """List the convolutions of one block, in a stage counted from 0."""
        inner, outputs = self.groups * self.group_width * 2**stage, 4 * self.width * 2**stage
        return _bottleneck(inputs, inner, outputs, stride, self.groups, bias=self.bias)


class ResNet(nn.Module):
    """A stem, four stages of residual blocks that halve the image between them, average pooling, one dense layer."""

    def __init__(self, settings: ResNetSettings) -> None:
        super().__init__()
        if settings.order not in ("post", "pre"):
            raise ValueError(f"order is 'post' or 'pre', not {settings.order!r}")
        slots = Slots.over("images", activation=settings.activation, norm=settings.norm, residual=settings.residual)
        self.stem = _stem(settings, slots)
        self.stages = nn.Sequential()
        inputs = settings.width
        for stage, blocks in enumerate(BLOCKS[settings.depth]):
            names = OrderedDict[str, nn.Module]()
            outputs = settings.width * 2**stage * (1 if settings.depth < 50 else 4)
            for number in range(blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                names[f"block{number + 1}"] = _block(settings, slots, inputs, stage, stride)
                inputs = outputs
            self.stages.add_module(f"stage{stage + 1}", nn.Sequential(names))
        self.norm = slots.norm(inputs) if settings.order == "pre" else nn.Identity()
        self.activation = slots.activation() if settings.order == "pre" else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(inputs, settings.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        maps = self.activation(self.norm(self.stages(self.stem(x))))
        out: torch.Tensor = self.output(self.pool(maps).flatten(1))
        return out


def _stem(settings: ResNetSettings, slots: Slots) -> nn.Sequential:
    channels = channels_of(settings.input_shape)
    if settings.stem == "imagenet":
        first = nn.Conv2d(channels, settings.width, 7, 2, padding=3, bias=settings.bias)
    elif settings.stem == "cifar":
        first = nn.Conv2d(channels, settings.width, 3, padding=1, bias=settings.bias)
    else:
        raise ValueError(f"stem is 'imagenet' (7 x 7, stride 2, pooling) or 'cifar' (3 x 3), not {settings.stem!r}")
    stem = nn.Sequential(OrderedDict(conv=first))
    if settings.order == "post":
        stem.add_module("norm", slots.norm(settings.width))
        stem.add_module("activation", slots.activation())
    if settings.stem == "imagenet":
        stem.add_module("pool", nn.MaxPool2d(3, 2, padding=1))
    return stem


def _block(settings: ResNetSettings, slots: Slots, inputs: int, stage: int, stride: int) -> nn.Module:
    convolutions = settings.convolutions(inputs, stage, stride)
    outputs = convolutions[-1].out_channels
    projects = slots.residual and (stride != 1 or inputs != outputs)
    shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=settings.bias) if projects else None
    return (PostActivation if settings.order == "post" else PreActivation)(slots, convolutions, shortcut)
