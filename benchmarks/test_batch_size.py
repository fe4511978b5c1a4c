"""A step of the sweep over batch sizes: a chunk's replicas trained together, over the same ones one after another.

    pytest --benchmark benchmarks/test_batch_size.py

Every row is a chunk of the coarse grid, 40 replicas, at one batch size; `extra_info` has microseconds of processor time
a replica and step, of both, and their ratio.
"""

from __future__ import annotations

import statistics
import time
from itertools import islice

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import replicas
from depthgauge.studies.batch_size import trained
from depthgauge.study import Grid

STEPS = 30
ALONE = 5  # replicas that are trained one after another


def chunk(net: str, batch: int, size: int) -> trained.Prepared:
    rates = trained.rates(net, "sgd", batch)
    grid = Grid({"lr": rates}, trained.group(net, "sgd", batch), 0, ("lr", "seed"), 500, selection=5)
    return trained.prepared(tuple(islice(grid.cases(), size)), "cpu")


def train(made: trained.Prepared, strategy: replicas.engine.Strategy | None = None) -> None:
    replicas.train(
        made.stack, made.fit.x, made.fit.y, made.optimizer, strategy=strategy, **{**made.settings, "steps": STEPS}
    )


def seconds(made: trained.Prepared, strategy: replicas.engine.Strategy | None = None) -> float:
    """Processor time of a replica's step."""
    start = time.process_time()
    train(made, strategy)
    return (time.process_time() - start) / (len(made.stack) * STEPS)


@pytest.mark.parametrize("net", ["softmax", "mlp"])
@pytest.mark.parametrize("batch", [1, 64, 1024])
def test_step(benchmark: BenchmarkFixture, net: str, batch: int) -> None:
    """Time a replica's step among 40, and alone by `torch.optim`."""
    together, alone = chunk(net, batch, 40), chunk(net, batch, ALONE)
    pairs = [(seconds(together), seconds(alone, "loop")) for _ in range(4)][1:]  # the first warms up
    benchmark.group = "a step of the sweep"
    benchmark.pedantic(train, (together,), rounds=3)
    ours, single = (statistics.median(column) for column in zip(*pairs, strict=True))
    benchmark.extra_info.update(microseconds=1e6 * ours, alone=1e6 * single, ratio=single / ours)
