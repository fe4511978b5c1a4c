"""What a number costs in a kernel, in ns: each way of counting, by distribution, beside `x.sum()`, on one thread.

    pytest --benchmark --benchmark-full benchmarks/test_probe_kernel.py

All are called in turns on the same tensor, in caches; a figure is the median. `NUMBA_CPU_NAME=haswell` together with
an empty `NUMBA_CPU_FEATURES` holds numba to AVX2, as it would be on a processor without AVX-512.
"""

import statistics
import time

import pytest
import torch

from depthgauge.probe import compiled, pairs, planes, shuffles
from depthgauge.probe.compiled import CompiledKernel
from depthgauge.seeding import Purpose, generator

DISTRIBUTIONS = {
    "normal": lambda z: z,
    "relu": torch.relu,
    "quantized": lambda z: torch.round(8 * z) / 8,
    "log-normal": lambda z: torch.exp(8 * z),
}
SIZES = [65_536, 4096, 512, 128, 32, 1]
ROUNDS = 15
READABLE = {
    "pairs": pairs,
    **({"shuffles": shuffles} if compiled.VECTORS else {}),
    **({"planes": planes} if compiled.VECTORS == "avx512bw" else {}),
}


def costs(x: torch.Tensor) -> dict[str, float]:
    """Nanoseconds a number, by method, and those of `x.sum()`."""
    kernels = {name: CompiledKernel(module.METHOD) for name, module in READABLE.items()}
    calls = {name: lambda kernel=kernel: kernel.observe(x, 0, 0, 0) for name, kernel in kernels.items()}
    calls["sum"] = x.sum
    repetitions = max(1, 2**17 // max(x.numel(), 2048))
    passed = {name: [] for name in calls}
    for turn in range(ROUNDS + 2):  # the first two warm up
        for name, call in calls.items():
            start = time.perf_counter()
            for _ in range(repetitions):
                call()
            if turn > 1:
                passed[name].append(time.perf_counter() - start)
        for kernel in kernels.values():
            kernel.clear()
    return {name: statistics.median(times) / repetitions / x.numel() * 1e9 for name, times in passed.items()}


@pytest.mark.parametrize(
    "size", [size if size == 4096 else pytest.param(size, marks=pytest.mark.full) for size in SIZES]
)
def test_a_number(size: int, benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    z = torch.randn(size, generator=generator(0, Purpose.DATA))
    found = benchmark.pedantic(lambda: {name: costs(of(z)) for name, of in DISTRIBUTIONS.items()}, rounds=1)
    benchmark.extra_info.update(numbers=size, vectors=compiled.VECTORS, **found)
    with capsys.disabled():
        for name, told in found.items():
            line = " | ".join(f"{method} {cost:8.3f}" for method, cost in told.items())
            print(f"\n{size:6} {name:10} | {line}", end="")  # noqa: T201 # a result
