"""Statements of the course notes about single layers, which no study asks: N33, N34, N40, N43."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

from depthgauge import data

# Claim -> text, verdict, conditions, and what settles it: docs/claims.md is written from it.
SETTLED: dict[str, tuple[str, str, str, str]] = {
    "N30": (
        "forward and backward passes cost about the same",
        "depends",
        "true for a single layer; false from two on, where backward makes up to twice the operations of forward",
        "benchmarks.md#forward-and-backward-do-not-cost-the-same-n30",
    ),
    "N33": (
        "a 1x1 convolution is a fully connected layer over channels",
        "holds",
        "to rounding, for any number of channels and any image",
        "../tests/models/test_claims.py",
    ),
    "N34": (
        "reshape does not copy: the storage stays",
        "depends",
        "true where a view has the new shape, as of a contiguous tensor; false of a transposed one, which is copied",
        "../tests/models/test_claims.py",
    ),
    "N40": (
        "pooling makes a convolution less sensitive to position",
        "depends",
        "true of average pooling, and of max pooling behind a rectifier; without one false for some kernels",
        "../tests/models/test_claims.py",
    ),
    "N43": (
        "the VC dimension of a perceptron in d dimensions is d + 1: that many points it can always label",
        "depends",
        "true of the dimension, and of points in general position; false of others, such as three on a line",
        "../tests/models/test_claims.py",
    ),
}


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


def separable(points: np.ndarray, labels: tuple[int, ...]) -> bool:
    """Whether some (w, b) has labels * (points @ w + b) >= 1: a linear program that is feasible, or not."""
    signs = np.array(labels, dtype=float)
    constraints = -signs[:, None] * np.column_stack([points, np.ones(len(points))])
    bounds = [(None, None)] * constraints.shape[1]
    return bool(linprog(np.zeros(constraints.shape[1]), constraints, -np.ones(len(points)), bounds=bounds).success)


def labelled_every_way(points: np.ndarray) -> bool:
    return all(separable(points, labels) for labels in itertools.product((-1, 1), repeat=len(points)))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_n43_a_perceptron_labels_d_plus_1_points_every_way_and_no_d_plus_2(dimensions: int) -> None:
    generator = np.random.default_rng(dimensions)
    assert labelled_every_way(generator.normal(size=(dimensions + 1, dimensions)))
    # No d + 2 points are labelled every way (Radon 1921): any, so a few at random and those that look easiest.
    for _ in range(5):
        assert not labelled_every_way(generator.normal(size=(dimensions + 2, dimensions)))
    assert not labelled_every_way(np.vstack([np.zeros(dimensions), np.eye(dimensions), np.ones(dimensions)]))


def test_n43_points_on_a_line_it_cannot_always_label() -> None:
    """The claim says "always": of three points in a plane that lie on a line the middle one cannot be told apart."""
    line = np.array([[0.0, 0.0], [1.0, 2.0], [2.0, 4.0]])
    assert not separable(line, (1, -1, 1))
    assert separable(line, (1, 1, -1))
