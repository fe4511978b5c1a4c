"""A device that works on while the host goes on, in simulated time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from depthgauge.timing import Device


@dataclass
class Queue:
    """One stream: the host's time, and when the device will have finished."""

    LAUNCH: ClassVar[float] = 5e-6  # seconds that the host takes to launch

    host: float = 0.0
    free: float = 0.0

    def launch(self, seconds: float) -> None:
        self.host += self.LAUNCH
        self.free = max(self.free, self.host) + seconds

    def synchronize(self) -> None:
        self.host = max(self.host, self.free)

    def now(self) -> float:
        self.host += 50e-9  # reading a clock takes time
        return self.host

    def event(self) -> Event:
        return Event(self)

    def device(self, *, events: bool = True) -> Device:
        return Device("fake", self.synchronize, (self.event) if events else None, self.now)


@dataclass
class Event:
    queue: Queue
    at: float = field(default=0.0)

    def record(self) -> None:
        self.queue.host += 1e-6
        self.at = max(self.queue.host, self.queue.free)

    def synchronize(self) -> None:
        self.queue.host = max(self.queue.host, self.at)

    def elapsed_time(self, end_event: Event) -> float:
        return 1000 * (end_event.at - self.at)


@pytest.fixture
def queue() -> Queue:
    return Queue()
