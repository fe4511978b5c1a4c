"""Operations and bytes against counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depthgauge import models
from depthgauge.models.cost import measure

FLOAT = 4


def test_a_linear_layer() -> None:
    n, inputs, outputs = 7, 5, 3
    cost = measure(nn.Linear(inputs, outputs, bias=False), torch.zeros(n, inputs))
    product = 2 * n * inputs * outputs
    moved = FLOAT * (n * inputs + inputs * outputs + n * outputs)  # each product reads two matrices and writes one
    assert cost.parameters == inputs * outputs
    assert cost.forward_flops == product
    assert cost.backward_flops == product  # the input wants no gradient
    assert cost.forward_bytes == moved
    assert cost.backward_bytes == moved


def test_an_elementwise_operation_moves_bytes_and_counts_no_operations() -> None:
    cost = measure(nn.Sequential(nn.Linear(5, 5, bias=False), nn.ReLU()), torch.zeros(7, 5))
    bare = measure(nn.Linear(5, 5, bias=False), torch.zeros(7, 5))
    assert cost.forward_flops == bare.forward_flops
    assert cost.forward_bytes - bare.forward_bytes == FLOAT * 2 * 7 * 5
    assert cost.backward_bytes - bare.backward_bytes == FLOAT * 3 * 7 * 5  # gradient and output in, gradient out


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_grouped_convolution_costs_twice_as_much_backward(groups: int) -> None:
    first, second = nn.Conv2d(4, 8, 3, groups=groups), nn.Conv2d(8, 8, 3, groups=groups)
    cost = measure(nn.Sequential(first, second), torch.zeros(2, 4, 10, 10))
    one = 2 * 2 * 8 * 8 * 8 * (4 // groups) * 9
    two = 2 * 2 * 6 * 6 * 8 * (8 // groups) * 9
    assert cost.forward_flops == one + two
    assert cost.backward_flops == one + 2 * two


@pytest.mark.parametrize("name", ["mlp", "lenet5", "resnext50_32x4d", "lstm", "transformer"])
def test_the_device_does_not_matter(name: str) -> None:
    here = measure(models.build(name, preset="small"), models.example(name, preset="small", batch=2))
    nowhere = measure(
        models.build(name, preset="small", device="meta"),
        models.example(name, preset="small", batch=2, device="meta"),
    )
    assert (here.forward_flops, here.backward_flops) == (nowhere.forward_flops, nowhere.backward_flops)
    assert here.forward_bytes == pytest.approx(nowhere.forward_bytes, rel=0.01)
    assert here.backward_bytes == pytest.approx(nowhere.backward_bytes, rel=0.01)


def test_measuring_leaves_gradients_alone() -> None:
    model = models.build("lenet5")
    measure(model, torch.zeros(1, 1, 28, 28))
    assert all(p.grad is None for p in model.parameters())


def test_operations_grow_with_the_batch_and_parameters_do_not() -> None:
    one = measure(models.build("vgg16", device="meta"), models.example("vgg16", device="meta"))
    eight = measure(models.build("vgg16", device="meta"), models.example("vgg16", batch=8, device="meta"))
    assert eight.forward_flops == 8 * one.forward_flops
    assert eight.parameters == one.parameters
    assert eight.forward_bytes < 8 * one.forward_bytes  # weights are read once
