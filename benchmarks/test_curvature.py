"""The sharpness of a network against training steps on the same batch, in turns, on one thread.

    pytest --benchmark --benchmark-full benchmarks/test_curvature.py

A row is the median, over paired rounds, of the time that a product with the Hessian takes over that of a training step
(forward, backward, a step of SGD), with its extremes. A round measures one sharpness, with everything that it does:
checks, orthogonalization, the residual. It fails where the lower quartile of the ratios is above the target.
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

from depthgauge import curvature, models, replicas, seeding
from depthgauge.seeding import Purpose

TARGET = 4.0  # training steps a product
OF_REPLICAS = 6.0  # the same: a stack goes on until its last replica has converged, on a basis beyond the cache
REPLICAS = 16
SHAPE = (1, 28, 28)
NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "mlp 64 wide": (lambda: models.build("mlp", depth=2, width=64, input_shape=SHAPE, classes=10), 500),
    "mlp 512 wide": (lambda: models.build("mlp", depth=4, width=512, input_shape=SHAPE, classes=10), 500),
    "lenet5": (lambda: models.build("lenet5", input_shape=SHAPE, classes=10), 200),
}


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(model(x), y)


def batch(size: int) -> tuple[Tensor, Tensor]:
    generator = seeding.generator(0, Purpose.INPUTS)
    return torch.randn(size, *SHAPE, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def steps(model: nn.Module, x: Tensor, y: Tensor, count: int = 10) -> float:
    """Seconds of a training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    start = time.perf_counter()
    for _ in range(count):
        optimizer.zero_grad()
        loss(model, x, y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return (time.perf_counter() - start) / count


@pytest.mark.parametrize("name", ["mlp 64 wide", *(pytest.param(n, marks=pytest.mark.full) for n in list(NETS)[1:])])
def test_sharpness(name: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    build, size = NETS[name]
    model, (x, y) = build(), batch(size)
    judge(benchmark, capsys, name, lambda: [curvature.sharpness(model, loss, x, y)], lambda: steps(model, x, y))


@pytest.mark.full
def test_sharpness_of_replicas(benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    build, size = NETS["mlp 64 wide"]
    stack, (x, y) = replicas.stack(build(), range(REPLICAS)), batch(size)
    members = [stack.module(row) for row in range(REPLICAS)]

    def stepped() -> float:
        return sum(steps(model, x, y) for model in members)

    judge(
        benchmark,
        capsys,
        f"{REPLICAS} replicas",
        lambda: curvature.of_replicas(stack, x, y),
        stepped,
        target=OF_REPLICAS,
    )


def judge(
    benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str], name: str,
    measure: Callable[[], list[curvature.Sharpness]], step: Callable[[], float], *, target: float = TARGET,
) -> None:  # fmt: skip
    """Time both in turns; a measurement's products are those of the network that takes most, and its residual's."""
    products = 1 + max(found.steps for found in measure())
    step()
    seconds: list[float] = []
    benchmark.pedantic(measure, setup=lambda: seconds.append(step()), rounds=5)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    ratios = [ours / products / plain for ours, plain in zip(benchmark.stats.stats.data, seconds, strict=True)]
    ratio, low, high = statistics.median(ratios), min(ratios), max(ratios)
    benchmark.extra_info.update(products=products, ratio=ratio, low=low, high=high)
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{name:14} | {products:3} products | {ratio:5.2f} training steps each ({low:.2f} to {high:.2f}), "
            f"at most {target}",
            end="",
        )
    assert statistics.quantiles(ratios, n=4)[0] <= target
