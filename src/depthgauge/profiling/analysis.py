"""Analysis of a recorded step: a pure function of the trace, the times and the costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from depthgauge.profiling.capture import Capture
from depthgauge.profiling.kinds import MATRIX, tensor_cores
from depthgauge.profiling.memory import CATEGORIES, memory
from depthgauge.profiling.opportunities import Opportunity, opportunities
from depthgauge.profiling.steady import steady
from depthgauge.profiling.timeline import WAITING, segments, timeline
from depthgauge.profiling.work import Work, pieces
from depthgauge.stats import Comparison, Estimate, median, time_ratio
from depthgauge.trace import Trace

_STEPS = 100  # ten are recorded


@dataclass(frozen=True)
class Profile:
    """The parts of a training step's time.

    Shares are of the step as it was traced; seconds too, unless said otherwise. The profiler's own time falls on every
    call alike, so that short calls look longer than they are; `overhead` says by how much the whole does.

    Attributes:
        capture: the capture that was analysed.
        seconds: seconds of a step without the profiler: the median of the blocks.
        overhead: time under the profiler over time without it.
        operators: one row an operator of the host, or of kernels on a device: name, kind, calls, seconds, share,
            flops, bytes (all of one step), flop_rate, byte_rate (a second), floor (seconds at the roofline), of_floor.
        points: the same by name, operator, phase, shapes and dtype.
        kernels: kernels by name, with operator, calls, seconds, share, rates and tensor_cores; empty on a CPU.
        timeline: columns phase, state, seconds, share; they add up to the step (see `timeline`).
        step: that step as segments: start, end (seconds from its start), phase, state.
        pieces: the pieces of work of that step: start, end, name, kind, phase.
        memory: bytes by category in the course of that step.
        tensor_cores: by dtype, the share of matrix work's time in kernels that use tensor cores; None on a CPU.
        opportunities: possible savings of time, the largest first.
    """

    capture: Capture
    seconds: Estimate
    overhead: Comparison
    operators: pd.DataFrame
    points: pd.DataFrame
    kernels: pd.DataFrame
    timeline: pd.DataFrame
    step: pd.DataFrame
    pieces: pd.DataFrame
    memory: pd.DataFrame
    tensor_cores: pd.DataFrame | None
    opportunities: tuple[Opportunity, ...]

    @property
    def on_host(self) -> bool:
        """Tell whether the device is the host itself."""
        return self.capture.ceilings.device == "cpu"

    @property
    def waiting(self) -> float:
        """The share of the step in which the device waits for the host."""
        return float(self.timeline.loc[self.timeline["state"] == WAITING, "share"].sum())

    @property
    def flops(self) -> int:
        """Operations of a step."""
        return sum(operation.flops for operation in self.capture.operations)

    @property
    def flop_rate(self) -> float:
        """Operations a second of the step without the profiler."""
        return self.flops / self.seconds.value

    @property
    def peak(self) -> dict[str, float]:
        """Bytes by category at the moment of the step that holds most."""
        held = self.memory[list(CATEGORIES)]
        most = held.iloc[int(held.sum(axis=1).to_numpy().argmax())]
        return {name: float(most[name]) for name in CATEGORIES}

    def phase(self, name: str) -> float:
        """The share of a phase in the step."""
        return float(self.timeline.loc[self.timeline["phase"] == name, "share"].sum())


def analyse(captured: Capture, trace: Trace) -> Profile:
    """The profile of a recorded step: the traced ones in the median, or the quickest of them (see `steady`).

    Raises:
        ValueError: the trace has no step of the profiler, one that takes no time, or more than a hundred.
    """
    if not trace.steps:
        raise ValueError("the trace has no step: none of its ranges is named ProfilerStep#")
    if len(trace.steps) > _STEPS:
        raise ValueError(f"the trace has {len(trace.steps)} steps; at most {_STEPS} are read")
    if min(step.end - step.start for step in trace.steps) <= 0:
        raise ValueError("the trace has a step that takes no time")
    trace = steady(trace)
    work = pieces(trace, captured.operations)
    calls = _frame(work, captured)
    steps = len(trace.steps)
    traced = sum(step.end - step.start for step in trace.steps) / steps
    seconds = median(captured.plain, confidence=0.99)
    table = timeline(trace, work)
    last = trace.steps[-1]
    on_host = not trace.device
    mine = [piece for piece in work if piece.step == steps - 1]
    return Profile(
        capture=captured,
        seconds=seconds,
        overhead=time_ratio(captured.profiled, captured.plain),
        operators=_summed(
            calls.assign(name=calls["operator"].where(calls["operator"] != "", calls["name"])),
            ["name", "kind"],
            steps,
            traced,
        ),
        points=_summed(calls, ["name", "operator", "kind", "phase", "shapes", "dtype"], steps, traced),
        kernels=_kernels(calls, steps, traced) if not on_host else pd.DataFrame(),
        timeline=table,
        step=pd.DataFrame(
            [
                (start - last.start, end - last.start, phase, state)
                for start, end, phase, state in segments(trace, work, steps - 1)
            ],
            columns=["start", "end", "phase", "state"],
        ),
        pieces=pd.DataFrame(
            [
                (
                    work_piece.start - last.start,
                    work_piece.end - last.start,
                    work_piece.name,
                    work_piece.kind,
                    work_piece.phase,
                )
                for work_piece in mine
            ],
            columns=["start", "end", "name", "kind", "phase"],
        ),
        memory=memory(trace, captured.resident, steps - 1, device=0 if captured.ceilings.device == "cpu" else 1),
        tensor_cores=None if on_host else _tensor_cores(calls),
        opportunities=opportunities(calls, table, captured, steps=steps, scale=seconds.value / traced),
    )


def _frame(work: Sequence[Work], captured: Capture) -> pd.DataFrame:
    """One row a piece of work; `floor` is the time that its operations and bytes take at the roofline.

    `format` is that in which its numbers are multiplied: on CUDA float32 may be rounded to TF32 for it.

    Bytes are held against the bandwidth of the nearest cache that could hold what an operator touches, which is half of
    what it moves at least: a floor must not be one that work in the caches could undercut.
    """
    frame = pd.DataFrame(
        [
            (
                item.name,
                item.operator,
                item.kind,
                item.phase,
                " ".join(map(_spell, item.shapes)),
                item.dtype,
                item.seconds,
                item.flops,
                item.bytes,
            )
            for item in work
        ],
        columns=["name", "operator", "kind", "phase", "shapes", "dtype", "seconds", "flops", "bytes"],
    )
    ceilings, products = captured.ceilings, captured.precision
    wide = frame["kind"].map({"convolution": captured.convolutions or products}).fillna(products)
    format_ = frame["dtype"].where(frame["dtype"] != "float32", wide)
    peak = format_.map(dict(ceilings.flops)).astype(float)
    bandwidth = frame["bytes"].map(lambda moved: ceilings.bandwidth_within(moved / 2))
    floor = np.fmax(frame["flops"].where(frame["flops"] > 0, 0.0) / peak, frame["bytes"] / bandwidth)
    return frame.assign(format=format_, floor=floor)


def _spell(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _summed(calls: pd.DataFrame, by: list[str], steps: int, traced: float) -> pd.DataFrame:
    groups = calls.groupby(by, sort=False)
    table = groups[["seconds", "flops", "bytes", "floor"]].sum(min_count=1) / steps
    table.insert(0, "calls", groups.size() / steps)
    table.insert(2, "share", table["seconds"] / traced)
    table["flop_rate"] = table["flops"].where(table["flops"] > 0) / table["seconds"]
    table["byte_rate"] = table["bytes"] / table["seconds"]
    table["of_floor"] = table["floor"] / table["seconds"]
    return table.sort_values("seconds", ascending=False, kind="stable").reset_index()


def _kernels(calls: pd.DataFrame, steps: int, traced: float) -> pd.DataFrame:
    table = _summed(calls, ["name", "operator", "kind", "dtype"], steps, traced)
    return table.assign(tensor_cores=table["name"].map(tensor_cores))


def _tensor_cores(calls: pd.DataFrame) -> pd.DataFrame:
    matrix = calls[calls["kind"].isin(MATRIX)]
    used = matrix["seconds"].where(matrix["name"].map(tensor_cores), 0.0)
    table = pd.DataFrame({"seconds": matrix["seconds"], "on_tensor_cores": used}).groupby(matrix["dtype"]).sum()
    return table.assign(share=table["on_tensor_cores"] / table["seconds"].replace(0.0, math.nan)).reset_index()
