"""Time of the phases of a training's steps, and the work that its steps are made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd
import torch

from depthgauge import nested, stats
from depthgauge.operations import counting
from depthgauge.stats import Estimate
from depthgauge.timing import Device
from depthgauge.updating import clear
from depthgauge.workload import Training

PHASES = ("loader", "forward", "backward", "optimizer")
WARM = 2  # first steps that do not count: memory is taken, an optimizer makes its state, a loader starts
SMALL, LARGE = 512, 4096  # sides of the matrices whose product sets a CPU's and an accelerator's peak
PRODUCTS = 8  # of which the quickest counts: a peak is what a device does undisturbed


@dataclass(frozen=True, eq=False)
class Phases:
    """Times of a training's steps.

    Attributes:
        seconds: a row a step, a column a phase.
        device: of the model.
        loads: whether batches came from the user's iterable, and not from those that were kept of an iterator.
    """

    seconds: pd.DataFrame
    device: Device
    loads: bool

    @property
    def step(self) -> Estimate:
        """Seconds of a whole step: the median, with its interval."""
        return stats.median(self.seconds.sum(axis=1).to_numpy())

    def phase(self, name: str) -> Estimate:
        """Seconds of a phase, likewise."""
        return stats.median(self.seconds[name].to_numpy())

    @property
    def shares(self) -> dict[str, float]:
        """Each phase's share of all medians together."""
        medians = {name: self.phase(name).value for name in map(str, self.seconds)}
        return {name: value / sum(medians.values()) for name, value in medians.items()}

    def table(self) -> pd.DataFrame:
        """A row a phase and one for the step."""
        found = {**{name: self.phase(name) for name in map(str, self.seconds)}, "step": self.step}
        shares = {**self.shares, "step": 1.0}
        return pd.DataFrame([
            {"phase": name, "ms": 1e3 * each.value, "low_95": _finite(1e3 * each.low),
             "high_95": _finite(1e3 * each.high), "share": shares[name], "n": len(self.seconds)}
            for name, each in found.items()
        ])  # fmt: skip


def _finite(value: float) -> float:
    """NaN in place of an infinite end: of too few steps there is no interval."""
    return value if math.isfinite(value) else math.nan


def device_of(training: Training) -> Device:
    """The device of the model's parameters, the first one's where they lie on several."""
    first = next(iter(training.model.parameters()), None)
    where = "cpu" if first is None else str(first.device)
    return Device.named(where) if where.startswith(("cpu", "cuda")) else Device(where)


def phases(training: Training, most: int, going: Callable[[], bool]) -> Phases:
    """Make up to `most` steps while `going()` and put everything back; at least one that counts.

    Raises:
        Exception: what a step raises.
    """
    device = device_of(training)
    rows: list[list[float]] = []
    with training.untouched():
        stream = training.stream()
        try:
            while len(rows) < WARM + 1 or (len(rows) < WARM + most and going()):
                rows.append(_step(training, stream, device))
        finally:
            stream.close()  # type: ignore[attr-defined]  # it is a generator
    frame = pd.DataFrame(rows[WARM:], columns=list(PHASES))
    kept = [name for name in PHASES if name != "optimizer" or training.optimizer is not None]
    return Phases(frame[kept], device, not hasattr(training.batches, "__next__"))


def _step(training: Training, stream: Any, device: Device) -> list[float]:
    times = [_now(device)]

    def passed() -> None:
        times.append(_now(device))

    batch = next(stream)
    passed()
    loss = training.value(batch)
    passed()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    passed()
    optimizer: Any = training.optimizer if training.optimizer is not None else training.model
    if training.optimizer is not None:
        training.update(batch)
    clear(optimizer)
    passed()
    return [after - before for before, after in pairwise(times)]


def _now(device: Device) -> float:
    device.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic of one pass.

    Attributes:
        flops: of matrix products, convolutions and attention.
        dtype: in which most of them are.
    """

    flops: int
    dtype: str


def arithmetic(training: Training, batch: Any) -> Arithmetic:
    """Count the operations of one pass, forward and backward."""
    with training.untouched(), counting() as operations:
        training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    by_dtype: dict[str, int] = {}
    for each in operations:
        by_dtype[each.dtype] = by_dtype.get(each.dtype, 0) + each.flops
    dtype = max(by_dtype, key=lambda name: by_dtype[name], default="float32")
    return Arithmetic(sum(by_dtype.values()), dtype)


def peak(device: Device, dtype: str) -> float:
    """Operations a second of the quickest of a few products of square matrices of that format."""
    side = LARGE if device.launches else SMALL
    a = torch.ones(side, side, dtype=getattr(torch, dtype), device=device.name)
    best = float("inf")
    for turn in range(PRODUCTS):
        other = a if turn % 2 else a.t()
        start = _now(device)
        torch.mm(a, other)
        best = min(best, _now(device) - start)
    return 2 * side**3 / best


def doubled(batch: Any) -> Any:
    """The batch and itself again."""
    return nested.mapped(batch, lambda tensor: torch.cat([tensor, tensor]))
