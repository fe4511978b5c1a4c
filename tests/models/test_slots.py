"""Activation, normalization and residual connection can be exchanged, and do what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from depthgauge import models
from depthgauge.models import slots
from depthgauge.theory import activation_names

CONVOLUTIONAL = ("lenet5", "alexnet", "vgg11", "nin", "googlenet", "plain_cnn", "resnet18", "resnext50_32x4d")


@pytest.mark.parametrize("name", sorted(slots.activations()))
def test_every_activation_of_torch_is_found_by_name(name: str) -> None:
    model = models.build("mlp", input_shape=(6,), width=8, depth=2, activation=name).eval()
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    by_hand = nn.Sequential(
        model.hidden[0].linear,
        slots.activations()[name](),
        model.hidden[1].linear,
        slots.activations()[name](),
        model.output,
    ).eval()
    assert torch.equal(model(x), by_hand(x))


def test_activations_are_found_not_listed() -> None:
    found = set(slots.activations().values())
    assert {"leaky_relu", "relu6", "tanh", "identity", "logsigmoid", "hardswish"} <= set(slots.activations())
    assert slots.activation("linear") is nn.Identity
    assert set(slots.activations()) == set(activation_names())  # what theory knows by name
    assert {nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SELU, nn.Softplus, nn.Mish, nn.PReLU} <= found
    assert not found & {nn.Softmax, nn.GLU, nn.MultiheadAttention, nn.Threshold}


@pytest.mark.parametrize("spelling", ["leaky_relu", "LeakyReLU", "leakyrelu", nn.LeakyReLU, nn.LeakyReLU(0.01)])
def test_an_activation_has_many_spellings(spelling: slots.Activation) -> None:
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(slots.activation(spelling)()(x), nn.functional.leaky_relu(x))


def test_a_function_is_an_activation() -> None:
    model = models.build("mlp", input_shape=(3,), width=4, activation=torch.sin)
    x = torch.ones(2, 3)
    assert torch.equal(model(x), model.output(torch.sin(model.hidden[0].linear(x))))


def test_a_module_with_parameters_is_copied_for_each_place() -> None:
    model = models.build("mlp", depth=3, activation=nn.PReLU(init=0.3))
    slopes = [m.weight for m in model.modules() if isinstance(m, nn.PReLU)]
    assert len(slopes) == len(set(slopes)) == 3
    assert all(slope.item() == pytest.approx(0.3) for slope in slopes)


def test_what_is_no_activation_is_refused() -> None:
    with pytest.raises(TypeError, match="an activation is a name, a module or a callable, not 3"):
        models.build("mlp", activation=3)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@pytest.mark.parametrize("norm", sorted(slots.NORMS["images"]))
def test_every_norm_stands_in_every_convolutional_model(name: str, norm: str) -> None:
    if name == "lenet5" and norm == "group":
        pytest.skip("LeNet also normalizes dense layers, which have no such norm")
    model = models.build(name, preset="small", norm=norm)
    kind = type(slots.NORMS["images"][norm](16))
    assert any(isinstance(module, kind) for module in model.modules())
    assert model(models.example(name, preset="small", batch=2)).isfinite().all()


@pytest.mark.parametrize("order", ["pre", "post"])
@pytest.mark.parametrize("norm", sorted(slots.NORMS["tokens"]))
@pytest.mark.parametrize("residual", [True, False, 0.5])
def test_every_transformer_runs(order: str, norm: str, residual: slots.Residual) -> None:
    model = models.build("transformer", preset="small", order=order, norm=norm, residual=residual)
    assert model(models.example("transformer", preset="small", batch=2)).isfinite().all()


def test_a_norm_of_ones_own() -> None:
    model = models.build("resnet18", preset="small", norm=lambda channels: nn.GroupNorm(2, channels))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 20


def test_layer_norm_over_an_image_is_over_all_of_it() -> None:
    x = torch.randn(2, 5, 4, 3, dtype=torch.float64)
    made = slots.norm("layer", "images")(5).double()
    torch.testing.assert_close(made(x), nn.functional.layer_norm(x, (5, 4, 3)))


@pytest.mark.parametrize(("channels", "groups"), [(64, 4), (32, 2), (8, 1), (24, 1), (6, 1), (48, 3)])
def test_groups_of_16_channels(channels: int, groups: int) -> None:
    made = slots.norm("group", "images")(channels)
    assert isinstance(made, nn.GroupNorm)
    assert made.num_groups == groups


@pytest.mark.parametrize(
    ("residual", "of_shortcut", "of_branch"),
    [(False, 0, 1), (True, 1, 1), (1, 1, 1), (0.25, 1, 0.25), (0.0, 1, 0)],
)
def test_join(residual: slots.Residual, of_shortcut: float, of_branch: float) -> None:
    x, f = torch.randn(2, 3), torch.randn(2, 3)
    made = slots.Slots.over("features", activation="relu", residual=residual)
    assert torch.equal(made.join()(x, f), of_shortcut * x + of_branch * f)
    assert made.residual is (residual is not False)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_residual_mlp_by_hand(order: str) -> None:
    model = models.build("mlp", input_shape=(4,), depth=2, width=6, activation="tanh", residual=0.5, order=order)
    x = torch.randn(3, 4)
    first, second, output = (layer for _, layer in models.layers(model))
    if order == "post":
        h = torch.tanh(first(x))
        by_hand = output(torch.tanh(h + 0.5 * second(h)))
    else:
        h = first(x)
        by_hand = output(torch.tanh(h + 0.5 * second(torch.tanh(h))))
    assert torch.equal(model(x), by_hand)


def test_a_residual_block_scaled_to_zero_is_its_shortcut() -> None:
    model = models.build("resnet18", preset="small", residual=0.0, order="pre").eval()
    x = torch.randn(2, 8, 7, 7)
    assert torch.equal(model.stages.stage1(x), x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("residual", [True, False])
def test_residual_networks_with_and_without(name: str, order: str, norm: str, residual: bool) -> None:
    model = models.build(name, preset="small", order=order, norm=norm, residual=residual, init="he")
    model(models.example(name, preset="small", batch=4)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    biased = [m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(biased) if norm == "none" else not any(biased)


def test_preactivation_leaves_the_shortcut_linear() -> None:
    """With the branches' last convolutions at zero, a stage of equal shapes passes negative values through."""
    model = models.build("resnet18", preset="small", order="pre").eval()
    for end in models.branch_ends(model):
        nn.init.zeros_(model.get_submodule(end).weight)
    x = -torch.rand(2, 8, 7, 7)
    assert torch.equal(model.stages.stage1(x), x)
