"""How often `depthgauge bench ab` is right, on this machine: equal code, and code that is 10 % slower.

    pytest --benchmark --benchmark-full benchmarks/test_ab.py

60 pairs of equal code must give no "slower" and no "faster"; of 30 pairs with 10 % more work, 29 must give "slower"
where the machine is quiet. Beside a neighbour that comes and goes on the same core there must be no false alarm either,
and no planted pair may be "faster" or "same". `extra_info` counts every answer. "Quiet" is the machine as it is: what
else runs on it is in `conditions`.
"""

from __future__ import annotations

import collections
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import timing
from depthgauge.timing import variants

EQUAL, PLANTED = 60, 30
CODE = "sum(range({}))"
COUNT, MORE = 20_000, 22_000
BUDGET = 8.0  # seconds a pair

_NEIGHBOUR = """
import os, random, sys, time
if sys.argv[1]:
    os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
draw = random.Random(0)
while True:
    end = time.perf_counter() + draw.expovariate(4)
    while time.perf_counter() < end:
        pass
    time.sleep(draw.expovariate(3))
"""


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """Bursts of 0.25 s, pauses of 0.33 s in the mean, on the core of those that are timed."""
    cores = ",".join(map(str, variants.cores_for(1)))
    process = subprocess.Popen([sys.executable, "-c", _NEIGHBOUR, cores])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def answers(pairs: int, second: int) -> tuple[collections.Counter[str], list[float]]:
    told: collections.Counter[str] = collections.Counter()
    resolvable = []
    for _ in range(pairs):
        with variants.expressions([CODE.format(COUNT), CODE.format(second)]) as sitting:
            done = timing.interleave(sitting, budget=BUDGET)
        told[str(done.judgements[0].pace)] += 1
        resolvable.append(done.resolvable)
    return told, resolvable


@pytest.mark.full
@pytest.mark.parametrize("restless", [False, True], ids=["quiet", "bursty"])
def test_answers(benchmark: BenchmarkFixture, restless: bool) -> None:
    def everything() -> None:
        with neighbour() if restless else contextlib.nullcontext():
            equal, told = answers(EQUAL, COUNT)
            planted, told_planted = answers(PLANTED, MORE)
        benchmark.extra_info.update(
            equal=dict(equal),
            planted=dict(planted),
            resolvable=sorted([*told, *told_planted])[len(told + told_planted) // 2],
            conditions=timing.conditions(),
        )

    benchmark.group = "a/b, how often it is right"
    benchmark.pedantic(everything, rounds=1)
    found = benchmark.extra_info
    assert set(found["equal"]) <= {"same", "inconclusive"}
    if restless:
        assert set(found["planted"]) <= {"slower", "inconclusive"}
    else:
        assert found["planted"].get("slower", 0) >= PLANTED - 1
