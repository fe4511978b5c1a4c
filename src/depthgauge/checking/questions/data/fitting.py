"""Can the training fit one small batch? Tried with its own optimizer, then with Adam at other rates; all is put back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status, Tried
from depthgauge.checking.questions.data.batches import is_target
from depthgauge.checking.questions.data.losses import chance, main_term
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

EXAMPLES = 16  # of the first batch
STEPS = 60  # of one attempt
LEAST = 10  # steps from which on an attempt says something
SECONDS = 0.45  # of one attempt
RATES = (1e-3, 1e-2, 1e-4)  # of Adam, in the order in which they are tried
FITTED = 0.2  # of the loss, that falls where the batch can be fitted: far above what one rounding or draw moves
STILL = 1e-3  # of the loss: less is no fall in ten steps or more
TRAINED = 0.5  # of chance, below which a loss has fallen before: a trained model has little left to fit
EQUAL = 1e-6  # of the loss: two orders of summation in float32 differ by less
SUMMED = 0.1  # of the ratio, that dropout may move it
BETTER = 0.9  # of the loss after the steps, that a mean must reach against a sum
SUMMED_STEPS = 20

KINDS = {
    "cannot_fit": Kind(
        "fault",
        f"the loss of {EXAMPLES} examples falls by less than {STILL:g} of itself in {LEAST} steps or more, with the"
        " training's own optimizer and with Adam at 1e-4, 1e-3 and 1e-2",
    ),
    "ignores_inputs": Kind(
        "fault", "after these steps the loss is the same to 1e-6 with the inputs of other examples: none is seen"
    ),
    "unaligned_targets": Kind(
        "fault",
        "outputs differ between examples, and the loss is the same to 1e-6 with the targets of other examples: each is"
        " held against all",
    ),
    "summed_loss": Kind(
        "fault",
        f"the loss doubles with the batch, and after {SUMMED_STEPS} of its own steps the mean over examples is below"
        f" {BETTER:g} of the loss that the sum reaches",
    ),
    "grows_with_batch": Kind("property", "the loss is a sum over examples: its gradient grows with the batch"),
}


@dataclass(eq=False)
class Attempt:
    """One attempt to fit the batch.

    Attributes:
        optimizer: in words.
        losses: before each step, and after the last.
        moved: the loss with the inputs of other examples, and with the targets of others; NaN where not tried.
        distinct: whether outputs differ between examples after the steps.
    """

    optimizer: str
    losses: list[float] = field(default_factory=list)
    moved: dict[str, float] = field(default_factory=dict)
    distinct: bool | None = None

    @property
    def fall(self) -> float:
        """The share of the first loss that it fell by, at best; NaN where there are no steps."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        if len(finite) < 2 or not math.isfinite(self.losses[0]):
            return math.nan
        return (self.losses[0] - min(finite)) / max(abs(self.losses[0]), 1e-30)

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return max(0, len(self.losses) - 1)


@dataclass(frozen=True, eq=False)
class Fit:
    """All attempts.

    Attributes:
        examples: in the batch that was to be fitted; None where that cannot be said.
        attempts: in the order in which they were made.
    """

    examples: int | None
    attempts: tuple[Attempt, ...]

    @property
    def best(self) -> Attempt | None:
        """The one whose loss fell most."""
        tried = [attempt for attempt in self.attempts if not math.isnan(attempt.fall)]
        return max(tried, key=lambda attempt: attempt.fall, default=None)

    def table(self) -> pd.DataFrame:
        """A row for each step of each attempt."""
        rows = [
            {"optimizer": attempt.optimizer, "step": step, "loss": loss}
            for attempt in self.attempts
            for step, loss in enumerate(attempt.losses)
        ]
        return pd.DataFrame(rows, columns=["optimizer", "step", "loss"])


def fit(subject: Subject) -> Fit:
    """Make the attempts: the own optimizer's, and Adam's where that does not fit the batch."""
    training, batch = subject.training, nested.first(subject.seen.batch, EXAMPLES)
    attempts = []
    if training.optimizer is not None:
        attempts.append(_attempt(subject, batch, lambda: training.optimizer, "its own optimizer"))
    for rate in RATES:
        if attempts and max((each.fall for each in attempts if not math.isnan(each.fall)), default=0.0) >= FITTED:
            break
        if subject.clock.left < LEAST * subject.seen.seconds:
            break
        attempts.append(_attempt(subject, batch, lambda rate=rate: _adam(training, rate), f"Adam at {rate:g}"))
    return Fit(nested.rows(batch), tuple(attempts))


