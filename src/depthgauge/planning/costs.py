"""Seconds and memory of a training step, by the number of examples on a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from depthgauge import nested, timing
from depthgauge.foreign import describe_error, out_of_memory
from depthgauge.stats import Estimate
from depthgauge.updating import clear
from depthgauge.workload import Training, WorkloadError

ROUNDS = 12  # durations of each step
CAUTION = 0.5
"""Share of the room for tensors that batch and forward pass may take; the backward pass takes as much again."""


@dataclass(frozen=True)
class Cost:
    """Cost of a step on one device.

    Attributes:
        batch: examples.
        seconds: of a step, the median of rounds; NaN where it was not measured.
        memory: bytes of the tensors that a step makes, at its height; NaN where it was not measured.
        why: the reason why it was not measured; empty where it was.
    """

    batch: int
    seconds: Estimate
    memory: float
    why: str = ""


def counted(examples: int) -> str:
    """`1 example`, `1,024 examples`."""
    return f"{examples:,} example{'s' * (examples != 1)}"


def examples_of(batch: Any) -> int:
    """Number of examples in a batch.

    Raises:
        WorkloadError: it has no tensor, or its tensors do not share a first dimension.
    """
    count = nested.rows(batch)
    if not any(True for _ in nested.tensors(batch)):
        raise WorkloadError(f"a batch is a {type(batch).__name__} without any tensor: its examples cannot be counted")
    if count is None:
        raise WorkloadError(
            f"the tensors of a batch ({nested.describe(batch)}) do not share a first dimension: a plan needs batches "
            "whose examples lie along it"
        )
    if count == 0:
        raise WorkloadError("a batch holds no example")
    return count


def joined(batches: Iterable[Any], count: int) -> Any:
    """One batch of `count` examples, from as many batches as it takes.

    Tuples, mappings and dataclasses are joined tensor by tensor along the first dimension.

    Raises:
        WorkloadError: batches of different structure or shapes, or too few examples.
    """
    parts, have = [], 0
    for batch in batches:
        parts.append(batch)
        have += examples_of(batch)
        if have >= count:
            break
    else:
        raise WorkloadError(f"its batches hold {have} examples, where {count} were needed")
    columns = [[tensor for _, tensor in nested.tensors(part)] for part in parts]
    shapes = {tuple((tensor.shape[1:], tensor.dtype) for tensor in column) for column in columns}
    if len(shapes) > 1:
        raise WorkloadError(
            f"its batches cannot be joined: one is {nested.describe(parts[0])}, another "
            f"{next(nested.describe(part) for part in parts if nested.describe(part) != nested.describe(parts[0]))}"
        )
    tensors = iter([torch.cat(group)[:count] for group in zip(*columns, strict=True)])
    whole = _mapped(parts[0], lambda _: next(tensors))
    if examples_of(whole) != count:
        raise WorkloadError(f"a batch is a {type(whole).__name__}, whose tensors cannot be joined to a larger one")
    return whole


def _mapped(batch: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """`nested.mapped`, of a dataclass too."""
    if not is_dataclass(batch) or isinstance(batch, type):
        return nested.mapped(batch, function)
    return replace(batch, **{each.name: nested.mapped(getattr(batch, each.name), function) for each in fields(batch)})


def step_of(training: Training, batch: Any, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """One update of the training on a batch; it leaves no gradients, which the next one's memory would not show."""

    def step() -> None:
        clear(optimizer)
        training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        clear(optimizer)

    return step


def curve(
    training: Training, batches: Iterable[int], confidence: float, tell: Callable[[str], object]
) -> dict[int, Cost]:
    """Cost of a step at each number of examples, timed in turns.

    A step that would not fit into memory, by what autograd keeps of it, is not tried. It changes the training: call it
    where that is `untouched`.

    Args:
        training: the user's.
        batches: numbers of examples; what the training has is repeated where it is fewer.
        confidence: of the intervals.
        tell: is told in words what is done next.
    """
    device = next((str(each.device) for each in training.model.parameters()), "cpu")
    optimizer = training.optimizer or torch.optim.SGD(trained(training), lr=0.0, momentum=0.9)
    each, most, full = _least_bytes(training), CAUTION * timing.room_for_tensors(device), ""
    steps: dict[int, Callable[[], None]] = {}
    costs: dict[int, Cost] = {}
    with _resting(optimizer):
        for size in sorted(set(batches)):
            tell(f"a step on {counted(size)}")
            if not full and each * size > most:
                full = f"a step on {counted(size)} would take {each * size / 2**30:.3g} GiB or more: it was not tried"
            why = full
            if not full:
                steps[size], why = _tried(training, size, optimizer)
            if why:
                steps.pop(size, None)
                costs[size] = Cost(size, Estimate(math.nan, math.nan, math.nan, 0, why, "s"), math.nan, why)
                full = full or why * why.endswith(_FULL)
        tell("time of the steps, in turns")
        measured = timing.batch_curve(steps.__getitem__, steps, device, rounds=ROUNDS, confidence=confidence)
    for row in measured.to_dict("records"):
        seconds = Estimate(
            row["seconds"], row["low"], row["high"], row["n"], f"median of {row['n']} rounds in turns", "s"
        )
        costs[row["batch"]] = Cost(row["batch"], seconds, row["peak_bytes"], row["why"])
    return costs


_FULL = "does not fit into memory"


def _tried(training: Training, size: int, optimizer: torch.optim.Optimizer) -> tuple[Callable[[], None], str]:
    """A step on so many examples, and why it cannot be run; empty where it can."""
    step = step_of(training, joined(training.stream(), size), optimizer)
    try:
        step()
    except WorkloadError:
        raise
    except Exception as error:  # noqa: BLE001 - a step is the user's code
        if out_of_memory(error):
            return step, f"a step on {counted(size)} {_FULL}"
        return step, f"a step on {counted(size)} cannot be run: {describe_error(error)}"
    return step, ""


@contextmanager
def _resting(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Rates of 0 within the block: steps repeated on one batch shall not lead anywhere."""
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], torch.Tensor) else 0.0
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def trained(training: Training) -> list[torch.nn.Parameter]:
    """Parameters that train.

    Raises:
        WorkloadError: there is none.
    """
    found = [each for each in training.model.parameters() if each.requires_grad]
    if not found:
        kind = type(training.model).__name__
        raise WorkloadError(f"the {kind} has no parameter that trains: there is nothing to plan")
    return found


def _least_bytes(training: Training) -> float:
    """Bytes an example that a step holds at least: its own, and what autograd keeps of it."""
    batch = training.first()[0]
    inputs = [tensor for _, tensor in nested.tensors(batch)]  # views, maybe, of all data that there are
    own = sum(tensor.numel() * tensor.element_size() for tensor in inputs)
    held = [*training.model.parameters(), *training.model.buffers(), *inputs]
    kept = timing.saved_by(lambda: training.value(batch), held)
    return (own + kept) / examples_of(batch)
