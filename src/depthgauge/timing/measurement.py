"""One piece of work, timed over and over."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from typing import Literal

import numpy as np

from depthgauge.timing.clocks import Clock, Device, UnsynchronizedClockError, Work, unfinished
from depthgauge.timing.clocks import clock as clock_of

# ruff: noqa: PLC0415 - a CPU is timed without torch

LEAST = 1e-3
"""Seconds that a round lasts at least: 10,000 times what reading the host's clock takes."""

TOLERATED = 0.1
"""Share of the work that a device may have left when its clock stops: events and the host disagree by less."""

Cache = Literal["warm", "cold"]


@dataclass(frozen=True)
class Timing:
    """Durations of one piece of work.

    Attributes:
        seconds: seconds of one call, a value for each round.
        calls: in each round.
        first: seconds of the very first call, with whatever it compiled, allocated and tuned.
        clock: which clock.
        cache: `warm`: a call finds in the caches what the one before left there; `cold`: they were overwritten.
    """

    seconds: tuple[float, ...]
    calls: int
    first: float
    clock: str
    cache: Cache

    @property
    def best(self) -> float:
        """The shortest round: what the machine can do where nothing disturbs it."""
        return min(self.seconds)

    @property
    def median(self) -> float:
        """The median round."""
        return float(np.median(self.seconds))


def measure(
    work: Work,
    device: str | Device = "cpu",
    *,
    rounds: int = 20,
    least: float = LEAST,
    warmup: float = 0.05,
    cache: Cache = "warm",
    clock: Clock | None = None,
) -> Timing:
    """Durations of `work()`, the garbage collector off.

    Args:
        work: the work to time; it may launch and return.
        device: the work's device.
        rounds: number of durations.
        least: seconds that a round lasts at least; calls are repeated until they do. With cold caches: one call.
        warmup: seconds of calls before the first round, two calls at least; the first ever is kept apart.
        cache: `cold` overwrites the caches before each call.
        clock: another clock than `clock(device)`.

    Raises:
        DeviceError: there is no such device.
        UnsynchronizedClockError: the clock stops before the device does.
        ValueError: no round.
    """
    if rounds < 1:
        raise ValueError(f"a measurement has at least one round; got {rounds}")
    device = Device.named(device) if isinstance(device, str) else device
    clock = clock or clock_of(device)
    overwrite = evict(device) if cache == "cold" else None
    with _no_collection():
        device.synchronize()
        first = clock.time(work)
        calls = _warm_up(work, device, clock, least, warmup)
        left = unfinished(clock, device, work, calls)
        if left > TOLERATED:
            raise UnsynchronizedClockError(
                f"the clock ({clock.name}) stops too early: {100 * left:.0f} % of the work is still to be done on "
                f"{device.name}; time it by device events, or synchronize"
            )
        if overwrite is None:
            seconds = [clock.time(work, calls) / calls for _ in range(rounds)]
        else:
            calls, seconds = 1, []
            for _ in range(rounds):
                overwrite()
                seconds.append(clock.time(work))
    return Timing(tuple(seconds), calls, first, clock.name, cache)


def _warm_up(work: Work, device: Device, clock: Clock, least: float, warmup: float) -> int:
    """Calls a round, found while warming up."""
    start, calls, times = device.now(), 1, 0
    while True:
        seconds = clock.time(work, calls)
        times += 1
        enough = seconds >= least or calls >= 1_000_000
        if enough and times > 1 and device.now() - start >= warmup:
            return calls
        if not enough:
            calls = min(1_000_000, max(2 * calls, math.ceil(1.2 * calls * least / max(seconds, 1e-9))))


@contextmanager
def _no_collection() -> Iterator[None]:
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def evict(device: str | Device = "cpu") -> Callable[[], None]:
    """Return a function that overwrites a device's caches: it writes twice the last level's size and waits for it.

    Raises:
        DeviceError: there is no such device.
    """
    device = Device.named(device) if isinstance(device, str) else device
    if not device.name.startswith("cuda"):
        line = np.zeros(2 * _last_level_cache() // 8)

        def overwrite() -> None:
            line.fill(0.0)

        return overwrite
    import torch

    size = 2 * int(torch.cuda.get_device_properties(device.name).L2_cache_size)
    block = torch.empty(size, dtype=torch.uint8, device=device.name)
    synchronize = device.synchronize

    def overwrite_block() -> None:
        block.zero_()
        synchronize()

    return overwrite_block


@once
def _last_level_cache() -> int:
    """Bytes; 64 MiB where the machine does not say."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [1 << 26]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        size = path.read_text().strip()
        if size and size[-1] in units and size[:-1].isdigit():
            sizes.append(int(size[:-1]) * units[size[-1]])
    return max(sizes[1:], default=sizes[0])