def findings(subject: Subject, fitted: Fit) -> Iterator[Finding]:
    """What the attempts say."""
    best = fitted.best
    if best is None:
        return
    yield from _unseen(subject, fitted)
    term = main_term(subject.seen)
    level = chance(term) if term is not None else math.nan
    far = [attempt for attempt in fitted.attempts if attempt.steps >= LEAST]
    open_ = math.isfinite(level) and best.losses[0] > TRAINED * level
    if open_ and len(far) == len(RATES) + (subject.training.optimizer is not None) and best.fall < STILL:
        yield Finding(
            "cannot_fit", Status.BROKEN,
            f"the loss of {fitted.examples or 'a few'} examples stays at {best.losses[0]:.4g} in {best.steps} steps, with"
            " its own optimizer as with Adam at 1e-4, 1e-3 and 1e-2",
            "look at what lies between the weights and the loss: the other findings name it",
            "the loss of a batch this small falls", ("model", "loss"),
            Measure("fall of the loss", best.fall, unit="of itself"),
        )  # fmt: skip


def summed(subject: Subject) -> Iterator[Finding]:
    """Tell whether the loss is a sum over examples, and what its mean would do."""
    training, count = subject.training, subject.seen.examples
    if count is None or count < 2 or not subject.seen.loss:
        return
    if subject.clock.left < 6 * subject.seen.seconds or not _sums(training, subject.seen.batch, subject.seen.loss):
        return
    tried = _as_mean(subject, count) if training.optimizer is not None else None
    harms = tried is not None and tried.after < BETTER * tried.before
    text = f"the loss is a sum: twice the examples give twice the loss ({subject.seen.loss:.4g} for {count})"
    measure = Measure("loss of twice the examples over loss", 2.0)
    if harms and tried is not None:
        reached = f"{tried.before:.4g}" if math.isfinite(tried.before) else "no finite number"
        yield Finding(
            "summed_loss", Status.BROKEN if tried.before >= subject.seen.loss / count else Status.LOOK,
            f"{text}, and at this rate its first steps reach {reached} an example, where those of the mean"
            f" reach {tried.after:.4g}",
            f"use the mean over the examples (reduction='mean'), or divide the rate by {count}",
            f"{tried.after:.4g} an example after as many steps", ("loss",), measure, tried,
        )  # fmt: skip
    else:
        yield Finding(
            "grows_with_batch", Status.LOOK, f"{text}, so that its gradient grows with the batch",
            "divide the rate by as much as a batch grows, or use the mean over examples",
            "another batch size, or a last batch that is smaller, asks for no other rate", ("loss",), measure,
        )  # fmt: skip


def _adam(training: Training, rate: float) -> torch.optim.Optimizer:
    held = training.optimizer.param_groups if training.optimizer is not None else ()
    parameters = [each for group in held for each in group["params"]] or list(training.model.parameters())
    return torch.optim.Adam([each for each in parameters if each.requires_grad], lr=rate, foreach=False)


def _attempt(subject: Subject, batch: Any, optimizer: Callable[[], Any], called: str) -> Attempt:
    training, attempt = subject.training, Attempt(called)
    start = time.perf_counter()
    limit = min(SECONDS, 0.3 * subject.clock.left)
    with training.untouched():
        try:
            steps = optimizer()
            for _ in range(STEPS):
                attempt.losses.append(_step(training, batch, steps))
                if not math.isfinite(attempt.losses[-1]) or time.perf_counter() - start > limit:
                    break
            attempt.losses.append(_loss(training, batch))
            _move(training, batch, subject, attempt)
        except Exception:  # noqa: BLE001 - an optimizer that needs a closure, sparse gradients: the user's code may raise
            return attempt
    return attempt


def _step(training: Training, batch: Any, optimizer: Any) -> float:
    """The loss before one step; every step draws the same, so that nothing but the weights moves it."""
    with random_states_kept():
        optimizer.zero_grad(set_to_none=True)
        loss = training.value(batch)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
    return loss.item()


def _loss(training: Training, batch: Any) -> float:
    with random_states_kept():
        return training.value(batch).item()


def _move(training: Training, batch: Any, subject: Subject, attempt: Attempt) -> None:
    """Loss with inputs or targets of other examples, after the steps."""
    terms = subject.seen.graph.terms
    parts = dict(nested.tensors(subject.seen.batch))
    targets = {place for place, tensor in parts.items() if is_target(place, tensor, terms)}
    if nested.rows(batch) is None or not targets or targets == set(parts):
        return
    attempt.distinct = _distinct(training, batch)
    attempt.moved["inputs"] = _loss(training, _rolled(batch, set(parts) - targets))
    attempt.moved["targets"] = _loss(training, _rolled(batch, targets))


