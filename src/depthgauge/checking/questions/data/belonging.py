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
from depthgauge.checking.questions.data.batches import Batches, Column, flags
from depthgauge.checking.questions.data.losses import main_term
from depthgauge.checking.questions.data.seeing import changed, loss_of
from depthgauge.checking.steps import step
from depthgauge.checking.subject import Subject
from depthgauge.updating import takes_closure

LEAST = 192  # examples, below which an order like this is chance, whatever the labels are
MORE, MORE_ORDERS = 1024, 199  # examples and random orders of a second look, where the first found nothing
IDS, NAMES = 4, 20  # whole numbers an example, of more values: names of users and things, which alone say nothing
STEPS = 200  # on a part of the batches
SECONDS = 1.2  # of them
PART, WHOLE = 8, 24  # batches that steps are made on; those held out are 8
LEARNT = 4.0  # standard errors by which the model must know targets of examples that it was trained on
NOTHING = 3.0  # standard errors below which it knows nothing of others'
SHARE = 0.5  # of that, which the upper end for other examples must stay below
ROLLS = (1, 3)  # examples by which targets are moved

KINDS = {
    "independent_targets": Kind(
        "fault",
        f"no dependence of targets on inputs in {LEAST} examples or more (kernels of values, counts, spectra and"
        f" nearest neighbours, {dependence.ORDERS} random orders, level {dependence.LEVEL:g}), and after {STEPS}"
        f" steps the model knows nothing of others' targets (below {NOTHING:g} standard errors), although it knows"
        f" those that it was trained on (by {LEARNT:g}) or the loss is the mean of a cross-entropy or of squares",
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
    if _is_mask(target, subject):
        return
    inputs = [each for each in read.inputs if len(each.numbers) == len(target.numbers)]
    if len(inputs) != len(read.inputs) or not inputs or any(map(_names, inputs)):
        return
    rows = [each.numbers for each in inputs]
    chance = dependence.chance(rows, target.numbers)
    if chance > dependence.LEVEL and len(target.numbers) > dependence.EXAMPLES:
        chance = dependence.chance(rows, target.numbers, MORE, MORE_ORDERS)
    if not chance > dependence.LEVEL or (others := _known_of_others(subject, target)) is None:
        return
    yield Finding(
        "independent_targets", Status.LOOK,
        f"no dependence of {target.called} on the inputs was found in {min(MORE, len(target.numbers))} examples (p ="
        f" {chance:.2g}), and what the model learns of some says nothing of others: does each have its own?",
        "look at a few examples with their targets: were both shuffled, sorted or filtered by the same order?",
        "what is learnt of some examples holds for others", ("batches", *filter(_named, [target.place])),
        Measure(
            "rise of the loss with exchanged targets, of examples not trained on", others.mean,
            others.mean - 2 * others.error, others.mean + 2 * others.error, "", f"after {STEPS} steps on others",
        ),
    )  # fmt: skip


def _is_mask(target: Column, subject: Subject) -> bool:
    """Whether it is ones and zeros, and no cross-entropy of two classes, or of squares, has such for targets."""
    term = main_term(subject.seen)
    scored = term is not None and term.form in {"binary", "binary_logits", "regression"} and flags(term.targets)
    return target.numbers.dim() > 1 and not scored and flags(target.numbers)


def _known_of_others(subject: Subject, target: Column) -> Known | None:
    """What a model knows that has learnt nothing of the targets of others, and could have; None where it could not."""
    place, handed = target.place, _handed_over(subject, target.place)
    if handed and target.numbers.is_floating_point() and not isinstance(subject.training.model, torch.jit.ScriptModule):
        return None  # noise that it is to tell belongs to no input; tokens are handed over one place on
    batches = subject.batches(WHOLE + PART)
    if len(batches) < PART and (nested.rows(batches[0]) or 0) >= 8 * PART:
        batches = [part for batch in batches for part in _parts(batch, math.ceil(2 * PART / len(batches)))]
    held = batches[: max(2, min(PART, len(batches) // 2))]
    rest = batches[len(held) :]
    own, term = subject.training.optimizer, main_term(subject.seen)
    makers: list[Callable[[], Any]] = [partial(_adam, subject)]
    if own is not None and not takes_closure(own):
        makers.insert(0, lambda: own)
    last = None
    for make, count in zip(makers, (PART, WHOLE), strict=False):
        if len(rest) < 2 or (known := _learns(subject, rest[:count], held, place, make)) is None:
            return None
        trained, last = known
        if last.errors >= NOTHING:
            return None
        if trained.errors >= LEARNT:
            return last if last.mean + 2 * last.error < SHARE * trained.mean else None
    pure = term is not None and term.is_all_of(subject.seen.loss)
    return last if pure and not handed else None


def _learns(
    subject: Subject, batches: list[Any], held: list[Any], place: str, make: Callable[[], Any]
) -> tuple[Known, Known] | None:
    """What the model knows of the targets that it was trained on, and of others; put back as it was."""
    with subject.training.untouched():
        try:
            _go(subject, batches, make())
            return _known(subject, batches[:PART], {place}), _known(subject, held, {place})
        except Exception:  # noqa: BLE001 - the user's code may raise anything of a part of a batch
            return None


def _handed_over(subject: Subject, place: str) -> bool:
    """Whether the module's outputs depend on the targets: it is given them, or noise that it is to tell."""
    seen: list[torch.Tensor] = []

    def keep(_: object, __: object, output: object) -> None:
        seen.append(nested.scores(output).detach())

    training, batch = subject.training, subject.seen.batch
    if isinstance(training.model, torch.jit.ScriptModule):  # whose calls cannot be hooked
        return True
    with training.untouched():
        handle = training.model.register_forward_hook(keep)
        try:
            loss_of(training, batch)
            loss_of(training, changed(batch, {place}, partial(torch.roll, shifts=1, dims=0)))
        finally:
            handle.remove()
    if len(seen) != 2 or seen[0].shape != seen[1].shape:
        return True
    return not torch.allclose(seen[0], seen[1], rtol=1e-3, atol=1e-5)


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


def _parts(batch: Any, count: int) -> list[Any]:
    size = max(1, (nested.rows(batch) or 0) // count)
    return [nested.mapped(batch, partial(_rows, at * size, size)) for at in range(count)]


def _rows(first: int, count: int, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[first : first + count]


def _adam(subject: Subject) -> torch.optim.Optimizer:
    return torch.optim.Adam([each for each in subject.training.model.parameters() if each.requires_grad], lr=1e-3)


def _names(column: Column) -> bool:
    """Whether its numbers are names, of which each stands for itself."""
    numbers = column.numbers
    if numbers.is_floating_point() or numbers.dtype is torch.uint8 or math.prod(numbers.shape[1:]) > IDS:
        return False
    return len(torch.unique(numbers)) > NAMES


def _named(place: str) -> bool:
    return bool(place) and not place.replace(".", "").isdecimal()
