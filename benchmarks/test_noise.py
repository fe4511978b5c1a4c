"""Noise scales against a plain pass over the same examples, side by side on one thread.

    pytest --benchmark benchmarks/test_noise.py

The yardstick is what a training does anyway: forward, loss and backward on all examples as one batch. Every round is
paired with one of the yardstick right before it, and a row is the median of the paired ratios with their extremes. Of
replicas it is such a pass of every one of them, and `noise.scale` of each alone stands beside.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from depthgauge import models, noise, replicas, seeding
from depthgauge.seeding import Purpose

EXAMPLES, REPLICAS = 256, 8
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: models.build("mlp", preset="small"),
    "lenet5": lambda: models.build("lenet5", preset="small"),
    "transformer": lambda: models.build("transformer", preset="small"),
    "resnet18, eval": lambda: models.build("resnet18", preset="small").eval(),
}
QUICK = ("mlp", "lenet5")


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def labelled(x: Tensor, classes: int = 10) -> tuple[Tensor, Tensor]:
    return x, torch.randint(classes, (len(x),), generator=seeding.generator(0, Purpose.LABELS))


def compared(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], label: str, work: Callable[[], object],
    plain: Callable[[], object],
) -> None:  # fmt: skip
    """Time the work against the yardstick, and print the ratio."""
    yardstick: list[float] = []

    def pair() -> None:
        start = time.perf_counter()
        plain()
        yardstick.append(time.perf_counter() - start)

    work()
    plain()
    benchmark.pedantic(work, setup=pair, rounds=7)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    ratios = [ours / theirs for theirs, ours in zip(yardstick, benchmark.stats.stats.data, strict=True)]
    ratio = statistics.median(ratios)
    benchmark.extra_info.update(ratio=ratio, plain_seconds=statistics.median(yardstick))
    with capsys.disabled():
        print(f"\n{label}: {ratio:.1f} plain passes ({min(ratios):.1f} to {max(ratios):.1f})")  # noqa: T201 # a result


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in MODELS]
)
def test_scale(name: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    model = MODELS[name]()
    x = models.example(name.partition(",")[0], preset="small", batch=EXAMPLES)
    with torch.no_grad():
        x, y = labelled(x, model(x[:2]).shape[-1])

    def plain() -> None:
        model.zero_grad()
        loss(model, x, y).backward()

    label = f"noise.scale, {name}, {EXAMPLES} examples"
    compared(benchmark, capsys, label, lambda: noise.scale(model, loss, x, y), plain)


@pytest.mark.parametrize("each", ["together", pytest.param("each alone", marks=pytest.mark.full)])
def test_replicas(each: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    model = models.build("mlp", depth=2, width=64, activation="tanh", input_shape=(64,), classes=10)
    stack = replicas.stack(model, range(REPLICAS))
    x, y = labelled(torch.randn(EXAMPLES, 64, generator=seeding.generator(0, Purpose.INPUTS)))
    members = [stack.module(row) for row in range(REPLICAS)]

    def plain() -> None:
        for member in members:
            member.zero_grad()
            loss(member, x, y).backward()

    def alone() -> list[noise.NoiseScale]:
        return [noise.scale(member, loss, x, y) for member in members]

    work = alone if each == "each alone" else lambda: noise.of_replicas(stack, x, y)
    compared(benchmark, capsys, f"noise of {REPLICAS} replicas {each}, {EXAMPLES} examples", work, plain)
