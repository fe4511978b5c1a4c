"""Can the training fit one small batch? Its own optimizer tries, then Adam at other rates; all is put back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd
import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data import seeing
from depthgauge.checking.questions.data.losses import chance, main_term
from depthgauge.checking.questions.data.seeing import Moved, loss_of, moved
from depthgauge.checking.steps import step
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

EXAMPLES = 16  # of the first batch
STEPS = 60  # of one attempt
LEAST = 10  # steps from which on an attempt says something
SECONDS = 0.45  # of one attempt
RATES = (1e-3, 1e-2, 1e-4)  # of Adam, in the order in which they are tried
OWN = "its own optimizer"
FITTED = 0.2  # of the loss, that falls where the batch can be fitted: far above what one rounding or draw moves
STILL = 1e-3  # of the loss: less is no fall in ten steps or more
TRAINED = 0.5  # of chance, below which a loss has fallen before: a trained model has little left to fit

KINDS = {
    "cannot_fit": Kind(
        "fault",
        f"the loss of {EXAMPLES} examples falls by less than {STILL:g} of its main term in {LEAST} steps or more,"
        " with the training's own optimizer and with Adam at 1e-4, 1e-3 and 1e-2",
    ),
}


@dataclass(eq=False)
class Attempt:
    """One attempt to fit the batch.

    Attributes:
        optimizer: in words.
        losses: before each step, and after the last.
        moved: the loss with inputs and targets moved, after the steps.
    """

    optimizer: str
    losses: list[float] = field(default_factory=list)
    moved: Moved | None = None

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
        start: the loss with inputs and targets moved, before the first step.
    """

    examples: int | None
    attempts: tuple[Attempt, ...]
    start: Moved | None = None

    @property
    def best(self) -> Attempt | None:
        """The one whose loss fell most."""
        tried = [attempt for attempt in self.attempts if not math.isnan(attempt.fall)]
        return max(tried, key=lambda attempt: attempt.fall, default=None)

    def table(self, level: float = math.nan) -> pd.DataFrame:
        """A row for each step of each attempt, with the loss at chance."""
        rows = [
            {"optimizer": attempt.optimizer, "step": step, "loss": loss, "chance": level}
            for attempt in self.attempts
            for step, loss in enumerate(attempt.losses)
        ]
        return pd.DataFrame(rows, columns=["optimizer", "step", "loss", "chance"])


def fit(subject: Subject) -> Fit:
    """Make the attempts: the own optimizer's, and Adam's where that does not fit the batch."""
    training = subject.training
    attempts: list[Attempt] = []
    batch, seconds = _cut(subject)
    if not subject.fits(LEAST * seconds / max(subject.seen.seconds, 1e-9), "whether it can fit one batch"):
        return Fit(nested.rows(batch), ())
    with training.untouched():
        start = moved(subject, batch)
    if training.optimizer is not None:
        attempts.append(_attempt(subject, batch, lambda: training.optimizer, OWN))
    for rate in RATES:
        fitted = any(each.fall >= FITTED and not (each.moved and each.moved.blind) for each in attempts)
        if fitted or (rate != RATES[0] and any(each.fall >= FITTED for each in attempts[1:])):
            break
        if subject.clock.left < LEAST * seconds:
            break
        attempts.append(_attempt(subject, batch, partial(_adam, training, rate), f"Adam at {rate:g}"))
    return Fit(nested.rows(batch), tuple(attempts), start)


def findings(subject: Subject, fitted: Fit) -> Iterator[Finding]:
    """Yield what the attempts say."""
    best = fitted.best
    if best is None:
        time_left = "there was no time for ten steps" if not fitted.attempts else "no step on a part of it can be made"
        yield Finding("not_measured", Status.UNDECIDED, f"whether it can fit one batch was not measured: {time_left}")
        return
    far = [attempt for attempt in fitted.attempts if attempt.steps >= LEAST]
    after = [each.moved for each in far if each.moved is not None and math.isfinite(each.moved.loss)]
    yield from seeing.findings(fitted.start, after, far[-1].steps if far else 0)
    term = main_term(subject.seen)
    level = chance(term) if term is not None else math.nan
    open_ = term is not None and math.isfinite(level) and term.value > TRAINED * level
    if (
        term is not None
        and open_
        and len(far) == len(RATES) + (subject.training.optimizer is not None)
        and _still(best, term.value)
    ):
        yield Finding(
            "cannot_fit", Status.BROKEN,
            f"the loss of {fitted.examples or 'a few'} examples stays at {best.losses[0]:.4g} in {best.steps} steps,"
            " with its own optimizer as with Adam at 1e-4, 1e-3 and 1e-2",
            "look at what lies between the weights and the loss: the other findings name it",
            "the loss of a batch this small falls", ("model", "loss"),
            Measure("fall of the loss", best.fall, unit="of itself"),
        )  # fmt: skip


def _still(best: Attempt, term: float) -> bool:
    """Tell whether the loss has not fallen: of its main term, for a constant may stand beside it."""
    start = abs(best.losses[0])
    return best.fall * start < STILL * min(start, term)


def _cut(subject: Subject) -> tuple[Any, float]:
    """The first examples, and the seconds that a pass over them takes; the whole batch where it cannot be cut."""
    training, whole, passed = subject.training, subject.seen.batch, subject.seen.seconds
    part = nested.first(whole, EXAMPLES)
    there = nested.rows(whole)
    if not there or there <= EXAMPLES or subject.clock.left < LEAST * passed * EXAMPLES / there:
        return part, passed
    with training.untouched():
        try:
            start = time.perf_counter()
            training.value(part).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            return part, min(passed, time.perf_counter() - start)
        except Exception:  # noqa: BLE001 - rows that are no examples: the user's code may raise anything
            return whole, passed


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
            attempt.losses.append(loss_of(training, batch))
            attempt.moved = moved(subject, batch)
        except Exception:  # noqa: BLE001 - the user's code may raise: an optimizer that needs a closure
            return attempt
    return attempt


def _step(training: Training, batch: Any, optimizer: Any) -> float:
    """The loss before one step; every step draws the same, so that nothing but the weights moves it."""
    with random_states_kept():
        return step(training, batch, optimizer=optimizer)
