"""Bytes that a training holds between two steps, and at the height of one, as torch's allocator hands them out."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from depthgauge.timing.subject import silent

STEPS = 4  # the last one is looked at; PowerSGD compresses from the third on
_LAST = "the step that is looked at"


def allocated(build: Callable[[], Callable[[], object]], device: torch.device) -> tuple[Callable[[], object], int, int]:
    """Build a training and take its first steps.

    Args:
        build: returns a step; all that it makes counts.
        device: the training's.

    Returns:
        The step, the bytes held after the last one, and the most within it. Counted are tensors and DDP's buckets, not
        the buffers of the network's libraries. Memory that another thread frees counts as held: a group whose
        collectives have threads of their own is not measured here, one that only pretends, or passes messages, is.
    """
    if device.type == "cuda":
        return _on_cuda(build, device)
    watch = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    collects = gc.isenabled()
    gc.collect()  # what others left is none of this training's
    gc.disable()  # so that all that is made stays young, and the young alone need be collected
    with silent():
        watch.start()
    try:
        step = build()
        for _ in range(STEPS - 1):
            step()
        gc.collect(1)
        with record_function(_LAST):
            step()
        gc.collect(1)
    finally:
        with silent():
            watch.stop()
        if collects:
            gc.enable()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watch.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return step, *bytes_of(events)


def bytes_of(events: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Bytes that are left at the end of a trace, and the most of them within the step that is looked at."""
    last = next(each for each in events if each.get("name") == _LAST and each.get("ph") == "X")
    changes = list(_own(each for each in events if each.get("name") == "[memory]"))
    begin, end = float(last["ts"]), float(last["ts"]) + float(last["dur"])
    now = peak = 0
    for at, change in changes:
        if begin <= at <= end:
            peak = max(peak, now, now + change)
        now += change
    return now, max(peak, now)


def _own(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, int]]:
    """When memory was handed out or given back, and the bytes; not what had been handed out before the trace began."""
    there = set()
    for each in sorted(events, key=lambda each: float(each["ts"])):
        place, change = each["args"].get("Addr"), int(each["args"]["Bytes"])
        if change > 0:
            there.add(place)
        elif place not in there:
            continue
        else:
            there.remove(place)
        yield float(each["ts"]), change


def _on_cuda(build: Callable[[], Callable[[], object]], device: torch.device) -> tuple[Callable[[], object], int, int]:
    """Return the same by the counters of torch's allocator on CUDA. Never run."""
    before = torch.cuda.memory_allocated(device)
    step = build()
    for _ in range(STEPS - 1):
        step()
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    held, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return step, held - before, peak - before
