"""Cost of a piece of work against its batch size: seconds, examples a second, memory, and the largest batch that fits.

def step(batch):                                     # a batch size in, a piece of work out
    x, y = images[:batch], labels[:batch]
    return lambda: update(model, x, y)

batch_curve(step, (1, 8, 64, 512))                   # batch, seconds, low, high, examples_per_second, peak_bytes, ...
largest_batch(step, most=1 << 20, device="cuda")     # found without ending the process
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import stats
from depthgauge.foreign import describe_error, out_of_memory
from depthgauge.formats.arguments import kind, real, whole
from depthgauge.timing.clocks import Clock, Device, Work, clock
from depthgauge.timing.memory import peak_tensors

# ruff: noqa: PLC0415 - a CPU is timed without torch

Step = Callable[[int], Work]
"""From a number of examples to the work on as many: what it builds is not timed."""

STRETCH, STRETCHES = 5e-4, 5
"""Seconds that a timed stretch lasts at least, and how many of them make a round of a short work."""


def batch_curve(
    step: Step, batches: Iterable[int], device: str | Device = "cpu", *, rounds: int = 12, confidence: float = 0.95
) -> pd.DataFrame:
    """Seconds and memory of a step at each batch size, timed in turns, so that a drift of the machine meets all alike.

    A batch that does not fit into memory costs itself and all larger ones, and `why` says so; everything else that the
    step raises passes.

    Args:
        step: from a batch size to a training step, a forward pass, ... A step that ends with `zero_grad()` has its
            gradients in `peak_bytes` on every device; one that begins with it has them on a CPU alone.
        batches: numbers of examples.
        device: the work's device.
        rounds: durations of each; an interval of a median takes 6 at 95 %, 8 at 99 %.
        confidence: of the intervals.

    Returns:
        One row a batch, ascending. Columns batch, n (rounds), seconds (the median round), low, high (its interval),
        examples_per_second, peak_bytes (of the tensors that a step makes, `peak_tensors`), why (empty where it was
        measured).

    Raises:
        DeviceError: there is no such device.
        ValueError: a batch below 1.
    """
    device = _device(device)
    if not hasattr(batches, "__iter__"):
        raise TypeError(f"batches are whole numbers, such as (1, 8, 64), not {kind(batches)}")
    sizes = sorted({whole("a batch", batch) for batch in batches})
    rounds = whole("rounds", rounds)
    stats.location.check_confidence(confidence)
    works, peaks, why = _prepared(step, sizes, device)
    seconds = rounds_in_turns(clock(device), list(works.values()), rounds)
    timed = dict(zip(works, seconds.T, strict=True))
    return pd.DataFrame([
        _row(size, timed.get(size, np.empty(0)), peaks.get(size), why if size not in timed else "", confidence)
        for size in sizes
    ])  # fmt: skip


def _device(device: object) -> Device:
    """A device by its name, torch's own object, or as it is."""
    return device if isinstance(device, Device) else Device.named(str(device))


def _prepared(step: Step, sizes: list[int], device: Device) -> tuple[dict[int, Work], dict[int, int], str]:
    """Works that have run twice, and the bytes of their tensors; and why the first that did not fit did not."""
    works: dict[int, Work] = {}
    peaks: dict[int, int] = {}
    why = ""
    for size in sizes:
        try:
            work = step(size)
            work()  # what is made once: momentum, workspaces
            peaks[size] = peak_tensors(work, device)
            works[size] = work
        except Exception as error:
            if not out_of_memory(error):
                raise
            why = f"a batch of {size} does not fit into memory: {describe_error(error)}"
            break
    if why:
        _free(device)  # after the error, whose traceback held the step's tensors
    return works, peaks, why


def rounds_in_turns(clock: Clock, works: list[Work], rounds: int) -> NDArray[np.float64]:
    """Seconds of one call, (rounds, works): all of them up in one round and down in the next.

    Of a short work each is the median of several stretches: a neighbour that takes the core for a moment spoils one.
    """
    plans = [_plan(min(clock.time(work) for _ in range(3))) for work in works]
    seconds = np.empty((rounds, len(works)))
    for place in range(rounds):
        for index in range(len(works))[:: -1 if place % 2 else 1]:
            calls, stretches = plans[index]
            seconds[place, index] = np.median([clock.time(works[index], calls) / calls for _ in range(stretches)])
    return seconds


