from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from depthgauge import models
from depthgauge.models import convolution


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from depthgauge import models\n"
        "lines = [(e.name, e.source, dict(e.arguments), dict(e.sizes)) for e in map(models.entry, models.names())]\n"
        "print(len(lines), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == [str(len(models.names())), "False", "False"]


@pytest.mark.parametrize("name", models.names())
def test_arguments_read_from_the_source_are_those_of_the_factory(name: str) -> None:
    entry = models.entry(name)
    made_of = models.arguments(name)
    assert {key: repr(made_of[key]) for key in entry.arguments} == entry.arguments
    assert set(made_of) - set(entry.arguments) == set(entry.fixed)
    assert set(entry.presets) == set(entry.sizes)
    assert {"published", "small"} <= set(entry.presets)


def test_an_unknown_parameter_names_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"^model 'lenet5' has no parameter 'width'; it has input_shape, classes, act"):
        models.build("lenet5", width=3)


def test_what_makes_a_model_of_its_family_is_no_parameter() -> None:
    with pytest.raises(TypeError, match="model 'resnet18' has no parameter 'depth'; it has input_shape"):
        models.build("resnet18", depth=50)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: models.build("resnet19"), "no model 'resnet19'; there is linear_regression, softmax_regression"),
        (lambda: models.build("vgg16", preset="course"), "'vgg16' has no preset 'course'; it has published, small"),
        (lambda: models.build("mlp", activation="reluu"), "no activation 'reluu'; there is celu, "),
        (lambda: models.build("mlp", norm="group"), "no normalization 'group' over features; there is none, batch"),
        (lambda: models.build("resnet18", norm="rms"), "no normalization 'rms' over images; there is none, batch"),
        (lambda: models.build("mlp", init="kaiming"), "no initialization 'kaiming'; did you mean 'he'"),
        (lambda: models.build("mlp", order="both"), "order is 'post' or 'pre', not 'both'"),
        (lambda: models.build("resnet18", order="both"), "order is 'post' or 'pre', not 'both'"),
        (lambda: models.build("transformer", preset="small", order="both"), "order is 'post' or 'pre', not 'both'"),
        (lambda: models.build("resnet18", stem="mnist"), "stem is 'imagenet'"),
        (lambda: models.build("lenet5", input_shape=(784,)), r"takes images \(channels, height, width\), not \(784,\)"),
        (lambda: models.build("lenet5", input_shape=(1, 8, 8)), r"images of \(1, 8, 8\) are too small"),
        (lambda: models.build("plain_cnn", depth=3), "at least 4 weight layers"),
        (lambda: models.build("rnn", input_shape=(20,)), r"takes \(steps,\) with a vocabulary"),
        (lambda: models.build("lstm", input_shape=(3, 28, 28)), r"not \(3, 28, 28\) with vocabulary=None"),
        (lambda: models.build("transformer", preset="small", heads=5), "a width of 32 is not divided by 5 heads"),
    ],
)
def test_a_wrong_wish_ends_in_one_sentence(build: object, sentence: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["vgg11", "googlenet", "resnet18", "resnet50", "plain_cnn", "nin", "mlp", "rnn"])
def test_other_inputs_and_classes(name: str) -> None:
    model = models.build(name, preset="small", input_shape=(1, 32, 32), classes=7)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("name", ["softmax_regression", "mlp", "resnet18", "plain_cnn", "rnn", "lstm", "transformer"])
def test_digits_of_8_by_8_pass(name: str) -> None:
    assert models.build(name, preset="small", input_shape=(1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_names_of_layers() -> None:
    assert [name for name, _ in models.layers(models.build("mlp", depth=2))] == [
        "hidden.0.linear",
        "hidden.1.linear",
        "output",
    ]
    assert [name for name, _ in models.layers(models.build("lenet5"))] == [
        "features.conv1.conv",
        "features.conv2.conv",
        "classifier.linear1",
        "classifier.linear2",
        "classifier.output",
    ]
    assert [name for name, _ in models.layers(models.build("resnet18", device="meta"))][:9] == [
        "stem.conv",
        "stages.stage1.block1.branch.conv1",
        "stages.stage1.block1.branch.conv2",
        "stages.stage1.block2.branch.conv1",
        "stages.stage1.block2.branch.conv2",
        "stages.stage2.block1.branch.conv1",
        "stages.stage2.block1.branch.conv2",
        "stages.stage2.block1.shortcut.conv",
        "stages.stage2.block2.branch.conv1",
    ]


@pytest.mark.parametrize(
    ("name", "parameters", "weight_layers"),
    [
        ("mlp", {"depth": 7}, 8),
        ("lenet5", {}, 5),
        ("alexnet", {}, 8),
        ("vgg11", {}, 11),
        ("vgg19", {}, 19),
        ("plain_cnn", {"depth": 22}, 22),
        ("plain_cnn", {"depth": 30}, 30),
        ("nin", {}, 12),
        ("googlenet", {}, 3 + 9 * 6 + 1),
        ("resnet18", {"residual": False}, 18),
        ("resnet34", {"residual": False}, 34),
        ("resnet50", {"residual": False}, 50),
        ("resnet50", {}, 54),  # one projection a stage
        ("resnet18", {"order": "pre"}, 21),
        ("transformer", {"depth": 3, "vocabulary": 9, "classes": 9}, 2 + 3 * 4 + 1),
    ],
)
def test_a_model_has_the_weight_layers_in_its_name(
    name: str, parameters: dict[str, object], weight_layers: int
) -> None:
    assert len(models.layers(models.build(name, device="meta", **parameters))) == weight_layers


@pytest.mark.parametrize(
    ("name", "parameters", "ends"),
    [
        ("mlp", {"depth": 5, "residual": True}, 4),
        ("mlp", {"depth": 5, "residual": True, "order": "pre"}, 4),
        ("mlp", {"depth": 5}, 0),
        ("resnet18", {}, 8),
        ("resnet50", {"order": "pre"}, 16),
        ("resnet18", {"residual": False}, 0),
        ("transformer", {"order": "pre"}, 24),
        ("transformer", {"order": "post"}, 24),
    ],
)
def test_ends_of_residual_branches(name: str, parameters: dict[str, object], ends: int) -> None:
    model = models.build(name, device="meta", **parameters)
    layers = dict(models.layers(model))
    assert len(models.branch_ends(model)) == ends
    assert set(models.branch_ends(model)) <= set(layers)


def test_layers_of_a_users_own_module() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.PReLU(), nn.Flatten(), nn.Linear(8, 3))
    assert [name for name, _ in models.layers(model)] == ["0", "4"]
    assert models.branch_ends(model) == ()


def test_the_shape_of_equal_layers_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_shapes", {})
    for seed, layers, side in ((0, 6, 28), (1, 6, 28), (0, 6, 32), (0, 7, 28)):
        torch.manual_seed(seed)
        seen = convolution.output_shape(nn.Sequential(nn.Conv2d(1, layers, 5), nn.ReLU()), (1, side, side))
        assert seen == (layers, side - 4, side - 4)
    assert len(convolution._shapes) == 3
    for _ in range(2):
        with pytest.raises(ValueError, match="too small for this architecture"):
            convolution.output_shape(nn.Conv2d(1, 6, 5), (1, 3, 3))
