"""Asking of the card's questions, one after the other, within a time."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from depthgauge import probe
from depthgauge.checking import first_minute, late, observing, raising, upstream
from depthgauge.checking.about import about
from depthgauge.checking.answers import Answer, Finding, Status, most_severe, undecided
from depthgauge.checking.attributes import attributes_kept, left_changed
from depthgauge.checking.questions import Question, named
from depthgauge.checking.questions.signal.holders import gradients_kept, unregistered
from depthgauge.checking.result import Checked
from depthgauge.checking.subject import Clock, Subject
from depthgauge.checking.words import listed
from depthgauge.foreign import contained, describe_error
from depthgauge.restoring import random_states_kept
from depthgauge.workload import LoaderError, OtherModelError, Training, WorkloadError, check_training

BUDGET = 30.0  # seconds
MORE = 1.5  # times the time that a question had make it worth asking again
_ALONE = "call loss(model, batch) by itself on the first batch, and mend what it raises"
PASS_FIRST = {"signal", "batch"}  # questions that begin with a pass; the others ask the clock for each piece of theirs


def check(
    model: nn.Module | Training,
    batches: Iterable[Any] | None = None,
    *,
    loss: Callable[[nn.Module, Any], Any] | None = None,
    optimizer: Any = None,
    budget: float = BUDGET,
    only: Iterable[str] | None = None,
    progress: Callable[[str], object] | None = None,
) -> Checked:
    """Ask what is wrong with a training, and what it leaves on the table.

    The training is left as it was. What it raises is an answer, never an exception.

    Args:
        model: any module; or a `Training`, which has all of it.
        batches: an iterable of batches as the user's loop would get them; at most 103 are taken.
        loss: `loss(model, batch)`, a scalar; default: cross-entropy of `model(x)` against `y`, or the output's `.loss`.
        optimizer: built over the model's parameters; without one, questions about steps are undecided.
        budget: seconds that it may take; a question that does not fit is undecided and says so.
        only: ids of the questions to ask; all by default.
        progress: is told in words what is done next.

    Raises:
        WorkloadError: what is given is no training at all, or an argument is out of range.
    """
    wanted = named(only)
    seconds = _seconds(budget)
    training = _training(model, batches, loss, optimizer)
    tell = progress or (lambda _: None)
    began = time.perf_counter()
    tell("the probe's kernels, which a new installation compiles once")
    kernels()
    clock = Clock(seconds)  # a minute of a compiler's is none of the questions'
    tell("one pass, forward and backward")
    with attributes_kept(training), gradients_kept(unregistered(training).values()), left_changed(training) as changed:
        found = _checked(training, wanted, clock, tell)
    note = f"The check has left {listed(changed)} changed: too large to be put back" if changed else ""
    return dataclasses.replace(found, about=dataclasses.replace(about(training, began), note=note))


def _checked(
    training: Training,
    wanted: tuple[Question, ...],
    clock: Clock,
    tell: Callable[[str], object],
) -> Checked:
    subject = _subject(training, clock, tell)
    if isinstance(subject, Finding):
        return Checked(tuple(_refused(question, subject) for question in wanted), clock.seconds)
    with late.kept(subject.seen.made):
        return _answered(subject, wanted, clock, tell)


def _answered(subject: Subject, wanted: tuple[Question, ...], clock: Clock, tell: Callable[[str], object]) -> Checked:
    """The answers to all questions."""
    seconds = clock.seconds
    answers: list[Answer] = []
    given: list[float] = []
    for place, question in enumerate(wanted):
        rest = sum(each.share for each in wanted[place:])
        subject.clock = clock.part(question.share / rest)
        given.append(subject.clock.seconds)
        tell(question.text)
        timely = clock.left > subject.seen.seconds + subject.seen.copies or question.id not in PASS_FIRST
        answers.append(_asked(question, subject) if timely else _late(question, subject))
    for place, question in enumerate(wanted):  # what others did not use
        if answers[place].status is Status.UNDECIDED and clock.left > MORE * given[place]:
            subject.clock = clock.part(1)
            tell(f"{question.text} Once more, with the time that is left")
            answers[place] = _asked(question, subject)
    return Checked(upstream.held(upstream.once(answers)), seconds)


@functools.cache
def kernels() -> None:
    """Load the probe's kernels, or compile them, so that the question that comes first does not pay for it."""
    with random_states_kept():
        tiny = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(tiny.parameters(), lr=0.0)
    with probe.track(tiny, optimizer=optimizer):
        tiny(torch.ones(2, 2)).sum().backward()
        optimizer.step()


