"""Parameter counts and operations against what papers and reference implementations state, and counts by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from depthgauge import models
from depthgauge.models.cost import measure

TORCHVISION = "torchvision's documented weights"
OURS = "derived in this file"


def count(name: str, **parameters: Any) -> int:
    return sum(p.numel() for p in models.build(name, device="meta", **parameters).parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return outputs * (inputs * kernel**2 + 1)


def dense(inputs: int, outputs: int) -> int:
    return outputs * (inputs + 1)


@pytest.mark.parametrize(
    ("name", "parameters", "published", "reference"),
    [
        ("softmax_regression", {}, 7_850, "784 x 10 + 10"),
        ("mlp", {}, 203_530, "the course: 784-256-10"),
        ("lenet5", {}, 61_706, "the course"),
        ("alexnet", {}, 61_100_840, TORCHVISION),
        ("vgg11", {}, 132_863_336, TORCHVISION),
        ("vgg13", {}, 133_047_848, TORCHVISION),
        ("vgg16", {}, 138_357_544, TORCHVISION),
        ("vgg19", {}, 143_667_240, TORCHVISION),
        ("vgg11", {"norm": "batch"}, 132_868_840, TORCHVISION),
        ("vgg13", {"norm": "batch"}, 133_053_736, TORCHVISION),
        ("vgg16", {"norm": "batch"}, 138_365_992, TORCHVISION),
        ("vgg19", {"norm": "batch"}, 143_678_248, TORCHVISION),
        ("googlenet", {"norm": "batch", "large_kernel": 3}, 6_624_904, TORCHVISION),
        ("resnet18", {}, 11_689_512, TORCHVISION),
        ("resnet34", {}, 21_797_672, TORCHVISION),
        ("resnet50", {}, 25_557_032, TORCHVISION),
        ("resnext50_32x4d", {}, 25_028_904, TORCHVISION),
        ("transformer", {}, 124_439_808, "OpenAI's GPT-2 checkpoint of 124M"),
        ("plain_cnn", {}, 269_034, OURS),
        ("nin", {}, 7_595_176, OURS),
        ("googlenet", {}, 6_998_552, OURS),
    ],
)
def test_parameter_count_is_the_published_one(
    name: str, parameters: dict[str, Any], published: int, reference: str
) -> None:
    assert count(name, **parameters) == published, reference


def test_course_lenet() -> None:
    by_hand = conv(1, 6, 5) + conv(6, 16, 5) + dense(16 * 5 * 5, 120) + dense(120, 84) + dense(84, 10)
    assert count("lenet5") == by_hand == 61_706


def test_course_alexnet() -> None:
    convolutions = conv(1, 96, 11) + conv(96, 256, 5) + conv(256, 384, 3) + conv(384, 384, 3) + conv(384, 256, 3)
    # 224 pixels: 54 after 11 x 11 of stride 4 and padding 1, then 26, 12 and 5 after the poolings.
    by_hand = convolutions + dense(256 * 5 * 5, 4096) + dense(4096, 4096) + dense(4096, 10)
    assert count("alexnet", preset="course") == by_hand == 46_764_746


def test_course_vgg11() -> None:
    widths = (1, 64, 128, 256, 256, 512, 512, 512, 512)
    convolutions = sum(conv(inputs, outputs, 3) for inputs, outputs in pairwise(widths))
    by_hand = convolutions + dense(512 * 7 * 7, 4096) + dense(4096, 4096) + dense(4096, 10)
    assert count("vgg11", preset="course") == by_hand == 128_806_154


def nin_by_hand(images: int, last: int, classes: int) -> int:
    blocks = ((images, 96, 96, 96, 11), (96, 256, 256, 256, 5), (256, 384, 384, 384, 3), (384, last, last, classes, 3))
    return sum(conv(i, a, k) + conv(a, b, 1) + conv(b, c, 1) for i, a, b, c, k in blocks)


def test_nin() -> None:
    assert count("nin", preset="course") == nin_by_hand(1, 10, 10) == 1_992_166
    assert count("nin") == nin_by_hand(3, 1024, 1000) == 7_595_176  # the 29 MB of Caffe's model zoo, as float32


def googlenet_by_hand(images: int, classes: int) -> int:
    # Szegedy et al. 2015, table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
    table = (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    )
    total = conv(images, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3)
    inputs = 192
    for one, three_reduce, three, five_reduce, five, pool in table:
        total += conv(inputs, one, 1) + conv(inputs, three_reduce, 1) + conv(three_reduce, three, 3)
        total += conv(inputs, five_reduce, 1) + conv(five_reduce, five, 5) + conv(inputs, pool, 1)
        inputs = one + three + five + pool
    return total + dense(inputs, classes)


def test_googlenet() -> None:
    assert count("googlenet", preset="course") == googlenet_by_hand(1, 10) == 5_977_530
    assert count("googlenet") == googlenet_by_hand(3, 1000)


def test_plain_cnn_of_20_layers() -> None:
    # He et al. 2016, section 4.2, n = 3: 7 convolutions of 16 channels, 6 of 32, 6 of 64. "0.27M" in table 6.
    by_hand = conv(3, 16, 3) + 6 * conv(16, 16, 3) + conv(16, 32, 3) + 5 * conv(32, 32, 3)
    by_hand += conv(32, 64, 3) + 5 * conv(64, 64, 3) + dense(64, 10)
    assert count("plain_cnn") == by_hand


PROJECTIONS_18 = 64 * 128 + 128 * 256 + 256 * 512


def test_plain_resnet18_lacks_the_projections_alone() -> None:
    norms = 2 * (128 + 256 + 512)
    assert count("resnet18", residual=False) == count("resnet18") - PROJECTIONS_18 - norms


def test_preactivation_resnet18() -> None:
    """As many weights; norms of 64 (5 x), 128 and 256 (4 x each), 512 (4 x), where the original has 5 + 5 + 5 + 5."""
    post_norms = 2 * (5 * 64 + 5 * 128 + 5 * 256 + 5 * 512)
    # Eight blocks: one norm over their input, one over the middle; one last norm; none in stem and shortcuts.
    over_inputs = 64 + 64 + 64 + 128 + 128 + 256 + 256 + 512
    over_middles = 2 * (64 + 128 + 256 + 512)
    pre_norms = 2 * (over_inputs + over_middles + 512)
    assert count("resnet18", order="pre") == count("resnet18") - post_norms + pre_norms


def test_gpt2_by_hand() -> None:
    width, vocabulary, context, depth = 768, 50257, 1024, 12
    block = 2 * 2 * width + dense(width, 3 * width) + dense(width, width) + dense(width, 4 * width)
    block += dense(4 * width, width)
    assert count("transformer") == vocabulary * width + context * width + depth * block + 2 * width


def test_rms_norm_has_no_shift() -> None:
    norms, width = 2 * 12 + 1, 768
    assert count("transformer", norm="rms") == count("transformer") - norms * width


@pytest.mark.parametrize(
    ("name", "parameters", "giga_multiply_adds"),
    [
        ("alexnet", {}, 0.71),
        ("vgg11", {}, 7.61),
        ("vgg13", {}, 11.31),
        ("vgg16", {}, 15.47),
        ("vgg19", {}, 19.63),
        ("googlenet", {"norm": "batch", "large_kernel": 3}, 1.50),
        ("resnet18", {}, 1.81),
        ("resnet34", {}, 3.66),
        ("resnet50", {}, 4.09),
        ("resnext50_32x4d", {}, 4.23),
    ],
)
def test_operations_are_those_that_torchvision_documents(
    name: str, parameters: dict[str, Any], giga_multiply_adds: float
) -> None:
    cost = measure(models.build(name, device="meta", **parameters), models.example(name, device="meta", batch=2))
    assert cost.forward_flops / 2 / 2 / 1e9 == pytest.approx(giga_multiply_adds, abs=0.0051)  # stated to two decimals


def recurrent_operations(gates: int, steps: int, inputs: int, width: int, classes: int) -> tuple[int, int]:
    """Forward and backward of one layer; the first state is a constant and wants no gradient, nor does the input."""
    read, carry, answer = 2 * gates * inputs * width, 2 * gates * width**2, 2 * width * classes
    forward = steps * (read + carry) + answer
    return forward, forward + (steps - 1) * carry + answer


def recorded() -> list[tuple[str, str]]:
    return [(name, preset) for name in models.names() for preset in models.entry(name).presets]


@pytest.mark.parametrize(("name", "preset"), recorded())
def test_the_table_of_sizes_is_true(name: str, preset: str) -> None:
    size = models.entry(name).sizes[preset]
    found = (size.parameters, size.forward_flops, size.backward_flops)
    if name in {"rnn", "lstm"}:  # thousands of steps are slow to trace, and easy to count
        made_of = models.arguments(name, preset)
        gates, width = (1 if name == "rnn" else 4), made_of["width"]
        steps, inputs = made_of["input_shape"][-2:]
        parameters = gates * width * (inputs + width + 1) + dense(width, 10)
        true = (parameters, *recurrent_operations(gates, steps, inputs, width, 10))
    else:
        model = models.build(name, preset=preset, device="meta")
        cost = measure(model, models.example(name, preset=preset, batch=2, device="meta"))
        assert cost.forward_flops % 2 == cost.backward_flops % 2 == 0
        true = (cost.parameters, cost.forward_flops // 2, cost.backward_flops // 2)
    assert found == true, f'"{preset}": Size({true[0]:_}, {true[1]:_}, {true[2]:_})'


@pytest.mark.parametrize("name", ["rnn", "lstm"])
def test_counted_operations_of_recurrent_models(name: str) -> None:
    shape = {"input_shape": (5, 3), "width": 7}
    cost = measure(models.build(name, **shape), models.example(name, **shape))
    assert (cost.forward_flops, cost.backward_flops) == recurrent_operations(1 if name == "rnn" else 4, 5, 3, 7, 10)


@pytest.mark.parametrize("name", models.names())
def test_small_presets_are_small(name: str) -> None:
    assert models.entry(name).sizes["small"].parameters <= 200_000
    assert models.arguments(name, "small")["input_shape"] == (1, 28, 28)


def test_full_sizes_cost_no_memory() -> None:
    assert all(p.is_meta for p in models.build("vgg19", device="meta").parameters())
    assert math.prod(models.example("vgg19", device="meta").shape) == 3 * 224 * 224
    assert models.example("transformer", device="meta").dtype == torch.int64
