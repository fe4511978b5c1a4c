"""Outputs that depend on the row of the batch in which an example stands, and not on what stands in the others.

The examples are put into another order, and outputs must follow. Where they do not, and move neither with the other
examples nor with random numbers, something counts along the batch: a code of places, a weight, or a bias a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.attributes import attributes_kept, reseed
from depthgauge.checking.questions.reproducibility import mixing
from depthgauge.checking.questions.reproducibility.calls import Event
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

PASSES = 10
_RANDOM = frozenset(
    {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "uniform"}
    | {"bernoulli", "multinomial", "exponential", "poisson", "random"}
)

KINDS = {
    "row_in_batch": Kind(
        "fault",
        "in eval mode outputs do not follow where the examples come in another order, by more than half the digits of"
        " the number format, and move neither with the other examples nor with random numbers; one example in all rows"
        " has another output in each (an ensemble's members share rows)",
    ),
}


class _Draws(TorchFunctionMode):
    """Note whether random numbers are drawn, also from a generator that a call makes and seeds itself."""

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any |= getattr(func, "__name__", "").rstrip("_") in _RANDOM
        return func(*args, **(kwargs or {}))


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where an example's output is its row's, too."""
    training, batch = subject.training, subject.seen.batch
    closed = isinstance(training.model, torch.jit.ScriptModule)
    if closed or not subject.fits(PASSES, "outputs that depend on the row") or not mixing.by_example(training, batch):
        return
    if (found := _moved(training, batch)) is not None:
        yield found


def _moved(training: Training, batch: Any) -> Finding | None:
    part = mixing.bearable(training, batch)
    count = nested.rows(part) if part is not None else None
    if count is None:
        return None
    turned = nested.mapped(part, lambda each: each.roll(1, 0))
    base, other = mixing.outputs(training, part), mixing.outputs(training, turned)
    least = max((mixing.band(each) for event in base for _, each in event.read), default=0.0)
    moved = mixing.changes(base, other, partial(_turned, count=count))
    given = mixing.changes(base, other, partial(_given, count=count), "in")
    if not moved > least or given > 0 or not _by_row_alone(training, part, base, least):
        return None
    deep = (mixing.outputs(training, each, deep=True) for each in (part, turned))
    where = next(
        (one.layer for one, two in zip(*deep, strict=False) if one.edge == "out" and _begins(one, two, count, least)),
        "model",
    )
    return Finding(
        "row_in_batch", Status.BROKEN,
        f"an example's output moves by {percent(moved)} with the row of the batch in which it stands, whatever the"
        f" other examples are; this begins in `{where}`",
        f"look at what `{where}` adds or multiplies by: its first dimension meets the batch's, where places or features"
        " were meant",
        "an example has one output, wherever it stands", tuple(dict.fromkeys((where, "model"))),
        Measure("change of the output in another row", moved, unit="of the root mean square"),
    )  # fmt: skip


def _by_row_alone(training: Training, part: Any, base: list[Event], least: float) -> bool:
    """Tell whether neither other examples, nor random numbers, nor calls before move them; each row has its own."""
    count = nested.rows(part) or 0
    with attributes_kept(training) as generators, random_states_kept():
        reseed(generators, 1)
        with _Draws() as draws:
            again = mixing.outputs(training, part)
        if draws.any or mixing.changes(base, again, mixing.distance) > 0:
            return False
    for row in (0, count // 2):
        if (changed := mixing.replaced(part, row)) is None:
            return False
        outside = partial(mixing.others, count=count, row=row)
        if mixing.changes(base, mixing.outputs(training, changed), outside) > least:
            return False
    if mixing.carries(training, part) > 0:
        return False
    same = mixing.outputs(training, nested.mapped(part, lambda each: each[:1].expand_as(each).clone()))
    return any(_all_differ(each, count, least) for event in same if event.edge == "out" for _, each in event.read)


def _all_differ(output: Tensor, count: int, least: float) -> bool:
    axis = _axis(output, count)
    if axis is None or not output.is_floating_point():
        return False
    rows = output.movedim(axis, 0).reshape(count, -1).double()
    apart = (rows[:, None] - rows[None]).abs().amax(-1).fill_diagonal_(math.inf)
    return bool((apart > least * rows.square().mean().sqrt()).all())


def _axis(tensor: Tensor, count: int) -> int | None:
    """The examples' dimension; None where none or several may be it."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size == count]
    return axes[0] if len(axes) == 1 else None


def _turned(one: Tensor, other: Tensor, *, count: int) -> float:
    """Change of a tensor beside the examples' order; NaN of one without their dimension."""
    axis = _axis(one, count)
    if one.shape != other.shape:
        return math.inf
    return math.nan if axis is None else mixing.distance(one.roll(1, axis), other)


def _given(one: Tensor, other: Tensor, *, count: int) -> float:
    """Infinite where what the model is given differs by more than the examples' order."""
    axis = _axis(one, count)
    return 0.0 if torch.equal(one if axis is None else one.roll(1, axis), other) else math.inf


def _begins(one: Event, other: Event, count: int, least: float) -> bool:
    """Tell whether what a call returns changes so."""
    pairs = zip(one.read, other.read, strict=False)
    return any(_turned(a, b, count=count) > least for (_, a), (_, b) in pairs)
