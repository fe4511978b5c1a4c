"""Memory of a step against its batch size, and the batch that would fill the device."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from depthgauge import nested
from depthgauge.timing import Device, peak_tensors, room_for_tensors
from depthgauge.workload import Training

FILLED = 0.9  # of the memory that a batch may take: allocators lose some to gaps


@dataclass(frozen=True, eq=False)
class Room:
    """Memory of a step.

    Attributes:
        bytes: of the tensors that a step makes, at their height.
        each: bytes more for each example more; NaN where it was not measured.
        batch: examples.
        largest: the batch that would fill the device, about; NaN where it is not known.
        table: a row a batch size.
    """

    bytes: int
    each: float
    batch: int
    largest: float
    table: pd.DataFrame


def room(training: Training, batch: Any, device: Device) -> Room:
    """Measure a step's peak of tensors with all examples and with half, and go on along the line through both."""
    count = nested.rows(batch)
    peaks = {count or 1: _peak(training, batch, device)}
    if count is not None and count > 1:
        with contextlib.suppress(Exception):  # it may take no other number of examples; then there is no line
            peaks[count // 2] = _peak(training, nested.first(batch, count // 2), device)
    table = pd.DataFrame({"batch": list(peaks), "peak_bytes": [float(each) for each in peaks.values()]})
    whole, each, largest = next(iter(peaks.values())), math.nan, math.nan
    if count is not None and len(peaks) > 1:
        each = (whole - peaks[count // 2]) / (count - count // 2)
        if each > 0:
            largest = count + (FILLED * room_for_tensors(device) - whole) / each
    return Room(whole, each, count or 1, largest, table)


def _peak(training: Training, batch: Any, device: Device) -> int:
    with training.untouched():
        for parameter in training.model.parameters():
            parameter.grad = None  # those of the pass are among its tensors

        def work() -> None:
            training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

        return peak_tensors(work, device)
