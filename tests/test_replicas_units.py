"""Dead and saturated units: by hand, and against the law of a ReLU unit with a bias."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import norm
from torch import nn

from depthgauge import models, replicas


def one_layer(activation: Any, bias: list[float], replicas_: int = 1, **options: Any) -> replicas.Stack:
    """An MLP of two inputs and one hidden layer with these biases and small weights, each replica the same."""
    model = models.build("mlp", depth=1, width=len(bias), activation=activation, input_shape=(2,), classes=2, **options)
    stack = replicas.stack(model, range(replicas_), lambda *_: None)
    stack.parameters["hidden.0.linear.weight"].fill_(0.1)
    stack.parameters["hidden.0.linear.bias"].copy_(torch.tensor([bias] * replicas_))
    return stack


@pytest.mark.parametrize(
    ("activation", "bias", "dead", "saturated"),
    [
        ("relu", [-10.0, 10.0], 0.5, 0.5),  # no input overcomes the first; the second is always on
        ("tanh", [0.0, 5.0], 0.0, 0.5),
        ("identity", [-10.0, 10.0], 0.0, 0.0),
    ],
)
def test_dead_and_saturated_units_by_hand(activation: str, bias: list[float], dead: float, saturated: float) -> None:
    inputs = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    found = replicas.units(one_layer(activation, bias), inputs, activation)
    assert found is not None
    assert (found.dead.tolist(), found.saturated.tolist()) == ([dead], [saturated])


def test_units_of_an_activation_with_parameters_have_their_own() -> None:
    """PReLU with slope 0 is ReLU, with slope 1 the identity: replica by replica."""
    stack = one_layer("prelu", [-10.0, 10.0], 2)
    stack.parameters["hidden.0.activation.weight"].copy_(torch.tensor([[0.0], [1.0]]))
    found = replicas.units(stack, torch.ones(5, 2), "prelu")
    assert found is not None
    assert found.dead.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("bias", [-1.0, -2.0])
def test_a_relu_unit_is_dead_as_often_as_no_example_reaches_it(bias: float) -> None:
    """Over m orthonormal inputs z is b + N(0, 1), independent: dead with probability Phi(-b)^m. 8,000 units."""
    examples, width, members = 4, 400, 20
    model = models.build("mlp", depth=1, width=width, activation="relu", input_shape=(examples,), classes=2)

    def initialize(module: nn.Module, draws: torch.Generator) -> None:
        nn.init.normal_(module.hidden[0].linear.weight, generator=draws)  # type: ignore[union-attr,index]  # an MLP's
        nn.init.constant_(module.hidden[0].linear.bias, bias)  # type: ignore[union-attr,index]  # an MLP's

    found = replicas.units(replicas.stack(model, range(members), initialize), torch.eye(examples), "relu")
    assert found is not None
    expected, n = norm.cdf(-bias) ** examples, width * members
    assert abs(found.dead.mean() - expected) <= 4 * math.sqrt(expected * (1 - expected) / n)


def test_saturation_is_measured_against_the_slope_at_unit_variance() -> None:
    """Of the identity the slope is 1 everywhere: saturated from a share above 1 on, never below."""
    stack = one_layer("identity", [0.0, 0.0])
    shares = [replicas.units(stack, torch.ones(3, 2), "identity", saturated=s) for s in (0.99, 1.01)]
    assert [found.saturated.tolist() for found in shares if found is not None] == [[0.0], [1.0]]


def test_deeper_layers_see_what_the_first_ones_send() -> None:
    """A first layer that is dead throughout sends 0: the second has its bias alone."""
    model = models.build("mlp", depth=2, width=3, activation="relu", input_shape=(2,), classes=2)
    stack = replicas.stack(model, [0, 1])
    stack.parameters["hidden.0.linear.bias"].fill_(-100.0)
    stack.parameters["hidden.1.linear.bias"].copy_(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0]]))
    found = replicas.units(stack, torch.ones(4, 2), "relu")
    assert found is not None
    assert found.dead.tolist() == pytest.approx([3 / 6, 5 / 6])


@pytest.mark.parametrize("options", [{"norm": "batch"}, {"order": "pre"}, {"residual": True}, {"dropout": 0.5}])
def test_layers_of_another_kind_have_no_such_units(options: dict[str, Any]) -> None:
    model = models.build("mlp", depth=2, width=3, activation="relu", input_shape=(2,), classes=2, **options)
    assert replicas.units(replicas.stack(model, [0]), torch.ones(4, 2), "relu") is None


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU())])
def test_other_models_have_none(model: nn.Module) -> None:
    assert replicas.units(replicas.stack(model, [0]), torch.ones(4, 2), "relu") is None


def test_layers_without_biases_are_looked_at_too() -> None:
    model = models.build("mlp", depth=1, width=2, activation="relu", input_shape=(1,), classes=2, bias=False)
    stack = replicas.stack(model, [0])
    stack.parameters["hidden.0.linear.weight"].copy_(torch.tensor([[[1.0], [-1.0]]]))
    found = replicas.units(stack, torch.ones(4, 1), "relu")
    assert found is not None
    assert found.dead.tolist() == [0.5]


def test_most_members_is_what_fits() -> None:
    """1,000 parameters take 12,000 bytes in training, 8,000 drawn in float64."""
    assert replicas.most_members(1000, 36_000) == 3
    assert replicas.most_members(1000, 35_999) == 2
    assert replicas.most_members(1000, 36_000, each=8) == 4
    assert replicas.most_members(1000, 1) == replicas.most_members(10**9) == 1
    assert replicas.most_members(0, 7) == 7
