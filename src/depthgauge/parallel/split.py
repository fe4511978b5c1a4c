"""A step's seconds on a rank, divided by a trace of torch.profiler into computing, communicating and the rest.

    steps = split(trace.read(Path("rank0.pt.trace.json.gz")))      # any trace with the profiler's steps
    steps[0].exposed                                               # seconds in which it only communicates
    steps[0].hidden_share                                          # share of communication that computing hides

    split(record(step, group))                                     # of a step of one's own; every rank calls it

Hidden is not free: on a CPU a collective computes and copies on the cores that operators run on, and slows them down.
"""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from depthgauge import trace
from depthgauge.parallel.group import Group
from depthgauge.timing import Device
from depthgauge.trace import Trace

Spans = list[tuple[float, float]]

# Ranges that frame operators, and the calls that only hand a collective on.
_FRAMES = re.compile(r"^(autograd::|torch::autograd::|c10d::|gloo:|nccl:|record_param_comms)")
_OWN = re.compile(r"^torch(::distributed::|\.distributed\.)")  # DDP's copies into its buckets and out of them
_COMPILED = re.compile(r"cpp_fused|triton_")
_GLOO = "gloo:"  # a collective on the host, from when its thread begins it to when it is done


@dataclass(frozen=True)
class Split:
    """The seconds of one step on one rank; `computing`, `exposed` and `rest` add up to it.

    Attributes:
        computing: operators run; on CUDA kernels.
        exposed: a collective is under way and nothing computes; what it waits for other ranks counts.
        rest: neither: Python, dispatch, autograd; on a CPU DDP's copies into its buckets and out of them, which on CUDA
            are kernels as others are, and computing.
        hidden: a collective is under way while operators run; a part of `computing`.
        collectives: how many begin in the step.
    """

    computing: float
    exposed: float
    rest: float
    hidden: float
    collectives: int

    @property
    def seconds(self) -> float:
        """The step."""
        return self.computing + self.exposed + self.rest

    @property
    def communicating(self) -> float:
        """Seconds in which a collective is under way."""
        return self.hidden + self.exposed

    @property
    def hidden_share(self) -> float:
        """Share of communication during which operators run; NaN where nothing is communicated."""
        return self.hidden / self.communicating if self.communicating else math.nan


def split(recorded: Trace) -> tuple[Split, ...]:
    """Split each of a trace's steps.

    Args:
        recorded: with the profiler's steps; of one rank.

    Raises:
        TraceError: it has no steps, as the profiler had no schedule.
    """
    if not recorded.steps:
        raise trace.TraceError("the trace has no steps: give torch.profiler a schedule, and call its step()")
    messages = [(each.start, each.end) for each in recorded.ranges if each.name.startswith(_GLOO)]
    kernels = [piece for piece in recorded.device if piece.kind == "kernel"]
    messages += [(piece.start, piece.end) for piece in kernels if "nccl" in piece.name.lower()]
    work = [(piece.start, piece.end) for piece in kernels if "nccl" not in piece.name.lower()]
    computing, communicating = _union(work if kernels else _operators(recorded)), _union(messages)
    found = []
    for step in recorded.steps:
        busy, talking = (_within(spans, step.start, step.end) for spans in (computing, communicating))
        hidden = _length(_both(busy, talking))
        exposed = _length(talking) - hidden
        rest = max(0.0, step.end - step.start - _length(busy) - exposed)
        begun = sum(step.start <= start < step.end for start, _ in messages)
        found.append(Split(_length(busy), exposed, rest, hidden, begun))
    return tuple(found)


def record(step: Callable[[], object], group: Group, *, steps: int = 3, folder: Path | None = None) -> Trace:
    """Run a step under torch.profiler, once untraced and then traced; every rank that takes part calls this.

    Args:
        step: from `ddp_steps`, or any work without arguments.
        group: the ranks.
        steps: how many are traced.
        folder: gets the trace as `rank0.pt.trace.json`, which TensorBoard and Perfetto open; None: it is not kept.

    Returns:
        The trace of this rank.
    """
    from torch.profiler import ProfilerActivity, profile, schedule  # noqa: PLC0415 - takes a second, and few need it

    device = Device.named(str(group.device))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.launches else [])]
    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events", UserWarning)
        path = Path(folder or made) / f"rank{group.rank}.pt.trace.json"
        with torch.enable_grad(), profile(
            activities=activities, schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
        ) as profiler:  # fmt: skip
            for _ in range(1 + steps):
                step()
                device.synchronize()  # what a step has launched belongs to it
                profiler.step()
        return trace.read(path)


def _operators(recorded: Trace) -> Spans:
    """The outermost operators of every thread; what DDP does of its own is none."""
    spans: Spans = []
    until: dict[object, float] = {}
    for operator in recorded.operators:
        if operator.start < until.get(operator.thread, -math.inf):
            continue
        own = bool(_OWN.match(operator.name))
        computes = "::" in operator.name and not _FRAMES.match(operator.name)
        if own or computes or _COMPILED.search(operator.name):
            until[operator.thread] = operator.end
            if not own:
                spans.append((operator.start, operator.end))
    return spans


def _union(spans: Iterable[tuple[float, float]]) -> Spans:
    """The same moments as spans that do not touch, in the order of time."""
    merged: Spans = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _within(spans: Spans, low: float, high: float) -> Spans:
    return [(max(start, low), min(end, high)) for start, end in spans if end > low and start < high]


def _both(a: Spans, b: Spans) -> Spans:
    """The moments that both have; each is a union."""
    common: Spans = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            common.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return common


def _length(spans: Spans) -> float:
    return math.fsum(end - start for start, end in spans)
