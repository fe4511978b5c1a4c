"""What low precision costs to study: bisection against a plain pass, an emulated step against the plain one.

    pytest --benchmark benchmarks/test_precision.py

Both sides run in turns in one process; `extra_info` has the ratio with its interval.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from depthgauge import models, precision, stats, timing
from depthgauge.seeding import Purpose, generator

BLOCKS = 12
MODELS = ("mlp", "resnet18", "transformer")


def trained(name: str, device: str) -> tuple[nn.Module, torch.Tensor]:
    """A small model and a batch of its inputs."""
    x = models.example(name, preset="small", batch=32)
    return models.build(name, preset="small", seed=0).to(device), x.to(device)


@pytest.mark.parametrize("fmt", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("name", MODELS)
def test_emulated_step(benchmark: BenchmarkFixture, name: str, fmt: str, device: str) -> None:
    model, x = trained(name, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    def emulated_step() -> None:
        with precision.emulated(fmt):
            step()

    _compared(benchmark, step, emulated_step, device, f"emulated step, {device}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("name", MODELS)
def test_bisection(benchmark: BenchmarkFixture, name: str, dtype: str, device: str) -> None:
    model, x = trained(name, device)
    cotangent = torch.randn(model(x).shape, generator=generator(0, Purpose.COTANGENT)).to(device)

    def plain() -> None:
        torch.autograd.backward(model(x), cotangent)

    _compared(benchmark, plain, lambda: precision.bisect(model, x, dtype), device, f"bisection, {device}")


def _compared(benchmark: BenchmarkFixture, plain, other, device: str, group: str) -> None:  # type: ignore[no-untyped-def]
    clock = timing.clock(device)
    seconds: dict[str, list[list[float]]] = {"plain": [], "other": []}

    def block() -> None:
        """Plain, other, other, plain."""
        first, there, back, last = clock.time(plain), clock.time(other), clock.time(other), clock.time(plain)
        seconds["plain"].append([first, last])
        seconds["other"].append([there, back])

    benchmark.group = group
    benchmark.pedantic(block, rounds=BLOCKS, warmup_rounds=1)
    if benchmark.stats is None:  # with --benchmark-disable
        return
    ratio = stats.time_ratio(seconds["other"][-BLOCKS:], seconds["plain"][-BLOCKS:]).effect
    benchmark.extra_info.update(time_ratio=ratio.value, low=ratio.low, high=ratio.high, blocks=ratio.n)
