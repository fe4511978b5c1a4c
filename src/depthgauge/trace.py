"""A trace of torch.profiler, read from its file: a pure function of the recorded events.

The file is Chrome's trace format as Kineto writes it: complete events (`ph` X) of operators (`cpu_op`), ranges
(`user_annotation`), device work (`kernel`, `gpu_memcpy`, `gpu_memset`) and the calls that launch it
(`cuda_runtime`, `cuda_driver`), and instants named `[memory]`. Any trace will do, not only depthgauge's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from depthgauge import jsonfile
from depthgauge.jsonfile import MEBIBYTE, JsonError, NoFileError, conform

Id = str | int | None

STEP = "ProfilerStep#"
PHASE = "depthgauge: "  # before the name of a range that is a phase of the step
_DEVICE = {"kernel": "kernel", "gpu_memcpy": "copy", "gpu_memset": "copy"}
_LAUNCHES = {"cuda_runtime", "cuda_driver"}
_MICRO = 1e-6
_LATEST = 1e19  # microseconds: what is beyond has no time's resolution
_AT_MOST = 256 * MEBIBYTE
_IDS = (str, int, type(None))
_NO_TENSOR = {"", "Scalar", "ScalarList", "GenericList"}


class TraceError(ValueError):
    """A file that is not a trace; the message is one sentence for the user."""


@dataclass(frozen=True)
class Operator:
    """An operator on the host.

    Attributes:
        name: `aten::addmm`.
        start: seconds since the trace's first event.
        end: seconds since the same event.
        thread: process and thread.
        link: what device work that it launched refers to.
        shapes: of its tensors, those without dimensions left out.
        dtype: of the first of them: `float`, `c10::Half`, ...
    """

    name: str
    start: float
    end: float
    thread: tuple[Id, Id]
    link: Id
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
    stream: Id
    launched: float | None
    link: Id


@dataclass(frozen=True)
class Allocation:
    """Memory taken (positive bytes) or given back (negative) at an address; device 0 is the CPU, as torch counts."""

    time: float
    address: int
    bytes: int
    device: int


@dataclass(frozen=True)
class Trace:
    """The recorded events, each kind in the order of time."""

    operators: tuple[Operator, ...]
    ranges: tuple[Range, ...]
    device: tuple[DeviceWork, ...]
    memory: tuple[Allocation, ...]

    @property
    def steps(self) -> tuple[Range, ...]:
        """The profiler's steps."""
        return tuple(span for span in self.ranges if span.name.startswith(STEP))

    @cached_property
    def phases(self) -> tuple[Range, ...]:
        """The ranges that mark a phase of a step, in the order of time."""
        return tuple(span for span in self.ranges if span.name.startswith(PHASE))


def read(path: Path) -> Trace:
    """The trace in a file, compressed or not.

    Raises:
        TraceError: it cannot be read as one.
    """
    try:
        content = conform(jsonfile.read(path, at_most=_AT_MOST, utf8=True), dict[str, Any], "the whole")
        return parse(conform(content.get("traceEvents"), list[dict[str, Any]], "traceEvents"))
    except NoFileError as error:
        raise TraceError(f"{error}, which a profile names; profile that model again") from error
    except JsonError as error:
        what = str(error).removeprefix(f"{path} ")
        raise TraceError(f"{path} is not a trace of torch.profiler: it {what}") from error


