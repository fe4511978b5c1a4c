"""Collectives between two processes over loopback (gloo), by size.

    pytest --benchmark benchmarks/test_collectives.py

The other process runs the same collective in a loop, and leaves when it receives NaN. `bus_bytes_per_second` is what
each process sends and receives in a ring: 2 (n - 1) / n of the message for an all-reduce, (n - 1) / n of the result for
an all-gather, the message for a broadcast.
"""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import distributed

RANKS = 2
PATIENCE = datetime.timedelta(seconds=60)
SENT = {"all_reduce": 2 * (RANKS - 1) / RANKS, "all_gather": RANKS - 1, "broadcast": 1.0}


def collective(name: str, tensor: torch.Tensor) -> tuple[Callable[[], object], torch.Tensor]:
    """A call, and a tensor whose first value says NaN when rank 0 has ended."""
    if name == "all_reduce":
        return lambda: distributed.all_reduce(tensor), tensor
    if name == "broadcast":
        return lambda: distributed.broadcast(tensor, 0), tensor
    gathered = [torch.empty_like(tensor) for _ in range(RANKS)]
    return lambda: distributed.all_gather(gathered, tensor), gathered[0]


def join(store: str, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=PATIENCE)


def follow(store: str) -> None:
    """What the other process does: for each size and collective in turn, the same call until NaN arrives."""
    torch.set_num_threads(1)
    join(store, 1)
    for line in sys.stdin:
        name, numbers = line.split()
        call, told = collective(name, torch.zeros(int(numbers)))
        while True:
            call()
            if math.isnan(told[0]):
                break


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    store = tmp_path_factory.mktemp("ranks") / "store"
    process = subprocess.Popen([sys.executable, __file__, str(store)], stdin=subprocess.PIPE, text=True)
    join(str(store), 0)
    yield process
    distributed.destroy_process_group()
    process.stdin.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()


@pytest.mark.parametrize("size", [1 << 12, 1 << 20, pytest.param(1 << 24, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", SENT)
def test_collective(benchmark: BenchmarkFixture, other: subprocess.Popen[str], name: str, size: int) -> None:
    tensor = torch.zeros(size // 4)
    call, _ = collective(name, tensor)
    other.stdin.write(f"{name} {size // 4}\n")
    other.stdin.flush()
    call()
    benchmark.group = "collective, gloo, 2 processes"
    try:
        benchmark(call)
    finally:
        tensor.fill_(math.nan)
        call()
    benchmark.extra_info.update(collective=name, bytes=size, ranks=RANKS)
    if benchmark.stats is not None:  # there are none with --benchmark-disable
        benchmark.extra_info["bus_bytes_per_second"] = SENT[name] * size / benchmark.stats.stats.median


if __name__ == "__main__":
    follow(str(Path(sys.argv[1])))
