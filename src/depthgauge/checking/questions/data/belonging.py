"""Do targets belong to their inputs? Asked of the numbers, and then of the model: what it learns of other examples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import dependence
from depthgauge.checking.questions.data.batches import Batches, Column
from depthgauge.checking.questions.data.seeing import changed, loss_of
from depthgauge.checking.steps import step
from depthgauge.checking.subject import Subject
from depthgauge.updating import takes_closure

LEAST = 192  # examples, below which an order like this is chance, whatever the labels are
MORE, MORE_ORDERS = 1536, 399  # examples and random orders of a second look, where the first found nothing
IDS = 4  # whole numbers an example: names of users and things, which alone say nothing
STEPS = 200  # on a part of the batches
SECONDS = 1.2  # of them
PART = 8  # batches that steps are made on, and as many that are held out
LEARNT = 4.0  # standard errors by which the model must know targets of examples that it was trained on
SHARE = 0.5  # of that, which the upper end for other examples must stay below
ROLLS = (1, 3)  # examples by which targets are moved

KINDS = {
    "independent_targets": Kind(
        "fault",
        f"no dependence of targets on inputs in {LEAST} examples or more (kernels of values, counts, spectra and nearest"
        f" neighbours, {dependence.ORDERS} random orders, level {dependence.LEVEL:g}), and after up to {STEPS} steps the"
        f" model knows the targets of those it was trained on (by {LEARNT:g} standard errors) and of others not half as"
        " well, nor clearly at all",
    ),
}


@dataclass(frozen=True)
class Known:
    """By how much the loss rises where targets are moved to other examples of the same batch.

    Attributes:
        mean: over batches.
        error: its standard error.
    """

    mean: float
    error: float

    @property
    def errors(self) -> float:
        """Standard errors above 0."""
        return self.mean / self.error if self.error > 0 else 0.0


def findings(subject: Subject, read: Batches) -> Iterator[Finding]:
    """Tell where nothing of the targets can be told from the inputs."""
    target = next(iter(read.targets), None) if len(read.targets) == 1 else None
    if target is None or len(target.numbers) < LEAST or not math.isfinite(subject.seen.loss):
        return
    inputs = [each for each in read.inputs if len(each.numbers) == len(target.numbers)]
    if len(inputs) != len(read.inputs) or not inputs or all(map(_names, inputs)):
        return
    rows = [each.numbers for each in inputs]
    chance = dependence.chance(rows, target.numbers)
    if not chance > dependence.LEVEL:
        return
    if len(target.numbers) > dependence.EXAMPLES:
        chance = dependence.chance(rows, target.numbers, MORE, MORE_ORDERS)
    if not chance > dependence.LEVEL or (learnt := learns(subject, {target.place})) is None:
        return
    own, others = learnt
    yield Finding(
        "independent_targets", Status.LOOK,
        f"no dependence of {target.called} on the inputs was found in {min(MORE, len(target.numbers))} examples (p ="
        f" {chance:.2g}), and what the model learns of some says nothing of others: does each have its own label?",
        "look at a few examples with their labels: were both shuffled, sorted or filtered by the same order?",
        "what is learnt of some examples holds for others", ("batches", *filter(_named, [target.place])),
        Measure(
            "rise of the loss with exchanged targets, of examples not trained on", others.mean,
            others.mean - 2 * others.error, others.mean + 2 * others.error, "",
            f"{own.mean:.3g} of those that it was trained on",
        ),
    )  # fmt: skip


def learns(subject: Subject, places: set[str]) -> tuple[Known, Known] | None:
    """How well the model knows targets of examples that it was trained on, and of others; None where both, or neither.

    Args:
        subject: put back as it was.
        places: of the targets in a batch.
    """
    trained, others = _split(subject.batches(2 * PART))
    if len(others) < 2:
        return None
    own = subject.training.optimizer
    makers: list[Callable[[], Any]] = [partial(_adam, subject)]
    if own is not None and not takes_closure(own):
        makers.insert(0, lambda: own)
    for make in makers:
        with subject.training.untouched():
            try:
                _go(subject, trained, make())
                known = [_known(subject, batches, places) for batches in (trained, others)]
            except Exception:  # noqa: BLE001 - the user's code may raise anything of a part of a batch
                return None
        if known[0].errors >= LEARNT:
            reach = known[1].mean + 2 * known[1].error
            return (known[0], known[1]) if reach < SHARE * known[0].mean and known[1].errors < LEARNT else None
    return None


def _go(subject: Subject, batches: Sequence[Any], optimizer: Any) -> None:
    start, limit = time.perf_counter(), min(SECONDS, 0.2 * subject.clock.left)
    for place in range(STEPS):
        if not math.isfinite(step(subject.training, batches[place % len(batches)], optimizer=optimizer)):
            return
        if time.perf_counter() - start > limit:
            return


def _known(subject: Subject, batches: Sequence[Any], places: set[str]) -> Known:
    rises = []
    for batch in batches:
        moved = [changed(batch, places, partial(torch.roll, shifts=by, dims=0)) for by in ROLLS]
        rises.append(
            sum(loss_of(subject.training, each) for each in moved) / len(ROLLS) - loss_of(subject.training, batch)
        )
    values = torch.tensor(rises, dtype=torch.float64)
    return Known(values.mean().item(), values.std().item() / math.sqrt(len(values)))


def _split(batches: list[Any]) -> tuple[list[Any], list[Any]]:
    """Batches to be trained on, and others; few large ones in parts."""
    if len(batches) < PART and (nested.rows(batches[0]) or 0) >= 8 * PART:
        batches = [part for batch in batches for part in _parts(batch, math.ceil(2 * PART / len(batches)))]
    return batches[: len(batches) // 2], batches[len(batches) // 2 :]


def _parts(batch: Any, count: int) -> list[Any]:
    size = max(1, (nested.rows(batch) or 0) // count)
    return [nested.mapped(batch, lambda each, at=at: each[at * size : (at + 1) * size]) for at in range(count)]


def _adam(subject: Subject) -> torch.optim.Optimizer:
    return torch.optim.Adam([each for each in subject.training.model.parameters() if each.requires_grad], lr=1e-3)


def _names(column: Column) -> bool:
    numbers = column.numbers
    return not numbers.is_floating_point() and numbers.dtype is not torch.uint8 and math.prod(numbers.shape[1:]) <= IDS


def _named(place: str) -> bool:
    return bool(place) and not place.replace(".", "").isdecimal()
