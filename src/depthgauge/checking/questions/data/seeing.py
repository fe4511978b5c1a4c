"""Does the loss see which example has which inputs, and which target?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.questions.data.batches import targeted
from depthgauge.checking.steps import losses
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

APART = 1e-3  # of the outputs' root mean square, above which they differ between examples: far above rounding
EQUAL = 1e-6  # of the loss: two orders of summation in float32 differ by less

KINDS = {
    "ignores_inputs": Kind(
        "fault",
        "before and after steps on one small batch the loss is the same to 1e-6 with the inputs of other examples:"
        " none is seen",
    ),
    "unaligned_targets": Kind(
        "fault",
        "outputs differ between examples, and the loss is the same to 1e-6 with the targets of other examples: each is"
        " held against all",
    ),
}


@dataclass(frozen=True)
class Moved:
    """The loss of a batch whose parts are moved against each other.

    Attributes:
        loss: of the batch as it is.
        inputs: with the inputs of other examples.
        targets: with their targets.
        one: with one target for all.
        distinct: whether outputs differ between examples; None where they were not seen.
    """

    loss: float
    inputs: float
    targets: float
    one: float
    distinct: bool | None

    @property
    def blind(self) -> bool:
        """Tell whether it matters which targets there are, and not which example has which inputs or target."""
        return self._same(self.inputs) and self._same(self.targets) and not self._same(self.one)

    def _same(self, other: float) -> bool:
        return abs(other - self.loss) <= EQUAL * abs(self.loss)


def moved(subject: Subject, batch: Any) -> Moved | None:
    """Move the parts of a batch; None where it has no inputs and targets of an example each, or refuses those moved."""
    training = subject.training
    targets, others = _parts(subject)
    if nested.rows(batch) is None or not _varied(batch, targets) or not _varied(batch, others):
        return None
    loss, by = loss_of(training, batch), _places_on(batch, targets)
    with random_states_kept(), suppress(Exception):  # of sequences that are to be sorted by their lengths
        return Moved(
            loss,
            loss_of(training, changed(batch, others, lambda each: each.roll(by, 0))),
            loss_of(training, changed(batch, targets, lambda each: each.roll(by, 0))),
            loss_of(training, changed(batch, targets, lambda each: each[:1].expand_as(each).clone())),
            _distinct(training, batch),
        )
    return None


def _places_on(batch: Any, targets: Collection[str | None]) -> int:
    """Places by which most examples get another target: where classes lie in order, the next one has the same."""
    moving = [tensor for place, tensor in nested.tensors(batch) if place in targets]

    def others(by: int) -> int:
        return sum(int((each.roll(by, 0) != each).sum()) for each in moving)

    return max((1, len(moving[0]) // 2, len(moving[0]) // 3), key=others)


def loss_of(training: Training, batch: Any) -> float:
    """The loss at the weights as they are; the next call draws the same."""
    return losses(training, [batch])[0]


def handed(training: Training, batch: Any) -> list[torch.Tensor]:
    """Copies of the tensors that the module is called with in a pass; it must not be a scripted one."""
    seen: list[torch.Tensor] = []

    def keep(_: object, args: object, kwargs: object) -> None:
        seen.extend(each.detach().clone() for _, each in nested.tensors((args, kwargs)))

    handle = training.model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        loss_of(training, batch)
    finally:
        handle.remove()
    return seen


def findings(start: Moved | None, after: Sequence[Moved], steps: int) -> Iterator[Finding]:
    """Inputs or targets that make no difference, before the first step and after so many, at two rates or more."""
    if start is None or len(after) < 2 or not all(each.blind for each in (start, *after)):
        return  # one rate alone may have killed the model, and a head of zeros is blind before the first step
    loss = f"the loss is {after[-1].loss:.6g} after {steps} steps, whichever example has which"
    if all(each.distinct for each in (start, *after)):
        yield Finding(
            "unaligned_targets", Status.BROKEN, f"{loss} target: each output is held against all targets",
            "give scores and targets the same shape (squeeze(-1) or unsqueeze(-1)) before they are subtracted",
            "each example is held against its own target", ("loss",),
        )  # fmt: skip
    elif not any(each.distinct is not False for each in (start, *after)):
        yield Finding(
            "ignores_inputs", Status.BROKEN,
            f"{loss} inputs, and the outputs of all examples are the same: nothing of the inputs reaches them",
            "look for the first layer whose output is the same for all examples", "outputs depend on the inputs",
            ("model",),
        )  # fmt: skip


def _parts(subject: Subject) -> tuple[set[str | None], set[str | None]]:
    """Places of a number an example that the loss gets as targets, and of the other tensors."""
    batch, terms = subject.seen.batch, subject.seen.graph.terms
    parts = dict(nested.tensors(batch))
    targets = {place for place, tensor in parts.items() if targeted(place, parts, terms, batch)}
    single = {place for place in targets if parts[place].dim() and parts[place].numel() == len(parts[place])}
    return (single, set(parts) - targets) if single == targets else (set(), set())


def changed(batch: Any, places: Collection[str | None], change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The batch with these tensors changed."""
    order = iter([place for place, _ in nested.tensors(batch)])
    return nested.mapped(batch, lambda tensor: change(tensor) if next(order) in places else tensor)


def _distinct(training: Training, batch: Any) -> bool | None:
    """Whether the module's outputs differ between examples; None where it has none that is seen."""
    if isinstance(training.model, torch.jit.ScriptModule):  # whose calls cannot be hooked
        return None
    seen: list[torch.Tensor] = []

    def hook(_: object, __: object, output: object) -> None:
        seen.append(nested.scores(output).detach())

    handle = training.model.register_forward_hook(hook)
    try:
        loss_of(training, batch)
    finally:
        handle.remove()
    output = next((each for each in seen if each.dim() and len(each) == nested.rows(batch)), None)
    return None if output is None else bool((output - output.mean(0)).norm() > APART * output.norm())


def _varied(batch: Any, places: set[str | None]) -> bool:
    """Whether examples differ in one of these tensors."""
    return any(bool((each != each[:1]).any()) for place, each in nested.tensors(batch) if place in places)
