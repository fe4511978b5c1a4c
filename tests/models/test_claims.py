"""Statements of the course notes about single layers: N33, N34, N40."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

from depthgauge import data


@pytest.mark.parametrize(("inputs", "outputs", "side"), [(1, 1, 1), (3, 8, 5), (64, 16, 7), (257, 3, 2)])
def test_n33_a_1x1_convolution_is_a_dense_layer_over_channels(inputs: int, outputs: int, side: int) -> None:
    convolution, dense = nn.Conv2d(inputs, outputs, 1).double(), nn.Linear(inputs, outputs).double()
    with torch.no_grad():
        dense.weight.copy_(convolution.weight[:, :, 0, 0])
        dense.bias.copy_(convolution.bias)
    x = torch.randn(2, inputs, side, side, dtype=torch.float64)
    over_channels = dense(x.movedim(1, -1)).movedim(-1, 1)
    # A sum of `inputs` terms of order 1/sqrt(inputs), in any order: rounding below inputs * eps of their magnitudes.
    bound = (inputs + 1) * torch.finfo(torch.float64).eps * (x.abs().sum(1, keepdim=True) / math.sqrt(inputs) + 1)
    assert ((convolution(x) - over_channels).abs() <= bound).all()


def test_n34_reshape_shares_the_storage_of_a_contiguous_tensor() -> None:
    x = torch.zeros(4, 6)
    y = x.reshape(2, 12)
    y[0, 0] = 1.0
    assert y.data_ptr() == x.data_ptr()
    assert x[0, 0] == 1.0


def test_n34_reshape_copies_what_cannot_be_viewed() -> None:
    """The claim's condition: of a transposed tensor no view has the new shape, so reshape copies without a word."""
    x = torch.zeros(4, 6)
    y = x.T.reshape(24)
    y[0] = 1.0
    assert y.data_ptr() != x.data_ptr()
    assert not x.any()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        x.T.view(24)


def relative_change(x: torch.Tensor, y: torch.Tensor) -> float:
    return ((y - x).norm() / x.norm()).item()


def ratios_under_a_shift(pool: object, *, rectified: bool) -> list[float]:
    """Relative change under a shift by one pixel with 2 x 2 pooling, over that without it, for 30 random kernels."""
    assert callable(pool)
    images = data.load("mnist5k").test.x[:100]
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(30):
        kernel = torch.randn(1, 1, 3, 3, generator=generator) / 3
        here, there = (conv2d(x, kernel, padding=1) for x in (images, images.roll(1, dims=3)))
        if rectified:
            here, there = here.relu(), there.relu()
        ratios.append(relative_change(pool(here, 2), pool(there, 2)) / relative_change(here, there))
    return ratios


@pytest.mark.parametrize(("pool", "rectified"), [(avg_pool2d, False), (avg_pool2d, True), (max_pool2d, True)])
def test_n40_pooling_makes_a_convolution_less_sensitive_to_a_shift(pool: object, rectified: bool) -> None:
    """For each of 30 kernels: if pooling made no difference, all in one direction would have probability 2^-30."""
    assert max(ratios_under_a_shift(pool, rectified=rectified)) < 1


def test_n40_max_pooling_needs_the_rectifier() -> None:
    """The claim's condition: of signed maps the maximum keeps one sign, for some kernels the livelier one."""
    ratios = ratios_under_a_shift(max_pool2d, rectified=False)
    assert min(ratios) < 1 < max(ratios)
