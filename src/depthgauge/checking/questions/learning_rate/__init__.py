"""Is the learning rate right?

The user's own optimizer makes a few steps at several times its rates, each from the same weights on the same batches:
what the present rate reaches is held against what others reach in as many steps. A range test suggests a rate with its
interval, and the sharpness says from where on steps would diverge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from depthgauge import learning_rate as range_test
from depthgauge.checking.answers import Answer, Finding, Measure, Status, undecided
from depthgauge.checking.beginning import Begun
from depthgauge.checking.parameters import held_by
from depthgauge.checking.question import Question
from depthgauge.checking.questions.learning_rate import branches, decaying, groups, kinds, ladder, schedules, stepping
from depthgauge.checking.questions.learning_rate.branches import Branches
from depthgauge.checking.questions.learning_rate.figure import draw
from depthgauge.checking.questions.learning_rate.judging import (
    Evidence,
    diverged,
    judged,
    low,
    no_gauge,
    nothing,
    tiny,
)
from depthgauge.checking.questions.learning_rate.learnt import learnt
from depthgauge.checking.questions.learning_rate.longer import lengthened
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.questions.learning_rate.stability import A_PRODUCT, Stability, stability
from depthgauge.checking.questions.learning_rate.warming import warmed
from depthgauge.checking.questions.signal.holders import unregistered
from depthgauge.checking.steps import set_rates
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent
from depthgauge.updating import takes_closure
from depthgauge.workload import Training, WorkloadError

A_STEP = 1.4  # times a pass, until one was timed: what an optimizer adds
EVALUATION = ladder.BATCHES // 3  # steps that the losses of the batches afterwards cost as much as
RUNGS = 5  # that a ladder has as a rule
SHARES = {
    "made-up steps": 0.15,
    "ladder": 0.5,
    "ladder alone": 0.9,
    "sharpness": 0.25,
    "branches": 0.5,
    "loading": 0.1,
    "sweep": 0.7,
}  # of the time that is left when each begins
SWEEPS = 5  # of a range test: the fewest that have an interval
SWEEP_BATCHES = 24  # whose losses a range test is held against
NEW_STEPS = kinds.LONGER * ladder.STEPS + 3 * branches.BATCHES  # at a rate that seems too small, and on new batches
LATE_STEPS = kinds.LONGER * ladder.STEPS + 3 * kinds.MANY_STEPS  # the same with more on new batches
BELOW, ABOVE = 0.1, 30.0  # times the ladder's best rate: range of the range test
SWEEP_STEPS = 26  # steps of a sweep, as a rule: it ends where the loss has doubled


def ask(subject: Subject) -> Answer:
    """Answer it."""
    training = subject.training
    if training.optimizer is None:
        return undecided(QUESTION.id, QUESTION.text, "without an optimizer there is no learning rate to be judged")
    rates = Rates.of(training.optimizer)
    settings = subject.found
    settings += groups.read(training, rates, subject.seen.gradients)
    settings += groups.maximizes(training, subject.seen)
    if not rates.largest:
        return _at_zero(settings)
    if why := _untried(subject, rates):
        return _unmeasured(settings, why)
    walked = _walked(subject, rates)
    long = any(each.kind in {"momentum", "betas", "dampened"} for each in settings)
    settings += (each for each in stepping.findings(walked) if not (long and each.kind == "endless_sum"))
    if not max(rates.present) and schedules.unsteered(training.optimizer, rates, walked.rates):
        finding = schedules.idle(rates, walked.steps)
        return Answer(QUESTION.id, QUESTION.text, finding.text, (finding, *settings), finding.measure)
    second = A_STEP * subject.seen.seconds
    share = SHARES["ladder"]
    steps = _fitting(subject, second, share, ladder.STEPS)
    if steps < ladder.FEWEST:
        share = SHARES["ladder alone"]
        steps = _fitting(subject, second, share, ladder.FEWEST)
    if steps < ladder.FEWEST:
        left = f"{subject.clock.left:.2g} s do not hold {ladder.FEWEST} steps at {RUNGS} rates"
        return _unmeasured(
            settings,
            f"a step takes {second:.2g} s, {subject.pace}, and {left}: give a larger budget, or smaller batches",
        )
    begun, batches = subject.begun, subject.batches(ladder.BATCHES)
    clock, copies = subject.clock.part(share), subject.seen.copies
    rungs = ladder.climb(training, rates, batches, steps, lambda took: clock.left > steps * max(second, took) + copies)
    if schedules.unsteered(training.optimizer, rates, walked.rates):
        settings += schedules.low(training, rates, batches, rungs, walked.steps)
    moves = rates.scheduled or walked.rates not in {(), rates.present}
    if moves and subject.clock.left > 2 * kinds.SCHEDULED * (second + subject.step):
        settings += schedules.ended(training, rates, batches)
    told = any(each.kind == "decay_dominates" for each in settings)
    if not told and decaying.asked(training, rates) and subject.clock.left > 3 * decaying.STEPS * second:
        settings += decaying.findings(training, rates, batches, rungs)
    return _climbed(subject, rates, rungs, begun)


def _untried(subject: Subject, rates: Rates) -> str:
    """The reason why no rate can be tried; empty where it can."""
    if branches.warming(rates) and rates.largest == 1:
        return "its schedule scales a rate of 1, as one does that returns the rate itself: its peak is not known"
    optimizer = subject.training.optimizer
    if optimizer is not None and takes_closure(optimizer):
        called = type(optimizer).__name__
        return f"{called} takes a closure and searches its step itself: its rate was not tried"
    if not math.isfinite(subject.seen.loss):
        return f"the loss is {subject.seen.loss} before the first step, so that no rate can be judged"
    return ""


def _walked(subject: Subject, rates: Rates) -> stepping.Walked:
    """Steps on made-up gradients; none where they fail, as own steps then say better."""
    clock = subject.clock.part(SHARES["made-up steps"])
    if stepping.OWN * A_STEP * subject.seen.seconds + subject.seen.copies > clock.left:
        return stepping.Walked()
    try:
        return stepping.walk(subject.training, rates, subject.batches(stepping.OWN), lambda: clock.left)
    except Exception:  # noqa: BLE001 - an optimizer may insist on gradients of its own loss
        return stepping.Walked()


def _fitting(subject: Subject, second: float, share: float, most: int) -> int:
    """Steps a rung, at most so many, that a share of the time holds."""
    return min(most, subject.count(second, RUNGS * (most + EVALUATION), share, copies=RUNGS) // RUNGS - EVALUATION)


def _climbed(subject: Subject, rates: Rates, rungs: ladder.Ladder, begun: Begun | None) -> Answer:
    """The answer once rates were tried: a range test, the sharpness, and what follows."""
    if len(rungs.rungs) == 1 and math.isfinite(rungs.here.fall):
        return _unmeasured(subject.found, f"steps took {rungs.here.seconds:.2g} s, which left no time for other rates")
    training, batches = subject.training, subject.batches(ladder.BATCHES)
    second = float(np.median([rung.seconds for rung in rungs.rungs]))
    stable = stability(training, rates, batches, subject.count(A_PRODUCT * second, 30, SHARES["sharpness"]))
    already = learnt(training, batches, rungs.before)
    more = None
    if low(rungs) and rungs.steps >= ladder.STEPS and not already:
        many = subject.count(second, LATE_STEPS, SHARES["branches"])
        if tiny(rungs) or many == LATE_STEPS:
            new = _many(subject) if many >= NEW_STEPS else batches
            more = lengthened(training, rates, new, rungs, kinds.MANY_STEPS if many == LATE_STEPS else 0)
    grown = _grown(subject, rates, rungs, second)
    suggested = _suggested(subject, rates, rungs, second)
    seen = Evidence(rates, rungs, begun, already, suggested, more, _game(subject), grown)
    findings = subject.found
    findings += judged(seen)
    if not any(finding.kind in {"diverges", "rate_too_large", "no_progress"} for finding in findings):
        findings.extend(warmed(training, rates, batches, rungs))
    return Answer(
        QUESTION.id, QUESTION.text, _says(seen, stable), tuple(findings), seen.suggested, _tables(seen, stable)
    )


def _at_zero(settings: Sequence[Finding]) -> Answer:
    finding = Finding(
        "rate_zero", Status.BROKEN,
        "every learning rate of the optimizer is 0, and no schedule raises it: no weight moves",
        "set lr to 1e-3 for Adam or 1e-2 for SGD, and ask again", "the weights train", ("optimizer",),
        Measure("learning rate", 0.0),
    )  # fmt: skip
    return Answer(QUESTION.id, QUESTION.text, finding.text, (finding, *settings), finding.measure)


def _unmeasured(settings: Sequence[Finding], why: str) -> Answer:
    """An answer with what the settings alone show."""
    answer = undecided(QUESTION.id, QUESTION.text, why)
    return Answer(QUESTION.id, QUESTION.text, why, (*settings, *answer.findings))


def _grown(subject: Subject, rates: Rates, rungs: ladder.Ladder, second: float) -> Branches | None:
    """Branches at the present rate and at smaller ones; None where far larger ones are better, or time is short."""
    if rungs.best.factor >= kinds.SMALL_FACTOR or no_gauge(rungs):
        return None
    if math.isinf(rungs.here.fall) and not branches.warming(rates):
        return None
    steps = subject.count(second, 3 * branches.MOST + 2 * branches.FIRST, SHARES["branches"])
    if steps < 2 * kinds.FEWEST_STEPS:
        return None
    return branches.compared(subject.training, rates, _many(subject), steps, rungs.start)


def _many(subject: Subject) -> list[Any]:
    """As many batches as a branch goes round, or fewer where a loader takes long."""
    return subject.batches(branches.BATCHES, SHARES["loading"])


def _game(subject: Subject) -> bool:
    """Tell whether the loss passes through weights that this optimizer does not hold, and that train elsewhere."""
    training = subject.training
    held = set(map(id, held_by(training.optimizer)))
    named = dict(training.model.named_parameters())
    given = [named[name] for name, each in subject.seen.gradients.items() if each is not None and each.largest > 0]
    others = (each for name, each in unregistered(training).items() if name.startswith("loss."))
    return any(id(each) not in held for each in (*given, *others))


def _suggested(subject: Subject, rates: Rates, rungs: ladder.Ladder, second: float) -> Measure:
    """A range test around the ladder's best rate; that rate itself where the test has no time or no answer."""
    name, best = "suggested learning rate", rungs.best.factor * rates.largest
    if nothing(rungs) or not math.isfinite(rungs.start):
        return Measure(name)
    short = f"the best of {len(rungs.rungs)} rates, {rungs.steps} steps each"
    wanted = SWEEPS * SWEEP_STEPS + SWEEP_BATCHES // 3
    if subject.count(second, wanted, SHARES["sweep"]) < wanted:
        return Measure(name, best, method=f"{short}; there was no time for a range test, which has an interval")
    training = subject.training
    taken = Training(training.model, subject.batches(SWEEP_BATCHES), training.loss, training.optimizer)
    try:
        with training.untouched():
            set_rates(training.optimizer, rates.peak)
            found = range_test.find(taken, low=BELOW * best, high=ABOVE * best, repetitions=SWEEPS)
    except WorkloadError as error:
        return Measure(name, best, method=f"{short}; a range test is undecided: {error}")
    if found.undecided:
        return Measure(name, best, method=f"{short}; a range test is undecided: {found.undecided}")
    method = (
        f"range test, {SWEEPS} sweeps over {found.batches} batches, 95 % interval for the rate that tuning would choose"
    )
    return Measure(name, found.value, found.low, found.high, method=method)