def _rolled(batch: Any, places: set[str | None]) -> Any:
    """The batch with these tensors moved by one example."""
    order = iter([place for place, _ in nested.tensors(batch)])
    return nested.mapped(batch, lambda tensor: tensor.roll(1, 0) if next(order) in places else tensor)


def _distinct(training: Training, batch: Any) -> bool | None:
    """Whether the module's outputs differ between examples; None where it has none that is seen."""
    seen: list[torch.Tensor] = []

    def hook(_: object, __: object, output: object) -> None:
        seen.append(nested.scores(output).detach())

    handle = training.model.register_forward_hook(hook)
    try:
        _loss(training, batch)
    finally:
        handle.remove()
    output = next((each for each in seen if each.dim() and len(each) == nested.rows(batch)), None)
    return None if output is None else bool((output != output[:1]).any())


def _unseen(subject: Subject, fitted: Fit) -> Iterator[Finding]:
    """Inputs or targets that make no difference."""
    far = [each for each in fitted.attempts if each.moved and each.steps >= LEAST and math.isfinite(each.losses[-1])]
    targets = [column for _, column in nested.tensors(nested.first(subject.seen.batch, EXAMPLES))]
    if not far or not targets:
        return

    def same(attempt: Attempt, part: str) -> bool:
        return abs(attempt.moved[part] - attempt.losses[-1]) <= EQUAL * abs(attempt.losses[-1])

    last = far[-1]
    if all(same(each, "inputs") and same(each, "targets") for each in far) and last.fall > STILL and _varied(subject):
        if last.distinct:
            yield Finding(
                "unaligned_targets", Status.BROKEN,
                f"the loss is {last.losses[-1]:.6g} whichever example has which target: each output is held against all"
                " targets",
                "give scores and targets the same shape (squeeze(-1) or unsqueeze(-1)) before they are subtracted",
                "each example is held against its own target", ("loss",),
            )  # fmt: skip
        elif last.distinct is False:
            yield Finding(
                "ignores_inputs", Status.BROKEN,
                f"the loss is {last.losses[-1]:.6g} after {last.steps} steps, whichever example has which inputs, and the"
                " outputs of all examples are the same: the model does not see its inputs",
                "look for the first layer whose output is the same for all examples", "outputs depend on the inputs",
                ("model",),
            )  # fmt: skip


def _varied(subject: Subject) -> bool:
    """Whether the examples have different inputs, and different targets."""
    terms = subject.seen.graph.terms
    parts = list(nested.tensors(nested.first(subject.seen.batch, EXAMPLES)))
    full = dict(nested.tensors(subject.seen.batch))
    varied = {is_target(place, full[place], terms) for place, each in parts if bool((each != each[:1]).any())}
    return varied == {True, False}


def _sums(training: Training, batch: Any, loss: float) -> bool:
    """Whether two and three times the batch have two and three times the loss."""
    with training.untouched():
        for times in (2, 3):
            again = nested.mapped(batch, lambda tensor, times=times: torch.cat([tensor] * times))
            if not abs(_loss(training, again) / loss - times) < SUMMED * times:
                return False
    return True


def _as_mean(subject: Subject, count: int) -> Tried | None:
    """The loss an example after own steps, of the sum and of its mean."""
    reached = [_stepped(subject, scale) / count for scale in (1.0, 1.0 / count)]
    if math.isnan(reached[1]):
        return None
    before = reached[0] if math.isfinite(reached[0]) else math.inf
    return Tried("the mean over examples", "loss an example after the same steps", before, reached[1])


def _stepped(subject: Subject, scale: float) -> float:
    """The loss of the first batch after own steps with a multiple of the loss; infinite where it diverges."""
    training, optimizer = subject.training, subject.training.optimizer
    assert optimizer is not None
    batches = subject.batches(4)
    start, limit = time.perf_counter(), min(SECONDS, 0.4 * subject.clock.left)
    with training.untouched():
        for step in range(SUMMED_STEPS):
            optimizer.zero_grad(set_to_none=True)
            loss = training.value(batches[step % len(batches)])
            (scale * loss).backward()
            optimizer.step()
            if not math.isfinite(loss.item()):
                return math.inf
            if time.perf_counter() - start > limit:
                break
        last = _loss(training, batches[0])
    return last if math.isfinite(last) else math.inf
