"""Clocks that stop when the device has finished, and the proof that one does."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from depthgauge import environment

# ruff: noqa: PLC0415 - a CPU is timed without torch

Work = Callable[[], object]


class UnsynchronizedClockError(RuntimeError):
    """Error of a clock that stops before the device, so that it times the launch alone."""


class Event(Protocol):
    """A point in a device's queue, such as `torch.cuda.Event(enable_timing=True)`."""

    def record(self) -> object: ...  # noqa: D102 - as torch has it
    def synchronize(self) -> object: ...  # noqa: D102
    def elapsed_time(self, end_event: Any, /) -> float: ...  # noqa: D102 - milliseconds to another of its kind


def _nothing() -> None:
    pass


def _host_seconds() -> float:
    return time.perf_counter_ns() * 1e-9


@dataclass(frozen=True)
class Device:
    """The facts of a device that timing needs.

    Attributes:
        name: as torch spells it.
        synchronize: returns when everything that was launched on it is finished.
        event: makes a point in its queue; None where calls return when they are done, as on a CPU.
        now: the host's seconds, from any origin.
    """

    name: str
    synchronize: Callable[[], None] = _nothing
    event: Callable[[], Event] | None = None
    now: Callable[[], float] = _host_seconds

    @property
    def launches(self) -> bool:
        """Tell whether a call may return before its work is done."""
        return self.synchronize is not _nothing

    @staticmethod
    def named(name: str) -> Device:
        """A device of this machine.

        Raises:
            DeviceError: there is none of that name.
        """
        name = environment.device(name)
        if name == "cpu":
            return Device(name)
        import torch

        def event() -> Event:
            return _OnStream(name, torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]  # torch's own

        return Device(name, lambda: torch.cuda.synchronize(name), event)


@dataclass(frozen=True)
class _OnStream:
    """An event of the device's own stream: by itself it would be recorded on the current device's.

    Attributes:
        name: the device.
        made: torch's event.
    """

    name: str
    made: Any

    def record(self) -> None:
        import torch

        self.made.record(torch.cuda.current_stream(self.name))

    def synchronize(self) -> None:
        self.made.synchronize()

    def elapsed_time(self, end_event: Any, /) -> float:
        return float(self.made.elapsed_time(end_event.made))


class Clock(Protocol):
    """Seconds from the launch of work until it is finished."""

    @property
    def name(self) -> str:
        """The device's name in a record."""

    def time(self, work: Work, calls: int = 1) -> float:
        """Return the seconds of `calls` calls in a row."""


@dataclass(frozen=True)
class HostClock:
    """The host's clock alone: right where a call returns when it is done, wrong where it only launches."""

    device: Device = Device("cpu")
    name: str = "host"

    def time(self, work: Work, calls: int = 1) -> float:
        """Seconds until the last call has returned."""
        now = self.device.now
        start = now()
        for _ in itertools.repeat(None, calls):
            work()
        return now() - start


@dataclass(frozen=True)
class DeviceClock:
    """The host's clock, stopped when the device has caught up. Calling it gives such a time, for other timers."""

    device: Device
    name: str = "host, synchronized"

    def __call__(self) -> float:
        """The host's seconds, once the device has finished."""
        self.device.synchronize()
        return self.device.now()

    def time(self, work: Work, calls: int = 1) -> float:
        """Seconds until the device has finished the last call."""
        start = self()
        for _ in itertools.repeat(None, calls):
            work()
        return self() - start


@dataclass(frozen=True)
class EventClock:
    """The device's own time between two events in its queue; time in which it waits for the host counts."""

    device: Device
    name: str = "device events"

    def time(self, work: Work, calls: int = 1) -> float:
        """Seconds between an event before the first call and one after the last."""
        assert self.device.event is not None
        self.device.synchronize()
        start, end = self.device.event(), self.device.event()
        start.record()
        for _ in itertools.repeat(None, calls):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000


def clock(device: str | Device = "cpu") -> Clock:
    """The clock for a device: its own events where it has any, else the host's.

    Raises:
        DeviceError: there is no such device.
    """
    device = Device.named(device) if isinstance(device, str) else device
    return HostClock(device) if device.event is None else EventClock(device)


def unfinished(clock: Clock, device: Device, work: Work, calls: int = 1) -> float:
    """The share of the work's time that the device has still to do when the clock has stopped; 0 for a right clock.

    The least of three tries: a wrong clock stops early every time, a host that is disturbed between two readings does
    not look like one.
    """
    return min(_unfinished(clock, device, work, calls) for _ in range(3)) if device.launches else 0.0


def _unfinished(clock: Clock, device: Device, work: Work, calls: int) -> float:
    device.synchronize()
    timed = clock.time(work, calls)
    stopped = device.now()
    device.synchronize()
    rest = device.now() - stopped
    device.synchronize()  # once more: what it takes where there is nothing left to wait for
    idle = device.now() - stopped - rest
    left = max(0.0, rest - idle)
    return left / (timed + left) if left else 0.0