def _says(seen: Evidence, stable: Stability) -> str:
    """The answer in a sentence, whatever was found."""
    rungs = seen.ladder
    start = f"{rungs.start:.{ladder.digits(rungs.start, rungs.here.fall)}g}"
    peak = " (the peak of its schedule)" if seen.rates.scheduled else ""
    if diverged(seen):
        text = f"at the rate {seen.rates}{peak} the loss is not finite within the first steps"
    elif nothing(rungs):
        text = f"the loss, {rungs.start:.3g}, falls at no rate that was tried"
        text += f", as of a model that has learnt already ({seen.learnt})" if seen.learnt else ""
    else:
        text = (
            f"the rate {seen.rates}{peak} takes the loss from {start} to {rungs.after(rungs.here)} in"
            f" {rungs.steps} steps, {percent(max(rungs.share, 0))} of the fall of the best of {len(rungs.rungs)} rates"
        )
        if seen.learnt and low(rungs):
            text += f"; a small rate is sound here, as {seen.learnt}"
    if math.isfinite(seen.suggested.low):
        found = seen.suggested
        text += f"; a range test suggests {found.value:.2g} ({found.low:.2g} to {found.high:.2g})"
    if math.isfinite(stable.value):
        text += f"; steps are stable below {stable.value:.2g} now"
        if seen.rates.largest > stable.value and rungs.here.fall > ladder.least(rungs.before):
            text += ", and the loss falls above it, too"
    return text


def _tables(seen: Evidence, stable: Stability) -> dict[str, Any]:
    import pandas as pd  # noqa: PLC0415 - of the evidence alone

    tables = {
        "rates": seen.ladder.to_frame(seen.rates.largest),
        "stability": pd.DataFrame([{"rate": seen.rates.largest, **vars(stable)}]),
    }
    if seen.begun is not None:
        tables["first_steps"] = pd.DataFrame({"step": range(len(seen.begun.losses)), "loss": seen.begun.losses})
    return tables


QUESTION = Question("learning_rate", "Is the learning rate right?", ask, share=3, kinds=kinds.KINDS, draw=draw)
