"""A trace of torch.profiler, read from its file: a pure function of the recorded events.

The file is Chrome's trace format as Kineto writes it: complete events (`ph` X) of operators (`cpu_op`), ranges
(`user_annotation`), device work (`kernel`, `gpu_memcpy`, `gpu_memset`) and the calls that launch it
(`cuda_runtime`, `cuda_driver`), and instants named `[memory]`. Any trace will do, not only depthgauge's own.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP = "ProfilerStep#"
_DEVICE = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_MICRO = 1e-6
_NO_TENSOR = {"", "Scalar", "ScalarList", "GenericList"}


class TraceError(ValueError):
    """A file is no trace; the message is one sentence for the user."""


@dataclass(frozen=True)
class Operator:
    """An operator on the host.

    Attributes:
        name: `aten::addmm`.
        start: seconds since the trace's first event.
        end: likewise.
        thread: process and thread.
        link: what device work that it launched refers to.
        shapes: of its tensors, those without dimensions left out.
        dtype: of the first of them: `float`, `c10::Half`, ...
    """

    name: str
    start: float
    end: float
    thread: tuple[Any, Any]
    link: int | None
    shapes: tuple[tuple[int, ...], ...]
    dtype: str


@dataclass(frozen=True)
class Range:
    """A range that a program marked by `record_function`, or a step of the profiler."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class DeviceWork:
    """A kernel, or a copy or fill of memory, on the device.

    Attributes:
        launched: when the host's call that launched it had returned; None where the trace does not say.
        link: the operator that launched it.
    """

    name: str
    kind: str
    start: float
    end: float
    stream: Any
    launched: float | None
    link: int | None


@dataclass(frozen=True)
class Allocation:
    """Memory taken (positive bytes) or given back (negative) at an address; device 0 is the CPU, as torch counts."""

    time: float
    address: int
    bytes: int
    device: int


@dataclass(frozen=True)
class Trace:
    """What was recorded, each in the order of time."""

    operators: tuple[Operator, ...]
    ranges: tuple[Range, ...]
    device: tuple[DeviceWork, ...]
    memory: tuple[Allocation, ...]

    @property
    def steps(self) -> tuple[Range, ...]:
        """The profiler's steps."""
        return tuple(span for span in self.ranges if span.name.startswith(STEP))


def read(path: Path) -> Trace:
    """The trace in a file, compressed or not.

    Raises:
        TraceError: it cannot be read as one.
    """
    try:
        content = path.read_bytes()
        told = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
        return parse(told["traceEvents"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path} is no trace of torch.profiler: {type(error).__name__}: {error}") from error


def parse(events: Iterable[Mapping[str, Any]]) -> Trace:
    """The trace of these events; of kinds that are not known, nothing is taken."""
    events = [event for event in events if event.get("ph") in {"X", "i"} and "cat" in event]
    origin = min((float(event["ts"]) for event in events), default=0.0)

    def seconds(event: Mapping[str, Any]) -> tuple[float, float]:
        start = (float(event["ts"]) - origin) * _MICRO
        return start, start + float(event.get("dur", 0.0)) * _MICRO

    launched = {
        event["args"]["correlation"]: seconds(event)[1]
        for event in events
        if event["cat"] in _LAUNCHES and "correlation" in event.get("args", {})
    }
    operators: list[Operator] = []
    ranges: list[Range] = []
    device: list[DeviceWork] = []
    memory: list[Allocation] = []
    for event in events:
        kind, name, given = event["cat"], str(event["name"]), event.get("args", {})
        start, end = seconds(event)
        if kind == "cpu_op":
            shapes, dtype = _tensors(given.get("Input Dims", ()), given.get("Input type", ()))
            thread = (event.get("pid"), event.get("tid"))
            operators.append(Operator(name, start, end, thread, given.get("External id"), shapes, dtype))
        elif kind == "user_annotation":
            ranges.append(Range(name, start, end))
        elif kind in _DEVICE:
            call = launched.get(given.get("correlation"))
            stream = given.get("stream", event.get("tid"))
            device.append(DeviceWork(name, _DEVICE[kind], start, end, stream, call, given.get("External id")))
        elif name == "[memory]":
            memory.append(Allocation(start, given["Addr"], given["Bytes"], given["Device Type"]))
    return Trace(
        tuple(sorted(operators, key=lambda one: (one.start, -one.end))),
        tuple(sorted(ranges, key=lambda one: (one.start, -one.end))),
        tuple(sorted(device, key=lambda one: (one.start, one.end))),
        tuple(sorted(memory, key=lambda one: one.time)),
    )


def _tensors(dims: Iterable[Any], types: Iterable[str]) -> tuple[tuple[tuple[int, ...], ...], str]:
    shapes: list[tuple[int, ...]] = []
    first = ""
    for dim, kind in zip(dims, types, strict=False):
        if kind in _NO_TENSOR:
            continue
        if dim and isinstance(dim[0], list):  # a list of tensors
            shapes += [tuple(one) for one in dim if one]
        elif dim:
            shapes.append(tuple(dim))
        first = first or (kind if kind != "TensorList" else "")
    return tuple(shapes), first