def parse(events: Iterable[Mapping[str, Any]]) -> Trace:
    """Parse the trace of these events, without events of unknown kinds.

    Raises:
        JsonError: an event holds something else than it should.
    """
    known = [
        _Event(event, place) for place, event in enumerate(events) if event.get("ph") in ("X", "i") and "cat" in event
    ]
    origin = min((event.number("ts") for event in known), default=0.0)
    launched = {event.id("correlation"): event.seconds(origin)[1] for event in known if event.kind in _LAUNCHES}
    operators: list[Operator] = []
    ranges: list[Range] = []
    device: list[DeviceWork] = []
    memory: list[Allocation] = []
    for event in known:
        start, end = event.seconds(origin)
        if event.kind == "cpu_op":
            shapes, dtype = event.tensors()
            operators.append(Operator(event.name, start, end, event.thread, event.id("External id"), shapes, dtype))
        elif event.kind == "user_annotation":
            ranges.append(Range(event.name, start, end))
        elif event.kind in _DEVICE:
            correlation, stream = event.id("correlation"), event.id("stream")
            call = None if correlation is None else launched.get(correlation)
            stream = event.thread[1] if stream is None else stream
            kind = _DEVICE[event.kind]
            device.append(DeviceWork(event.name, kind, start, end, stream, call, event.id("External id")))
        elif event.name == "[memory]":
            memory.append(Allocation(start, *(event.integer(key) for key in ("Addr", "Bytes", "Device Type"))))
    return Trace(
        tuple(sorted(operators, key=lambda event: (event.start, -event.end))),
        tuple(sorted(ranges, key=lambda event: (event.start, -event.end))),
        tuple(sorted(device, key=lambda event: (event.start, event.end))),
        tuple(sorted(memory, key=lambda event: event.time)),
    )


class _Event:
    """An event of a file, each entry with the type that it should have."""

    def __init__(self, fields: Mapping[str, Any], place: int) -> None:
        self.fields, self.where = fields, f"traceEvents[{place}]"
        self.kind, self.name = str(fields["cat"]), str(fields.get("name", ""))
        given = fields.get("args", {})
        self.given: Mapping[str, Any] = given if isinstance(given, dict) else conform(given, dict[str, Any], self.where)

    def number(self, key: str) -> float:
        value = self.fields.get(key, 0.0 if key == "dur" else None)
        if type(value) not in (int, float) or not -_LATEST <= value <= _LATEST or (key == "dur" and value < 0):
            raise JsonError(f"has {value!r:.40} as {self.where}.{key}, where a time in microseconds belongs")
        return float(value)

    def seconds(self, origin: float) -> tuple[float, float]:
        start = (self.number("ts") - origin) * _MICRO
        return start, start + self.number("dur") * _MICRO

    @property
    def thread(self) -> tuple[Id, Id]:
        return self._id(self.fields, "pid"), self._id(self.fields, "tid")

    def id(self, key: str) -> Id:
        return self._id(self.given, key)

    def _id(self, fields: Mapping[str, Any], key: str) -> Id:
        value: Id = fields.get(key)
        return value if type(value) in _IDS else conform(value, str | int | None, f"{self.where}.{key}")  # type: ignore[arg-type] # a union is a type

    def integer(self, key: str) -> int:
        return conform(self.given.get(key), int, f"{self.where}.args.{key}")

    def tensors(self) -> tuple[tuple[tuple[int, ...], ...], str]:
        dims, types = self.given.get("Input Dims", []), self.given.get("Input type", [])
        try:
            return _tensors(dims, types)
        except (LookupError, TypeError, ValueError) as error:
            raise JsonError(f"has no shapes of tensors in {self.where}.args") from error


def _tensors(dims: Iterable[Any], types: Iterable[str]) -> tuple[tuple[tuple[int, ...], ...], str]:
    shapes: list[tuple[int, ...]] = []
    first = ""
    for dim, kind in zip(dims, types, strict=False):
        if not isinstance(kind, str):
            raise TypeError("no name of a type")
        if kind in _NO_TENSOR:
            continue
        if dim and isinstance(dim[0], list):  # a list of tensors
            shapes += [_shape(dimensions) for dimensions in dim if dimensions]
        elif dim:
            shapes.append(_shape(dim))
        first = first or (kind if kind != "TensorList" else "")
    return tuple(shapes), first


def _shape(dim: Iterable[Any]) -> tuple[int, ...]:
    shape = tuple(dim)
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError("no shape")
    return shape
