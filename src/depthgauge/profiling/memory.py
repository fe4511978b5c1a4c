"""Memory in use during a step, by category: a pure function of a trace's allocations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from depthgauge.profiling.work import phase_range
from depthgauge.trace import PHASE, Trace

RESIDENT = ("parameters", "optimizer state", "batch")
CATEGORIES = (*RESIDENT, "gradients", "activations", "temporary")
# What a phase leaves behind when it ends is what it was for.
_LEFT_BY = {"forward": "activations", "backward": "gradients", "optimizer": "optimizer state"}


@dataclass
class _Block:
    """Memory between its allocation and its release."""

    taken: float
    bytes: int
    freed: float = math.inf


def memory(trace: Trace, resident: Mapping[str, int], step: int, *, device: int = 0) -> pd.DataFrame:
    """Bytes held from the start of a step to its end, one row a change.

    What lay there before the step is counted from the tensors themselves. Of what is allocated in a step, the category
    follows from what outlives its phase: what the forward pass leaves behind are activations (kept for the backward
    pass; outputs and loss among them), what the backward pass leaves are gradients, what the optimizer leaves is its
    state; the rest is temporary, the gradients of activations among it. A library's own workspace that does not come
    from torch's allocator is not seen.

    Args:
        trace: recorded with `profile_memory`.
        resident: bytes of what is there before the step, by category of `RESIDENT`.
        step: which of the trace's steps.
        device: type of the device, as the trace numbers them: 0 the CPU, 1 CUDA.

    Returns:
        Columns time (seconds from the step's start), and `CATEGORIES` in bytes.
    """
    span = trace.steps[step]
    changes: list[tuple[float, str, int]] = []
    for block in _blocks(trace, device):
        category = _category(trace, block)
        if block.taken < span.end and block.freed > span.start:
            changes.append((max(block.taken, span.start), category, block.bytes))
            if block.freed <= span.end:
                changes.append((block.freed, category, -block.bytes))
    held = {category: resident.get(category, 0) for category in CATEGORIES}
    rows = [{"time": 0.0, **held}]
    for time, category, size in sorted(changes, key=lambda change: change[0]):
        held[category] += size
        rows.append({"time": time - span.start, **held})
    rows.append({"time": span.end - span.start, **held})
    return pd.DataFrame(rows)


def _blocks(trace: Trace, device: int) -> list[_Block]:
    blocks: list[_Block] = []
    alive: dict[int, _Block] = {}
    for event in trace.memory:
        if event.device != device:
            continue
        if event.bytes > 0:
            alive[event.address] = _Block(event.time, event.bytes)
            blocks.append(alive[event.address])
        elif event.address in alive:  # otherwise it was there before the trace
            alive.pop(event.address).freed = event.time
    return blocks


def _category(trace: Trace, block: _Block) -> str:
    phase = phase_range(trace, block.taken)
    if phase is None or block.freed <= phase.end:
        return "temporary"
    return _LEFT_BY.get(phase.name.removeprefix(PHASE), "temporary")
