"""Opportunities to make a step faster, each with its upper bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pandas as pd

from depthgauge.profiling.capture import Capture
from depthgauge.profiling.kinds import MATRIX
from depthgauge.profiling.timeline import COMMUNICATING, COPYING, LAUNCHING, WAITING
from depthgauge.roofline import Ceilings

_FUSES = frozenset({"elementwise", "copy"})
_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Opportunity:
    """Something that could save time.

    Attributes:
        name: in a word or two.
        sentence: the observation, the remedy, and the origin of the bound.
        seconds: the most seconds that it could save of a step without the profiler.
        share: the same as a share of the step.
        exclusive: whether its time is counted in no other; those of exclusive ones add up to the step at most.
    """

    name: str
    sentence: str
    seconds: float
    share: float
    exclusive: bool = True


def opportunities(
    calls: pd.DataFrame, timeline: pd.DataFrame, captured: Capture, *, steps: int, scale: float
) -> tuple[Opportunity, ...]:
    """All that apply, the largest bound first.

    Each bound is an upper one: it takes the cause away entirely and lets nothing else grow. Seconds under the profiler
    are scaled to those of the step without it, all alike.

    Args:
        calls: one row a piece of work: kind, phase, dtype, format, seconds, flops, bytes, floor.
        timeline: by phase and state.
        captured: for what was asked, the ceilings and the resident bytes.
        steps: number of steps in the trace.
        scale: seconds of a step without the profiler over those of a traced one.
    """
    seen = _Seen(calls, timeline, captured, steps)
    bounds = [*_computing(seen), *_idle(seen)]
    lower = _lower(captured.ceilings, seen.matrix, seen.training, steps)
    if lower is not None:
        bounds.append(_Bound("a narrower format", lower[1], lower[0], exclusive=False))
    every = (
        Opportunity(bound.name, bound.sentence, bound.seconds * scale, bound.seconds / seen.step, bound.exclusive)
        for bound in bounds
        if bound.seconds > 0
    )
    return tuple(sorted(every, key=lambda bound: -bound.seconds))


class _Bound(NamedTuple):
    name: str
    seconds: float  # of a traced step
    sentence: str
    exclusive: bool = True


@dataclass(frozen=True)
class _Seen:
    """The work of the traced steps, and its parts; seconds are those of one step."""

    calls: pd.DataFrame
    timeline: pd.DataFrame
    captured: Capture
    steps: int

    @cached_property
    def step(self) -> float:
        return float(self.timeline["seconds"].sum())

    @cached_property
    def training(self) -> pd.DataFrame:
        return self.calls[self.calls["phase"] != "optimizer"]

    @cached_property
    def matrix(self) -> pd.DataFrame:
        return self.training[self.training["kind"].isin(MATRIX)]

    @cached_property
    def fusible(self) -> pd.DataFrame:
        transfers = self.training["name"].str.startswith(("Memcpy", "Memset"))
        return self.training[self.training["kind"].isin(_FUSES) & ~transfers]

    @cached_property
    def others(self) -> pd.DataFrame:
        return self.training[~self.training["kind"].isin({*MATRIX, *_FUSES, "communication"})]

    def seconds(self, frame: pd.DataFrame) -> float:
        return float(frame["seconds"].sum()) / self.steps

    def above_floor(self, frame: pd.DataFrame) -> float:
        return float((frame["seconds"] - frame["floor"].fillna(0.0)).clip(lower=0.0).sum()) / self.steps


def _computing(seen: _Seen) -> Iterator[_Bound]:
    """Yield bounds for work that could be done faster."""
    step, steps, matrix, fusible, others = seen.step, seen.steps, seen.matrix, seen.fusible, seen.others
    yield _Bound(
        "faster matrix work",
        seen.above_floor(matrix),
        f"Matrix products and convolutions take {seen.seconds(matrix) / step:.0%} of the step, and run at "
        f"{_reached(matrix):.0%} of the rate measured on this device"
        f"{_loses_most(matrix, steps, step)}. Larger batches and widths (whole multiples of 8 or more), another "
        "memory format or a compiler's choice of algorithm may help. The bound is their time beyond the roofline.",
    )
    yield _Bound(
        "fuse elementwise operators",
        seen.seconds(fusible),
        f"Elementwise operators and copies outside the optimizer take {seen.seconds(fusible) / step:.0%} of the step "
        f"in {len(fusible) / steps:.0f} calls, each reading and writing memory for itself. A compiler can fuse them "
        "with the operators before or after. The bound is all of their time.",
    )
    yield _Bound(
        "faster normalization, pooling, reductions",
        seen.above_floor(others),
        f"Normalization, pooling, reductions and other memory traffic outside the optimizer take "
        f"{seen.seconds(others) / step:.0%} of the step{_loses_most(others, steps, step)}. Fused or compiled versions "
        "come nearer to the bandwidth. The bound is their time beyond reading and writing each tensor once.",
    )
    timeline = seen.timeline
    optimizer = float(timeline.loc[timeline["phase"] == "optimizer", "seconds"].sum())
    yield _Bound(
        "a fused optimizer",
        max(0.0, optimizer - _update(seen.captured)),
        f"The optimizer takes {optimizer / step:.0%} of the step, in "
        f"{(len(seen.calls) - len(seen.training)) / steps:.0f} operator calls. "
        "A fused implementation (fused=True) updates every parameter in one pass. "
        "The bound is its time beyond reading parameters, gradients and state once and writing parameters and "
        "state once.",
    )


def _idle(seen: _Seen) -> Iterator[_Bound]:
    """Yield bounds for the time that the device waits."""
    states = seen.timeline[seen.timeline["phase"] != "optimizer"].groupby("state")["seconds"].sum()
    host = seen.captured.ceilings.device == "cpu"
    between, calls = float(states[WAITING] + states[LAUNCHING]), len(seen.calls) / seen.steps
    yield _Bound(
        "fewer, larger operators" if host else "keep the device fed",
        between,
        _between(between / seen.step, calls, host=host, compiled=bool(seen.captured.setting.get("compiled"))),
    )
    yield _Bound(
        "overlap communication",
        float(states[COMMUNICATING]),
        "Communication that no computation hides. Larger buckets, or starting it earlier in the backward pass, may "
        "hide it. The bound is all of it.",
    )
    yield _Bound(
        "avoid copies between host and device",
        float(states[COPYING]),
        "Copies and fills during which the device computes nothing. Pinned memory and copies ahead of time may "
        "hide them. The bound is all of them.",
    )


def _between(share: float, calls: float, *, host: bool, compiled: bool) -> str:
    remedy = "A larger batch" if compiled else "A larger batch, torch.compile"
    if host:
        return (
            f"For {share:.0%} of the step, its optimizer phase apart, no operator computes: Python, dispatch and "
            f"autograd's bookkeeping between {calls:.0f} operator calls. {remedy} or fewer, larger layers make it "
            "less. The bound is all of that time."
        )
    return (
        f"For {share:.0%} of the step, its optimizer phase apart, the device has nothing to do: the next of "
        f"{calls:.0f} kernels is not launched yet, or is just being launched. {remedy} or CUDA graphs make it less. "
        "The bound is all of that time."
    )


def _loses_most(frame: pd.DataFrame, steps: int, step: float) -> str:
    """Name the operator and shapes that take most time beyond their floor, in a clause."""
    if frame.empty:
        return ""
    named = frame.assign(name=frame["operator"].where(frame["operator"] != "", frame["name"]))
    groups = named.groupby(["name", "phase", "shapes"])[["seconds", "floor"]].sum().reset_index()
    most = groups.iloc[int((groups["seconds"] - groups["floor"]).to_numpy().argmax())]
    seconds, floor = float(most["seconds"]), float(most["floor"])
    on = f" on {most['shapes']}" if most["shapes"] else ""
    return (
        f"; most is lost in {most['name']} of the {most['phase']} pass{on}, with {seconds / steps / step:.0%} of the "
        f"step at {floor / seconds if seconds else 1.0:.0%} of the roofline"
    )


def _reached(matrix: pd.DataFrame) -> float:
    known = matrix[matrix["floor"].notna()]
    seconds = float(known["seconds"].sum())
    return float(known["floor"].sum()) / seconds if seconds else 0.0


def _update(captured: Capture) -> float:
    """Seconds in which an optimizer reads what trains, gradients and state, and writes parameters and state."""
    state = captured.resident.get("optimizer state", 0)
    parameters = captured.resident.get("parameters", 0) if captured.trained is None else captured.trained
    return (3 * parameters + 2 * state) / captured.ceilings.fastest


def _lower(ceilings: Ceilings, matrix: pd.DataFrame, training: pd.DataFrame, steps: int) -> tuple[str, float] | None:
    """A narrower format than that of the matrix work, if this device multiplies faster in one."""
    if matrix.empty:
        return None
    wide = str(matrix.groupby("format")["seconds"].sum().idxmax())
    candidates = {name: ceilings.flops[name] for name in ("tf32", *_HALF) if name in ceilings.flops and name != wide}
    if wide in _HALF or wide not in ceilings.flops or not candidates:
        return None
    best = max(candidates, key=lambda name: candidates[name])
    gain = candidates[best] / ceilings.flops[wide]
    if gain <= 1.0:
        return None
    saved = float(matrix["seconds"].sum()) * (1 - 1 / gain)
    saved += 0.5 * float(training.loc[~training["kind"].isin(MATRIX), "seconds"].sum()) if best in _HALF else 0.0
    halved = ", and the other operators move half the bytes" if best in _HALF else ""
    sentence = (
        f"This device multiplies matrices {gain:.1f} times as fast in {best} as in {wide}{halved}. The probe's "
        "fractions tell whether the training bears it. The bound overlaps with the others."
    )
    return sentence, saved / steps
