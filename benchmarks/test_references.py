"""Work that no version of depthgauge changes: what `depthgauge bench compare` holds two sessions against.

    pytest --benchmark benchmarks/test_references.py

Where these differ between two runs, or between the rounds of one, the machine differed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import seeding
from depthgauge.seeding import Purpose

Timed = Callable[..., None]


def test_interpreter(benchmark: BenchmarkFixture) -> None:
    numbers = range(20_000)
    benchmark.group = "reference"
    benchmark.extra_info["reference"] = True
    benchmark(lambda: sum(number * number for number in numbers))


def test_matrix_product(timed: Timed, device: str) -> None:
    generator = seeding.generator(0, Purpose.OPERANDS)
    left, right = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    out = torch.empty_like(left)
    timed(lambda: torch.mm(left, right, out=out), device, group="reference", reference=True)


def test_copy(timed: Timed, device: str) -> None:
    source = torch.ones(1 << 23, device=device)
    target = torch.empty_like(source)
    timed(lambda: target.copy_(source), device, group="reference", reference=True)
