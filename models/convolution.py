"""Building blocks that the convolutional architectures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from depthgauge.models.slots import Slots

Stem = tuple[int, int, int]  # kernel, stride and padding of a first convolution


class ConvNormAct(nn.Module):
    """Convolution, normalization, activation."""

    def __init__(
        self,
        slots: Slots,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=bias)
        self.norm = slots.norm(outputs)
        self.activation = slots.activation()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        out: torch.Tensor = self.activation(self.norm(self.conv(x)))
        return out


def channels_of(input_shape: Sequence[int]) -> int:
    """Channels of an image of shape (C, H, W).

    Raises:
        ValueError: that is no shape of an image.
    """
    if len(input_shape) != 3:
        raise ValueError(f"a convolutional model takes images (channels, height, width), not {tuple(input_shape)}")
    return input_shape[0]


def output_shape(module: nn.Module, input_shape: Sequence[int]) -> torch.Size:
    """Shape of one example's output, found on the meta device: nothing is computed, nothing allocated.

    It is found once in a process for equal layers and inputs: networks that differ in their weights alone share it.

    Raises:
        ValueError: the input is too small to pass through.
    """
    tensors_of = [*module.named_parameters(), *module.named_buffers()]
    alike = repr(module), tuple((name, tensor.shape) for name, tensor in tensors_of), tuple(input_shape)
    if alike not in _shapes:
        _shapes[alike] = _passed(module, input_shape)
    return _shapes[alike]


_shapes: dict[tuple[Any, ...], torch.Size] = {}


def _passed(module: nn.Module, input_shape: Sequence[int]) -> torch.Size:
    """The shape that comes out of `module`."""
    tensors = {name: tensor.to("meta") for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    try:
        # Two examples, because batch normalization in training refuses one where an image has shrunk to a pixel.
        out = functional_call(module, tensors, (torch.empty(2, *input_shape, device="meta"),))
    except RuntimeError as error:
        raise ValueError(f"images of {tuple(input_shape)} are too small for this architecture: {error}") from error
    assert isinstance(out, torch.Tensor)
    return out.shape[1:]
