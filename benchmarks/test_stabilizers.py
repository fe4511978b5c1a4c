"""A step with clipped gradients, over the same step without.

    pytest --benchmark benchmarks/test_stabilizers.py

Replicas of a small network, as the study `stabilizers` trains them; `extra_info` has microseconds of processor time a
replica and step, with and without clipping, timed in turns, and their ratio.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import data, models, replicas
from depthgauge.initialization import at_gain
from depthgauge.studies.stabilizers import clipped, clipping

STEPS, REPLICAS = 40, 60


def train(stack: replicas.Stack, examples: data.Examples, way: clipped.Clipping) -> None:
    clipped.train(stack, examples, torch.full((REPLICAS,), 0.05), way, batch=32, steps=STEPS)


def seconds(*arguments: object) -> float:
    """Processor time of a replica's step."""
    start = time.process_time()
    train(*arguments)  # type: ignore[arg-type]  # as `train` takes them
    return (time.process_time() - start) / (REPLICAS * STEPS)


@pytest.mark.parametrize("way", ["norm 1", "value 0.1", "adaptive 0.04"])
def test_clipped_step(benchmark: BenchmarkFixture, way: str) -> None:
    """Time a replica's step among 60, with a bound on its gradient and without."""
    digits = data.load("digits")
    template = models.build("mlp", input_shape=digits.input_shape, classes=digits.classes, depth=4, width=32)
    stack = replicas.stack(template, range(REPLICAS), at_gain(2**0.5))
    plain, bounded = ((stack, digits.train, clipping.WAYS[name]) for name in ("none", way))
    pairs = [(seconds(*bounded), seconds(*plain)) for _ in range(4)][1:]  # the first warms up
    benchmark.group = "a clipped step"
    benchmark.pedantic(train, bounded, rounds=3)
    ours, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    benchmark.extra_info.update(microseconds=1e6 * ours, without=1e6 * without, ratio=ours / without)
