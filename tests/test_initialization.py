"""Initialization against the moments that it states; tolerances are five standard errors of those moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from depthgauge import initialization, models


def assert_std(weight: torch.Tensor, std: float) -> None:
    """Of n normal draws, the deviation's standard error is std / sqrt(2n) and the mean's std / sqrt(n)."""
    n = weight.numel()
    assert weight.std().item() == pytest.approx(std, abs=5 * std / math.sqrt(2 * n))
    assert weight.mean().item() == pytest.approx(0.0, abs=5 * std / math.sqrt(n))


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("lecun", lambda fan_in, _: 1 / fan_in),
        ("he", lambda fan_in, _: 2 / fan_in),
        ("xavier", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        (initialization.gaussian(1.5), lambda fan_in, _: 1.5**2 / fan_in),
    ],
)
def test_variance(init: initialization.Init, variance: object) -> None:
    assert callable(variance)
    mlp = models.build("mlp", input_shape=(300,), width=200, depth=2, init=init)
    assert_std(mlp.hidden[0].linear.weight, math.sqrt(variance(300, 200)))
    assert_std(mlp.hidden[1].linear.weight, math.sqrt(variance(200, 200)))
    assert not mlp.hidden[0].linear.bias.any()
    vgg = models.build("vgg11", preset="small", width=16, init=init)
    assert_std(vgg.features.block2.conv1.conv.weight, math.sqrt(variance(16 * 9, 32 * 9)))


def test_groups_and_gates_are_maps_of_their_own() -> None:
    grouped = nn.Conv2d(64, 128, 3, groups=4)
    initialization.scheme("xavier")(grouped, torch.Generator().manual_seed(0))
    assert_std(grouped.weight, math.sqrt(2 / (16 * 9 + 32 * 9)))
    lstm = models.build("lstm", input_shape=(5, 30), width=40, init="xavier")
    assert_std(lstm.layers[0].input.weight, math.sqrt(2 / (30 + 40)))


def test_gaussian_draws_biases() -> None:
    model = models.build("mlp", width=1000, init=initialization.gaussian(1.0, sigma_b=0.3))
    assert_std(model.hidden[0].linear.bias, 0.3)


@pytest.mark.parametrize("name", ["mlp", "lstm", "transformer", "resnext50_32x4d"])
def test_orthogonal_maps_are_orthogonal(name: str) -> None:
    model = models.build(name, preset="small", init="orthogonal")
    for layer, module in models.layers(model):
        if isinstance(module, nn.Embedding):
            continue
        maps = getattr(module, "maps", getattr(module, "groups", 1))
        for weight in module.weight.chunk(maps):
            matrix = weight.flatten(1).double()
            gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
            n = max(matrix.shape)
            off = (gram - torch.eye(len(gram))).abs().max().item()
            assert off < 4 * math.sqrt(n) * torch.finfo(torch.float32).eps, layer


def test_default_is_pytorchs_own() -> None:
    model = models.build("mlp", input_shape=(9,), width=5, depth=1, classes=2, seed=11)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        hidden, output = nn.Linear(9, 5), nn.Linear(5, 2)
    assert torch.equal(model.hidden[0].linear.weight, hidden.weight)
    assert torch.equal(model.output.bias, output.bias)


def test_gpt2_scales_the_ends_of_branches_by_depth() -> None:
    model = models.build("transformer", preset="small", depth=8, width=64, init="gpt2")
    ends = set(models.branch_ends(model))
    for layer, module in models.layers(model):
        assert_std(module.weight, 0.02 / math.sqrt(16) if layer in ends else 0.02)
        assert getattr(module, "bias", None) is None or not module.bias.any()


def test_a_shared_weight_is_drawn_once() -> None:
    model = models.build(
        "transformer", input_shape=(8,), classes=500, vocabulary=500, depth=1, width=64, heads=4, init="he"
    )
    assert_std(model.reader.embedding.weight, math.sqrt(2 / 64))


def test_schemes_share_their_draws() -> None:
    """The same seed draws the same normal numbers: what differs between two schemes is their scale alone."""
    he, lecun = (models.build("mlp", init=init, seed=5).hidden[0].linear.weight for init in ("he", "lecun"))
    torch.testing.assert_close(he, math.sqrt(2) * lecun)


def test_any_callable_is_a_scheme() -> None:
    def ones(model: nn.Module, generator: torch.Generator) -> None:
        assert generator.device.type == "cpu"
        for parameter in model.parameters():
            nn.init.ones_(parameter)

    model = models.build("mlp", init=ones)
    assert all(bool((p == 1).all()) for p in model.parameters())
