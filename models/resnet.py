"""Residual networks: ResNet (He et al. 2016a), its pre-activation form (He et al. 2016b), ResNeXt (Xie et al. 2017)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
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


class ResNet(nn.Module):
    """A stem, four stages of residual blocks that halve the image between them, average pooling, one dense layer."""

    def __init__(
        self,
        slots: Slots,
        input_shape: Sequence[int],
        classes: int,
        *,
        blocks: Sequence[int],
        width: int,
        bottleneck: int | None,
        groups: int,
        order: Order,
        stem: str,
        bias: bool,
    ) -> None:
        super().__init__()
        if order not in ("post", "pre"):
            raise ValueError(f"order is 'post' or 'pre', not {order!r}")
        channels = channels_of(input_shape)
        if stem == "imagenet":
            first = nn.Conv2d(channels, width, 7, 2, padding=3, bias=bias)
        elif stem == "cifar":
            first = nn.Conv2d(channels, width, 3, padding=1, bias=bias)
        else:
            raise ValueError(f"stem is 'imagenet' (7 x 7, stride 2, pooling) or 'cifar' (3 x 3), not {stem!r}")
        self.stem = nn.Sequential(OrderedDict(conv=first))
        if order == "post":
            self.stem.add_module("norm", slots.norm(width))
            self.stem.add_module("activation", slots.activation())
        if stem == "imagenet":
            self.stem.add_module("pool", nn.MaxPool2d(3, 2, padding=1))
        block = PostActivation if order == "post" else PreActivation
        self.stages = nn.Sequential()
        inputs = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            outputs = planes if bottleneck is None else 4 * planes
            names = OrderedDict[str, nn.Module]()
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                if bottleneck is None:
                    convolutions = _basic(inputs, planes, stride, bias=bias)
                else:
                    inner = bottleneck * 2**stage
                    convolutions = _bottleneck(inputs, inner, outputs, stride, groups, bias=bias)
                projects = slots.residual and (stride != 1 or inputs != outputs)
                shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias) if projects else None
                names[f"block{number + 1}"] = block(slots, convolutions, shortcut)
                inputs = outputs
            self.stages.add_module(f"stage{stage + 1}", nn.Sequential(names))
        self.norm = slots.norm(inputs) if order == "pre" else nn.Identity()
        self.activation = slots.activation() if order == "pre" else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.output = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, classes)."""
        maps = self.activation(self.norm(self.stages(self.stem(x))))
        out: torch.Tensor = self.output(self.pool(maps).flatten(1))
        return out


def resnet(
    *,
    depth: int,
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    activation: Activation = "relu",
    norm: Norm = "batch",
    residual: Residual = True,
    order: Order = "post",
    width: int = 64,
    stem: str = "imagenet",
) -> ResNet:
    """ResNet-18, -34 (basic blocks) or -50 (bottlenecks); `width` channels in the first stage.

    Without `residual` it is the plain network of the same convolutions: no shortcut, hence no projection either.
    `order="pre"` is the pre-activation form. Convolutions have biases only where there is no normalization.
    `stem="cifar"` is one 3 x 3 convolution in the place of the 7 x 7 of stride 2 and the pooling.
    """
    return ResNet(
        Slots.over("images", activation=activation, norm=norm, residual=residual),
        input_shape,
        classes,
        blocks=BLOCKS[depth],
        width=width,
        bottleneck=width if depth >= 50 else None,
        groups=1,
        order=order,
        stem=stem,
        bias=norm == "none",
    )


def resnext(
    *,
    depth: int,
    input_shape: Sequence[int] = (3, 224, 224),
    classes: int = 1000,
    activation: Activation = "relu",
    norm: Norm = "batch",
    residual: Residual = True,
    order: Order = "post",
    width: int = 64,
    groups: int = 32,
    group_width: int = 4,
    stem: str = "imagenet",
) -> ResNet:
    """ResNeXt-50: a bottleneck whose 3 x 3 convolution has `groups` groups of `group_width` channels (first stage)."""
    return ResNet(
        Slots.over("images", activation=activation, norm=norm, residual=residual),
        input_shape,
        classes,
        blocks=BLOCKS[depth],
        width=width,
        bottleneck=groups * group_width,
        groups=groups,
        order=order,
        stem=stem,
        bias=norm == "none",
    )