def _plan(seconds: float) -> tuple[int, int]:
    """Calls of a stretch, and stretches of a round."""
    calls = max(1, math.ceil(STRETCH / max(seconds, 1e-9)))
    return calls, 1 if calls == 1 and seconds > STRETCHES * STRETCH else STRETCHES


def _row(size: int, seconds: NDArray[np.float64], peak: int | None, why: str, confidence: float) -> dict[str, object]:
    middle = stats.median(seconds, confidence=confidence)
    return {
        "batch": size, "n": len(seconds), "seconds": middle.value, "low": middle.low, "high": middle.high,
        "examples_per_second": size / middle.value, "peak_bytes": math.nan if peak is None else float(peak), "why": why,
    }  # fmt: skip


# -- the largest batch that fits ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LargestBatch:
    """The largest batch that fits into a device's memory.

    Attributes:
        batch: examples; None where it was not looked for.
        above: the smallest batch that was found not to fit; None where all up to the most asked for do.
        why: one sentence: what ended the search, or why there was none.
    """

    batch: int | None
    above: int | None
    why: str


def largest_batch(
    step: Step, most: int, device: str | Device = "cpu", *, memory: float = 1.0, ratio: float = 1.0
) -> LargestBatch:
    """Find the largest batch whose step fits into the memory of a CUDA device, by doubling and then bisection.

    A step that does not fit raises torch's out-of-memory error, which is caught; the memory is handed back before the
    next try, so that the process lives on. On a CPU there is no such error: a system that runs out of memory ends the
    process, or swaps, so that nothing is tried there.

    Args:
        step: as in `batch_curve`.
        most: largest batch to try.
        device: the work's device.
        memory: share of the device's memory that this process may use meanwhile; no more than it might before.
        ratio: the search ends where the batch that does not fit is at most this times the one that does; 1: to the
            example.

    Raises:
        DeviceError: there is no such device.
        ValueError: a number is out of its range.
    """
    device, most = _device(device), whole("most", most)
    for name, value, bounds, fine in (
        ("memory", memory, "above 0 and at most 1", 0 < real(memory) <= 1),
        ("ratio", ratio, "of at least 1", 1 <= real(ratio) < math.inf),
    ):
        if not fine:
            raise ValueError(f"{name} is {value!r}, where a number {bounds} was expected")
    if not device.launches:
        return LargestBatch(
            None, None, "a CPU does not refuse memory by an error: a process that takes too much is ended by the system"
        )
    with _limited(device, memory):
        return _searched(lambda batch: _fits(step, batch, device), most, ratio)


def _searched(fits: Callable[[int], str], most: int, ratio: float) -> LargestBatch:
    """The largest batch for which `fits` gives no reason against."""
    good, bad, why = 0, None, ""
    while bad is None and good < most:
        size = min(most, max(1, 2 * good))
        reason = fits(size)
        if reason:
            bad, why = size, reason
        else:
            good = size
    while bad is not None and good and bad - good > 1 and bad > ratio * good:
        middle = (good + bad) // 2
        reason = fits(middle)
        if reason:
            bad, why = middle, reason
        else:
            good = middle
    if not good:
        return LargestBatch(0, bad, f"not even one example fits: {why}")
    return LargestBatch(good, bad, f"a batch of {bad} does not fit: {why}" if bad else "every batch up to it fits")


def _fits(step: Step, batch: int, device: Device) -> str:
    """Why a step does not fit; empty where it does. It runs twice: optimizers take memory after the first."""
    reason = ""
    try:
        work = step(batch)
        for _ in range(2):
            work()
        device.synchronize()
        del work
    except Exception as error:
        if not out_of_memory(error):
            raise
        reason = describe_error(error)
    if reason:
        _free(device)  # after the error, whose traceback held the step's tensors
    return reason


def _free(device: Device) -> None:
    """Hand memory back that nothing holds."""
    gc.collect()
    if device.name.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


@contextmanager
def _limited(device: Device, share: float) -> Iterator[None]:
    """Let this process use a share of the device's memory within the block, and what it might before afterwards."""
    if share >= 1 or not device.name.startswith("cuda"):
        yield
        return
    import torch

    index: int | None = torch.device(device.name).index
    index = torch.cuda.current_device() if index is None else index  # a share wants one
    told: Any = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)  # not every torch tells it
    before = float(told(index))
    torch.cuda.set_per_process_memory_fraction(min(share, before), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, index)
