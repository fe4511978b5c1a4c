"""Duration of work, on a device that may still be working when a call returns.

    >>> import torch
    >>> x = torch.randn(64, 64)
    >>> timing = measure(lambda: x @ x, rounds=20)
    >>> len(timing.seconds), timing.clock, timing.cache
    (20, 'host', 'warm')

A `Clock` stops when what it enclosed is finished: on a CPU it is the host's, on CUDA a pair of device events. `measure`
keeps the first call apart (compilation, allocation, autotuning), warms up, times rounds long enough for the clock, and
refuses a clock that stops before the device does. `conditions` says what the figures were measured under.

Two pieces of code are compared by `interleave`, which times them in turns, A B B A: durations of two separate
measurements differ by all that changed between them. `batch_curve` has the seconds and memory of a step against its
batch size.
"""

from __future__ import annotations

from depthgauge.timing.batches import LargestBatch, Step, batch_curve, largest_batch, rounds_in_turns
from depthgauge.timing.clocks import (
    Clock,
    Device,
    DeviceClock,
    Event,
    EventClock,
    HostClock,
    UnsynchronizedClockError,
    clock,
    unfinished,
)
from depthgauge.timing.conditions import conditions, pinned
from depthgauge.timing.interleaving import Interleaved, Sitting, Slot, interleave
from depthgauge.timing.measurement import Timing, evict, measure
from depthgauge.timing.memory import peak_memory, peak_tensors, room_for_tensors, saved_by, saved_bytes
from depthgauge.timing.turns import durations, in_turns, rows_of

__all__ = [
    "Clock",
    "Device",
    "DeviceClock",
    "Event",
    "EventClock",
    "HostClock",
    "Interleaved",
    "LargestBatch",
    "Sitting",
    "Slot",
    "Step",
    "Timing",
    "UnsynchronizedClockError",
    "batch_curve",
    "clock",
    "conditions",
    "durations",
    "evict",
    "in_turns",
    "interleave",
    "largest_batch",
    "measure",
    "peak_memory",
    "peak_tensors",
    "pinned",
    "room_for_tensors",
    "rounds_in_turns",
    "rows_of",
    "saved_by",
    "saved_bytes",
    "unfinished",
]