def _seconds(budget: object) -> float:
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 < budget < math.inf:
        raise WorkloadError(f"budget is a positive number of seconds, not {budget!r:.60}")
    return float(budget)


def _training(model: Any, batches: Any, loss: Any, optimizer: Any) -> Training:
    if isinstance(model, Training):
        if any(each is not None for each in (batches, loss, optimizer)):
            raise WorkloadError("a Training has batches, loss and optimizer of its own: leave them out")
        return model
    if batches is None:
        raise WorkloadError("check takes a module and its batches, check(model, batches), or a Training")
    return Training(model, batches, loss, optimizer)


def _subject(training: Training, clock: Clock, tell: Callable[[str], object]) -> Subject | Finding:
    """The training after its first pass, or the finding that there is none."""
    try:
        check_training(training)
    except OtherModelError as error:
        advice = "build the optimizer over the parameters of this model, after the last change to it"
        return Finding(
            "other_model", Status.BROKEN, str(error), advice, "its parameters begin to train", ("optimizer",)
        )
    except WorkloadError as error:
        return Finding("refused", Status.BROKEN, str(error), where=("optimizer",))
    try:
        with contained():
            return Subject(training, observing.look(training, lambda: clock.left), clock, tell=tell)
    except Exception as error:  # noqa: BLE001 - what a user's training raises is an answer
        found = raising.finding(error)
        return dataclasses.replace(found, advice=first_minute.advice(training, error) or found.advice or _ALONE)


def _refused(question: Question, finding: Finding) -> Answer:
    """Every question's answer where no pass can be made."""
    if question.id == ("signal" if finding.kind == "other_model" else "data"):
        return Answer(question.id, question.text, finding.text, (finding,))
    why = "no pass can be made" if finding.kind == "raises" else "it was not asked"
    return undecided(question.id, question.text, f"{why}: {finding.text}")


def _late(question: Question, subject: Subject) -> Answer:
    """The answer to a question that there is no time for."""
    short = f"{subject.pace}, and there was no time left for one"
    why = f"not measured: {short}: give a larger budget"
    finding = Finding("not_measured", Status.UNDECIDED, why, "give the check a larger budget")
    return Answer(question.id, question.text, why, (finding,))


def _asked(question: Question, subject: Subject) -> Answer:
    start = time.perf_counter()
    subject.found, subject.missed, subject.short = [], [], []
    try:
        with contained(), attributes_kept(subject.training), warnings.catch_warnings():
            # The first pass has let them through; what trials of other examples are warned of is not the user's.
            warnings.simplefilter("ignore", UserWarning)
            answer = question.ask(subject)
    except LoaderError as error:
        answer = _with(subject.found, _refused(question, raising.finding(error)))
    except WorkloadError as error:
        answer = _with(subject.found, undecided(question.id, question.text, str(error)))
    except Exception as error:  # noqa: BLE001 - one question's failure costs no other
        what = "not measured: what came after that" if subject.found else "it could not be asked"
        answer = _with(subject.found, undecided(question.id, question.text, f"{what}: {describe_error(error)}"))
    return dataclasses.replace(_told(answer, subject), seconds=time.perf_counter() - start)


def _with(found: Sequence[Finding], answer: Answer) -> Answer:
    """The answer of a question that failed, with what it had found by then."""
    worst = most_severe([*answer.findings, *found])
    says = worst.text if worst is not None and worst.status in {Status.BROKEN, Status.LOOK} else answer.says
    return dataclasses.replace(answer, says=says, findings=(*found, *answer.findings))


def _told(answer: Answer, subject: Subject) -> Answer:
    """The answer with what was not measured as a finding of its own."""
    missed, short = list(subject.missed), list(dict.fromkeys(subject.short))
    if not (missed or short):
        return answer
    if short:
        missed.append(f"for want of time, where {subject.pace}: {', '.join(short)}")
    text = f"not measured: {'; '.join(missed)}"
    advice = "give the check a larger budget" if short else ""
    says = f"{answer.says} ({text})" if answer.status is Status.FINE else answer.says
    finding = Finding("not_measured", Status.UNDECIDED, text, advice)
    return dataclasses.replace(answer, says=says, findings=(*answer.findings, finding))
