"""Collectives between two processes over loopback (gloo), by size, as `depthgauge.parallel.collectives` makes them.

    pytest --benchmark benchmarks/test_collectives.py

The other process makes the same call in a loop, and leaves when it receives NaN. `bus_bytes_per_second` is what each
process sends in a ring over the time: see `depthgauge.parallel.collectives`. All sizes with alpha and beta, on any
number of ranks and nodes: `python -m depthgauge.parallel`.
"""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import distributed

from depthgauge.parallel import Group
from depthgauge.parallel.collectives import NAMES, bus_share, moved, prepare

RANKS = 2
PATIENCE = datetime.timedelta(seconds=60)


def join(store: str, rank: int) -> Group:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=PATIENCE)
    return Group(rank, RANKS, torch.device("cpu"))


def follow(store: str) -> None:
    """What the other process does: for each size and collective in turn, the same call until NaN arrives."""
    torch.set_num_threads(1)
    group = join(store, 1)
    for line in sys.stdin:
        name, size = line.split()
        prepared = prepare(group, name, int(size))
        while True:
            prepared.call()
            if math.isnan(prepared.result[0]):
                break


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Group, subprocess.Popen[str]]]:
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    store = tmp_path_factory.mktemp("ranks") / "store"
    process = subprocess.Popen([sys.executable, __file__, str(store)], stdin=subprocess.PIPE, text=True)
    group = join(str(store), 0)
    yield group, process
    distributed.destroy_process_group()
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.mark.parametrize("size", [1 << 12, 1 << 20, pytest.param(1 << 24, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", [*NAMES, "broadcast"])
def test_collective(
    benchmark: BenchmarkFixture, other: tuple[Group, subprocess.Popen[str]], name: str, size: int
) -> None:
    group, process = other
    prepared = prepare(group, name, size)
    process.stdin.write(f"{name} {size}\n")
    process.stdin.flush()
    prepared.call()
    benchmark.group = "collective, gloo, 2 processes"
    try:
        benchmark(prepared.call)
    finally:
        prepared.given.fill_(math.nan)
        prepared.call()
    benchmark.extra_info.update(collective=name, bytes=moved(name, size, RANKS), ranks=RANKS)
    if benchmark.stats is not None:  # there are none with --benchmark-disable
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["bus_bytes_per_second"] = bus_share(name, RANKS) * moved(name, size, RANKS) / seconds


if __name__ == "__main__":
    follow(str(Path(sys.argv[1])))
