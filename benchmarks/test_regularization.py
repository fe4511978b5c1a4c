"""Networks with dropout of their own, trained together, over the same ones one after another.

    pytest --benchmark benchmarks/test_regularization.py

As the study `regularization` searches: every network has its own masks, rate and decay. `extra_info` has microseconds
of processor time a network and step, of both, timed in turns, and their ratio; and of the exact companion a fit's.
"""

from __future__ import annotations

import statistics
import time

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import data
from depthgauge.studies.regularization import fits, masked

STEPS = 30
ALONE = 4  # networks that are trained one after another


def train(net: masked.Net, seeds: range) -> None:
    digits = data.load("digits").train
    recipe = masked.Recipe([0.05] * len(seeds), [1e-4] * len(seeds), STEPS)
    masked.train(masked.Nets.draw(net, list(seeds), [0.3] * len(seeds)), digits, recipe, list(seeds))


def seconds(net: masked.Net, groups: list[range]) -> float:
    """Processor time of a network's step."""
    start = time.process_time()
    for seeds in groups:
        train(net, seeds)
    return (time.process_time() - start) / (STEPS * sum(map(len, groups)))


@pytest.mark.parametrize("convolutional", [False, True])
def test_masked_step(benchmark: BenchmarkFixture, convolutional: bool) -> None:
    """Time a network's step among 40, and alone."""
    net = masked.Net((("act", "drop"),) * 2, 8 if convolutional else 64, convolutional)
    together, alone = [range(40)], [range(seed, seed + 1) for seed in range(ALONE)]
    pairs = [(seconds(net, together), seconds(net, alone)) for _ in range(4)][1:]  # the first warms up
    benchmark.group = "a step with dropout"
    benchmark.pedantic(train, (net, together[0]), rounds=3)
    ours, single = (statistics.median(column) for column in zip(*pairs, strict=True))
    benchmark.extra_info.update(microseconds=1e6 * ours, alone=1e6 * single, ratio=single / ours)


@pytest.mark.parametrize("features", [250, 500, 2000])
def test_random_features(benchmark: BenchmarkFixture, features: int) -> None:
    """Time a least-squares fit of random ReLU features to 500 examples, below, at and above the threshold."""
    benchmark.group = "random features"
    benchmark.pedantic(fits.random_features, (500, features, 0), rounds=3, warmup_rounds=1)
