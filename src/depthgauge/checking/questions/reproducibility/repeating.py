"""Two runs of the same steps from the same state, held against each other tensor by tensor."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.reproducibility.calls import recorded
from depthgauge.workload import Training

SAMPLE = 64  # values of a tensor that are kept to tell by how much two runs differ
STEPS = 3  # that two runs are held against each other over


@dataclass(frozen=True, eq=False)
class Print:
    """A tensor's fingerprint.

    Attributes:
        digest: a checksum of its bits.
        sample: some of its values.
        epsilon: spacing of its format at 1; 0 of whole numbers.
    """

    digest: int
    sample: Tensor
    epsilon: float


@dataclass(frozen=True)
class Mark:
    """One tensor of a run: step, phase (`input`, `forward`, `loss`, `backward`, `update`) and layer or parameter."""

    step: int
    phase: str
    name: str


Run = list[tuple[Mark, Print | None]]


@dataclass(frozen=True, eq=False)
class Repeated:
    """Comparison of two equal runs.

    Attributes:
        steps: that both made.
        tensors: that were compared.
        first: the first that differs; None where none does.
        difference: of that one, relative to its root mean square; infinite where the runs made different calls.
        rounding: below that it may be the order of a sum: half the digits of its format.
        names: parameters whose gradients differ, where the first is one.
        table: how many tensors of each step and phase were compared, and how many differ.
    """

    steps: int
    tensors: int
    first: Mark | None
    difference: float
    rounding: float
    names: tuple[str, ...]
    table: pd.DataFrame


def printed(tensor: Tensor) -> Print | None:
    """A tensor's fingerprint; None where it has no numbers in memory."""
    values = tensor.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    if values.is_meta or values.layout is not torch.strided or values.is_quantized:
        return None
    flat = values.resolve_conj().resolve_neg().contiguous().reshape(-1)
    bits = flat.view(torch.uint8).cpu().numpy().tobytes() if flat.numel() else b""
    few = nested.real(flat).reshape(-1)
    few = few[:: max(1, few.numel() // SAMPLE)][:SAMPLE].double().cpu()
    inexact = flat.is_floating_point() or flat.is_complex()
    return Print(zlib.crc32(bits), few, torch.finfo(flat.dtype).eps if inexact else 0.0)


def run(training: Training, batches: list[Any]) -> Run:
    """Make a step a batch from the state as it is, and put it back; without an optimizer gradients alone.

    Raises:
        Exception: what a step raises.
    """
    with attributes_kept(training), training.untouched():
        return [each for step, batch in enumerate(batches) for each in _step(training, step, batch)]


def _step(training: Training, step: int, batch: Any) -> Iterator[tuple[Mark, Print | None]]:
    named = list(training.model.named_parameters())
    for _, each in named:
        each.grad = None
    with recorded(training.model, printed) as events:
        loss = training.value(batch)
    for event in events:
        if event.edge == "out" or event.outermost:
            phase = "forward" if event.edge == "out" else "input"
            yield from ((Mark(step, phase, event.layer), each) for _, each in event.read)
    yield Mark(step, "loss", "loss"), printed(loss)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name, each in reversed(named):  # as a rule the order in which they are made
        if each.grad is not None:
            yield Mark(step, "backward", name), printed(each.grad)
    if training.optimizer is not None:
        training.update(batch)
        yield from ((Mark(step, "update", name), printed(each)) for name, each in named if each.grad is not None)


def epsilon_of(one: Run) -> float:
    """Spacing at 1 of the coarsest format that the model's modules return."""
    return max((each.epsilon for mark, each in one if each is not None and mark.phase == "forward"), default=0.0)


def compared(one: Run, other: Run) -> Repeated:
    """Hold two runs against each other."""
    rows = [(mark, _differs(a, b)) for (mark, a), (_, b) in zip(one, other, strict=False)]
    same_calls = [mark for mark, _ in one] == [mark for mark, _ in other]
    place = next((at for at, (_, differs) in enumerate(rows) if differs), None)
    steps = len({mark.step for mark, _ in rows})
    frame = pd.DataFrame(
        [(mark.step, mark.phase, differs) for mark, differs in rows], columns=["step", "phase", "differs"]
    )
    table = frame.groupby(["step", "phase"], sort=False)["differs"].agg(tensors="size", different="sum").reset_index()
    if place is None and same_calls:
        return Repeated(steps, len(rows), None, 0.0, 0.0, (), table)
    if place is None or one[place][0] != other[place][0]:
        apart = next((m for (m, _), (n, _) in zip(one, other, strict=False) if m != n), rows[-1][0])
        return Repeated(steps, len(rows), apart, math.inf, 0.0, (), table)
    first, (a, b) = rows[place][0], (one[place][1], other[place][1])
    names = tuple(m.name for m, differs in rows if differs and (m.step, m.phase) == (first.step, first.phase))
    assert a is not None
    assert b is not None
    return Repeated(steps, len(rows), first, _distance(a, b), math.sqrt(a.epsilon), names, table)


def _differs(a: Print | None, b: Print | None) -> bool:
    return (a is None) != (b is None) or (a is not None and b is not None and a.digest != b.digest)


def _distance(a: Print, b: Print) -> float:
    """Largest difference of the values kept, over their root mean square."""
    if a.sample.shape != b.sample.shape:
        return math.inf
    scale = a.sample.square().mean().sqrt().item() or 1.0
    found = (a.sample - b.sample).abs().max().item() if len(a.sample) else 0.0
    return math.inf if math.isnan(found) else found / scale
