"""What every benchmark shares: devices, threads, and the record of what was timed.

A benchmark that takes `device` runs on each device; one that takes `timed` gets operations, bytes, achieved rates, the
fraction of the measured roofline, peak memory and the first call's time into its `extra_info`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from depthgauge import environment, float32, roofline, timing
from depthgauge.environment import DeviceError
from depthgauge.operations import counting

THREADS = 1
Work = Callable[[], object]


def _devices(config: pytest.Config) -> list[str]:
    asked = config.getoption("run_benchmarks_on")
    if asked:
        try:
            return [environment.device(asked)]
        except DeviceError as error:
            raise pytest.UsageError(str(error)) from error
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On every device there is."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", _devices(metafunc.config))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On CUDA pytest-benchmark's clock waits for the device, and some benchmarks are for CUDA alone."""
    for item in items:
        device = getattr(item, "callspec", None) and item.callspec.params.get("device")
        if device and device != "cpu":
            item.add_marker(pytest.mark.benchmark(timer=_synchronized(device)))
        elif device and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="for CUDA alone"))


def _synchronized(device: str) -> Callable[[], float]:
    clock = timing.DeviceClock(timing.Device.named(device))

    def synchronized() -> float:
        return clock()

    return synchronized


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Versions, threads, clock rates and ceilings of the devices, beside pytest-benchmark's own."""
    machine_info["fingerprint"] = environment.fingerprint(_devices(config)[0], THREADS)
    machine_info["conditions"] = {device: timing.conditions(device) for device in _devices(config)}
    with timing.pinned(THREADS):
        machine_info["roofline"] = {device: vars(roofline.ceilings(device)) for device in _devices(config)}


@pytest.fixture(autouse=True, scope="session")
def _threads() -> Iterator[None]:
    with timing.pinned(THREADS):
        yield


@pytest.fixture
def timed(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Times work and records what it did: `timed(work, device, dtype)`."""

    def run(
        work: Work,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        counted: Work | None = None,
        cold: bool = False,
        group: str | None = None,
        **told: object,
    ) -> None:
        """Warm caches unless `cold`; `counted` is what to count operations of, where that is not `work` itself."""
        place = timing.Device.named(device)
        clock = timing.clock(place)
        with float32.multiplied(tf32=dtype == "tf32"):
            first = clock.time(work)
            peak = timing.peak_memory(work, place)
            with counting() as operations:
                (counted or work)()
            left = timing.unfinished(timing.DeviceClock(place), place, work)
            assert left < 0.1, f"the timer leaves {100 * left:.0f} % of the work unfinished"
            benchmark.group = group
            if cold:
                benchmark.pedantic(work, setup=timing.evict(place), rounds=20)
            else:
                benchmark(work)
        flops = sum(operation.flops for operation in operations)
        moved = sum(operation.bytes for operation in operations)
        benchmark.extra_info.update(
            told,
            flops=flops,
            bytes=moved,
            peak_memory=peak,
            first_call=first,
            cache="cold" if cold else "warm",
            threads=torch.get_num_threads(),
            device=device,
            dtype=dtype,
            conditions=timing.conditions(device),
        )
        if benchmark.stats is not None:  # there are none with --benchmark-disable
            seconds = benchmark.stats.stats.median
            top = roofline.ceilings(device)
            least = top.least_of(operations, "tf32" if dtype == "tf32" else "float32")
            benchmark.extra_info.update(
                flops_per_second=flops / seconds,
                bytes_per_second=moved / seconds,
                roofline_fraction=least / seconds,
                memory_fraction=moved / top.bandwidth / seconds,
            )

    return run
