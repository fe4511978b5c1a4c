"""A trace as pieces of work: operator, phase, step, duration, operations and bytes of each.

A piece is one call of an operator as autograd hands it to the device, with everything that it calls: a convolution with
the library's kernel inside it. Pieces do not overlap on a thread, so their times add up; what lies between them is the
host's own: Python, dispatch, autograd's bookkeeping, views. On an accelerator a piece is a kernel or a copy.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from depthgauge.operations import Operation
from depthgauge.profiling.kinds import computes, kernel_kind, operator_kind
from depthgauge.trace import PHASE, DeviceWork, Id, Operator, Range, Trace

PHASES = ("forward", "backward", "optimizer")
OUTSIDE = "other"  # the phase of what lies in none
_UNKNOWN = float("nan")


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Attributes:
        name: the operator's, or the kernel's.
        operator: the operator that it belongs to; empty where none is known.
        kind: one of `kinds.KINDS`.
        phase: one of `PHASES`, or `OUTSIDE`.
        step: which of the trace's steps.
        start: seconds since the trace's first event.
        end: seconds since the same event.
        shapes: shapes of the operator's tensors.
        dtype: of the operator, `float32`; empty where it is not known.
        flops: NaN where they were not counted.
        bytes: NaN where they were not counted.
        launched: when the host had launched it; None on the host itself.
    """

    name: str
    operator: str
    kind: str
    phase: str
    step: int
    start: float
    end: float
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    flops: float
    bytes: float
    launched: float | None = None

    @property
    def seconds(self) -> float:
        """The duration in seconds."""
        return self.end - self.start


def pieces(trace: Trace, operations: Sequence[Operation]) -> tuple[Work, ...]:
    """The work in a trace's steps: on the device where there is any, else on the host; in the order of time.

    Args:
        trace: with the profiler's steps, and ranges named `PHASE` and a phase within them.
        operations: what each operator of one step costs, in the order of calls (see `counting`).
    """
    calls = _calls(trace.operators, frozenset(operation.name for operation in operations))
    work = _costed([_work(trace, span, call[0]) for span, call in _within(trace.steps, calls)], operations)
    if not trace.device:
        return tuple(work)
    owners = {link: place for place, (_, (_, links)) in enumerate(_within(trace.steps, calls)) for link in links}
    return tuple(_on_device(trace, work, owners))


_Call = tuple[Operator, list[Id]]  # the outermost operator that does the work, and the links of all inside it


def _calls(operators: Sequence[Operator], counted: frozenset[str]) -> list[_Call]:
    """The outermost operators that were counted, or that do uncounted work of their own."""
    calls: list[_Call] = []
    current: dict[object, _Call] = {}
    for operator in operators:
        outer = current.get(operator.thread)
        if outer is None or operator.start >= outer[0].end:
            if operator.name not in counted and not computes(operator.name):
                continue
            outer = current[operator.thread] = (operator, [])
            calls.append(outer)
        if operator.link is not None:
            outer[1].append(operator.link)
    return calls


def _within(steps: Sequence[Range], calls: Sequence[_Call]) -> list[tuple[int, _Call]]:
    starts = [step.start for step in steps]
    placed = ((bisect_right(starts, call[0].start) - 1, call) for call in calls)
    return [(place, call) for place, call in placed if place >= 0 and call[0].start < steps[place].end]


def _work(trace: Trace, step: int, operator: Operator) -> Work:
    return Work(
        operator.name,
        operator.name,
        operator_kind(operator.name),
        phase_at(trace, operator.start),
        step,
        operator.start,
        operator.end,
        operator.shapes,
        "",
        _UNKNOWN,
        _UNKNOWN,
    )


def phase_range(trace: Trace, time: float) -> Range | None:
    """The phase that a moment lies in, as the range that marks it."""
    begun = bisect_right(trace.phases, time, key=lambda span: span.start)
    return trace.phases[begun - 1] if begun and time < trace.phases[begun - 1].end else None


def phase_at(trace: Trace, time: float) -> str:
    """The name of the phase that a moment lies in."""
    span = phase_range(trace, time)
    return OUTSIDE if span is None else span.name.removeprefix(PHASE)


def _costed(pieces: list[Work], operations: Sequence[Operation]) -> list[Work]:
    """Each piece with the cost of its call: the k-th of its name and shapes in the step, as they were counted."""
    counted: Mapping[tuple[str, object], list[Operation]] = defaultdict(list)
    for operation in operations:
        counted[operation.name, operation.shapes].append(operation)
    seen: dict[tuple[int, str, object], int] = defaultdict(int)
    costed = []
    for work in pieces:
        # Compiled code gives the tensor that takes the result besides.
        known = counted.get((work.name, work.shapes)) or counted.get((work.name, work.shapes[:-1])) or []
        place = seen[work.step, work.name, work.shapes]
        seen[work.step, work.name, work.shapes] += 1
        cost = known[min(place, len(known) - 1)] if known else None
        costed.append(replace(work, flops=cost.flops, bytes=cost.bytes, dtype=cost.dtype) if cost else work)
    return costed


def _on_device(trace: Trace, pieces: Sequence[Work], owners: Mapping[Id, int]) -> list[Work]:
    """Kernels, each with its share of its operator's cost: in proportion to time where an operator has several."""
    total: dict[int, float] = defaultdict(float)
    for piece in trace.device:
        if piece.link is not None and piece.link in owners and piece.kind == "kernel":
            total[owners[piece.link]] += piece.end - piece.start
    starts = [step.start for step in trace.steps]
    placed = []
    for piece in trace.device:
        owner = owners.get(piece.link) if piece.link is not None else None
        began = piece.launched if piece.launched is not None else piece.start
        step = pieces[owner].step if owner is not None else bisect_right(starts, began) - 1
        if step >= 0 and piece.start < trace.steps[step].end:
            work = None if owner is None else pieces[owner]
            placed.append(_kernel(trace, piece, step, work, total[owner] if owner is not None else 0.0))
    return placed


def _kernel(trace: Trace, piece: DeviceWork, step: int, owner: Work | None, total: float) -> Work:
    seconds = piece.end - piece.start
    share = seconds / total if total and piece.kind == "kernel" else _UNKNOWN
    of_name = kernel_kind(piece.name)
    if piece.kind == "copy":
        kind = "copy"
    elif owner is None or of_name == "communication" or owner.kind == "other":
        kind = of_name
    else:
        kind = owner.kind
    return Work(
        name=piece.name,
        operator=owner.operator if owner else "",
        kind=kind,
        phase=owner.phase if owner else phase_at(trace, piece.launched or piece.start),
        step=step,
        start=piece.start,
        end=piece.end,
        shapes=owner.shapes if owner else (),
        dtype=owner.dtype if owner else "",
        flops=owner.flops * share if owner else _UNKNOWN,
        bytes=owner.bytes * share if owner else _UNKNOWN,
        launched=piece.launched,
    )
