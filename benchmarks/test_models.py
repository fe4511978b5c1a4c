"""One training step of every small preset: batch of 64, one core, at most 50 ms.

    pytest benchmarks/test_models.py --benchmark-only

Forward, loss, backward and a step of plain gradient descent on 28 x 28 images. The budget is held against the minimum:
what the machine can do when nothing else runs on it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import cross_entropy

from depthgauge import models

BATCH = 64
BUDGET = 0.050  # seconds


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", models.names())
def test_step(benchmark: BenchmarkFixture, name: str) -> None:
    model = models.build(name, preset="small", init="he")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = models.example(name, preset="small", batch=BATCH)
    y = torch.arange(BATCH) % 10

    def step() -> None:
        optimizer.zero_grad()
        out = model(x)
        loss = out.square().mean() if name == "linear_regression" else cross_entropy(out, y)
        loss.backward()
        optimizer.step()

    benchmark.pedantic(step, rounds=20, warmup_rounds=3)
    size = models.entry(name).sizes["small"]
    benchmark.extra_info["parameters"] = size.parameters
    benchmark.extra_info["flops"] = BATCH * (size.forward_flops + size.backward_flops)
    if benchmark.stats is not None:  # there are none with --benchmark-disable
        assert benchmark.stats.stats.min <= BUDGET
