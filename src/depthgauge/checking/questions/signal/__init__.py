"""Does the signal reach the output, and the gradient the input?"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from depthgauge import nested, probe, seeding
from depthgauge.checking.answers import Answer, Finding, Measure, Status, most_severe
from depthgauge.checking.beginning import quietly
from depthgauge.checking.question import Question
from depthgauge.checking.questions.signal import (
    absent,
    alike,
    averages,
    copies,
    equal,
    frozen,
    holding,
    one_change,
    own_backward,
    passed_by,
    passing,
    remedies,
    reversing,
    telling,
    tied,
    unloaded,
    watching,
)
from depthgauge.checking.questions.signal import depth as depth_of
from depthgauge.checking.questions.signal.figure import draw
from depthgauge.checking.questions.signal.holders import gradients_kept, unregistered
from depthgauge.checking.questions.signal.kinds import KINDS
from depthgauge.checking.questions.signal.passing import Passed
from depthgauge.checking.questions.signal.watching import Watched
from depthgauge.checking.questions.signal.wiring import Wiring
from depthgauge.checking.steps import go_on
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import listed
from depthgauge.foreign import contained, describe_error
from depthgauge.seeding import Purpose
from depthgauge.workload import Training

BATCHES = 4  # that every pass looks at
MORE = 24  # batches, at most, in which a parameter without gradient is looked for
STEPS = 10  # of the training's own before it is looked at again: what begins at zero opens in one or two
ANEW = 30  # more, where all examples look alike by then: a codebook that follows means chooses anew within 20
COST = 4.0  # a pass that is looked at, in passes
_OF_WIRING = {
    "parameters without gradient": absent.findings, "what the optimizer holds": holding.findings,
    "frozen layers": frozen.findings, "weights that were never loaded": unloaded.findings,
    "weights that are copies": tied.findings,
}  # fmt: skip
_ALIKE = {
    "methods that autograd never calls": own_backward.findings, "towers that are copies": copies.findings,
    "examples that look alike": alike.findings,
}  # fmt: skip
_WATCHED = "what passes through attention, softmax and recurrent cells"
TRIALS = 5  # the weights as they are, three remedies, and what is measured beside
RATIO = "gradient at the first layers over that at the last"


@dataclass(frozen=True, eq=False)
class Later:
    """Changes that a few steps of the training's own make; `passed` is None where none were made.

    Attributes:
        passed: passes after them.
        steps: how many.
        equal: layers whose units are still equal.
        passage: by depth, after them.
        watched: what a watched pass shows after them.
    """

    passed: Passed | None = None
    steps: int = 0
    equal: tuple[Finding, ...] = ()
    passage: depth_of.Passage | None = None
    watched: Watched | None = None


def ask(subject: Subject) -> Answer:
    """Answer it."""
    others = unregistered(subject.training)
    with gradients_kept(others.values()):
        return _answer(subject, others)


def _answer(subject: Subject, others: dict[str, Tensor]) -> Answer:
    now = _passes(subject, others)
    later = _later(subject, others)
    if later.passed is None:
        _open(subject.training, now, others)
    wiring = Wiring(subject.training, now, later.passed, others, subject.seen.batch)
    found = subject.found
    subject.part("where what is not finite begins", lambda: _nonfinite(subject, now))
    for what, part in _OF_WIRING.items():
        subject.part(what, functools.partial(part, wiring))
    found += later.equal
    _averages(subject)
    for what, look in _ALIKE.items():
        subject.part(what, functools.partial(look, subject))
    watched = _watched(subject, others)
    if watched is not None:
        subject.part(_WATCHED, lambda: telling.findings(subject.training.model, watched, later.watched))
    found += _without_doubles(passed_by.of_units(now.units, later.passed.units if later.passed else None), found)
    depth = _depth(subject, sound=not any(each.kind == "nonfinite" for each in found))
    if isinstance(depth, Finding):
        found.append(depth)
        depth = None
    if depth and not any(each.kind == "saturated_units" for each in found):
        found += passed_by.of_clipped(now.units, later.passed.units if later.passed else None, depth)
    passage = list(passed_by.of_depth(depth, later.passage) if depth else ())
    if not any(_is_fault(each) for each in (*found, *passage)):  # which would say why
        subject.part("first steps with one thing changed", lambda: one_change.findings(subject))
    found += _advised(passage, found)
    if not any(each.requires_grad for each in subject.training.model.parameters()):
        found.append(Finding("not_measured", Status.UNDECIDED, "no parameter of the model trains", where=("model",)))
    alive = now.alive | (later.passed.alive if later.passed else set())
    says = _says(found, len(alive), depth, later)
    return Answer(QUESTION.id, QUESTION.text, says, tuple(found), _measure(depth), _tables(now, depth, later))


def _advised(passage: Iterable[Finding], found: list[Finding]) -> list[Finding]:
    """Findings of the passage, less wishes where a fault was found that may be their reason."""
    wrong = any(map(_is_fault, found))
    return [each for each in passage if not (wrong and QUESTION.all_kinds[each.kind].nature == "opportunity")]


def _is_fault(finding: Finding) -> bool:
    return finding.kind in KINDS and KINDS[finding.kind].nature == "fault"


def _averages(subject: Subject) -> None:
    what = "averages of the weights"
    if averages.may_follow(subject.training) and subject.fits(2 * averages.STEPS, what):
        subject.part(what, lambda: averages.findings(subject.training))


# -- passes ------------------------------------------------------------------------------------------------------------


def _passes(subject: Subject, others: dict[str, Tensor]) -> Passed:
    """Passes over the first batches, and over more while parameters are left without a gradient."""
    training, passed = subject.training, Passed()
    trained = {name for name, each in training.model.named_parameters() if each.requires_grad and each.numel()}
    fits = subject.count(COST * subject.seen.seconds, MORE, 0.25)
    batches = subject.batches(min(BATCHES, max(1, fits)))
    with training.untouched():
        passing.go(training, batches, passed, others=others)
        more = [] if trained <= passed.alive else subject.batches(fits)[len(batches) :]
        for batch in more:
            if trained <= passed.alive or not subject.clock.left:
                break
            try:
                passing.go(training, [batch], passed, others=others, units=False)
            except Exception:  # noqa: BLE001 - one of the user's later batches; those before it are enough
                break
    return passed


def _open(training: Training, passed: Passed, others: dict[str, Tensor]) -> None:
    """Draw what begins at zero, where no steps were made that open it, and look which parameters get a gradient."""
    trained = {name for name, each in training.model.named_parameters() if each.requires_grad and each.numel()}
    if trained <= passed.alive:
        return
    with training.untouched():
        passing.opened(training.model, seeding.generator(0, Purpose.WEIGHTS))
        opened = Passed()
        try:
            passing.go(training, training.first(), opened, others=others, units=False)
        except Exception:  # noqa: BLE001 - the user's code, which may raise in a later call; what was seen stands
            return
        passed.alive |= opened.alive


def _later(subject: Subject, others: dict[str, Tensor]) -> Later:
    """The same after a few steps of the training's own."""
    training, what = subject.training, "the same after the first steps"
    if training.optimizer is None or not subject.fits(4, what, 0.25, loads=2):
        return Later()
    steps = max(2, subject.count(subject.step, STEPS, 0.25))
    batches = subject.batches(2)
    with training.untouched():
        try:
            with contained():
                return _stepped(subject, batches, steps, others)
        except Exception as error:  # noqa: BLE001 - a step is the user's code
            subject.missed.append(f"{what}: {describe_error(error)}")
            return Later()


def _stepped(subject: Subject, batches: Sequence[Any], steps: int, others: dict[str, Tensor]) -> Later:
    """Make the steps and look; within `untouched()`."""
    training = subject.training
    before = {name: each.detach().clone() for name, each in training.model.named_parameters()}
    made = go_on(training, steps, lambda: bool(subject.clock.left))
    passed = Passed()
    passing.go(training, batches, passed, others=others)
    after = dict(training.model.named_parameters())
    moved = any(not torch.equal(before[name], each.detach()) for name, each in after.items())
    if not moved:  # with a rate of 0, what begins closed stays closed
        passing.opened(training.model, seeding.generator(0, Purpose.WEIGHTS))
        passing.go(training, batches[:1], passed, others=others, units=False)
    same = tuple(equal.findings(training.model, before, passed)) if moved else ()
    try:
        watched = watching.watch(training, batches[:1])
    except Exception:  # noqa: BLE001 - what is watched is not asked of every module: the other findings stand
        watched = None
    try:
        passage = depth_of.passage(training, batches[:1])
        if passed_by.is_collapsed(passage):
            go_on(training, ANEW, lambda: subject.clock.left > 0)
            passage = depth_of.passage(training, batches[:1])
    except Exception:  # noqa: BLE001 - as above; `_depth` says so
        passage = None
    return Later(passed, made, same, passage, watched)


def _watched(subject: Subject, others: dict[str, Tensor]) -> Watched | None:
    """What watched passes show at the weights as they are; parts whose gradient is reversed are looked for, too."""
    training = subject.training
    if not subject.fits(COST, _WATCHED, 0.25):
        return None
    batches = subject.batches(max(1, subject.count(COST * subject.seen.seconds, BATCHES, 0.25)))
    watched = None
    with training.untouched():
        try:
            with contained():
                watched = watching.watch(training, batches, others.values())
        except Exception as error:  # noqa: BLE001 - hooks in a user's module may meet anything
            subject.missed.append(f"{_WATCHED}: {describe_error(error)}")
        subject.part("parts whose gradient is reversed", lambda: reversing.findings(training, batches))
    return watched


def _nonfinite(subject: Subject, passed: Passed) -> Iterator[Finding]:
    """Where the first value that is not finite began, in a pass or in the first steps."""
    wrong = not all(map(math.isfinite, subject.seen.losses)) or passed.infinite
    if not wrong:
        return
    training = subject.training
    with training.untouched():
        passing.clear(training.model)
        try:
            with quietly(), probe.track(training.model) as record:
                for batch in subject.batches(BATCHES):
                    training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            first = record.first_nonfinite()
        except ValueError:  # compiled
            first = None
    if first is None:
        text = f"the gradient of {listed(sorted(passed.infinite)) if passed.infinite else 'the loss'} is not finite"
        yield Finding("nonfinite", Status.BROKEN, text, where=tuple(sorted(passed.infinite)[:12]) or ("loss",))
        return
    place = f"{first.layer}.{first.parameter}" if first.parameter else first.layer
    text = f"the first value that is not finite ({first.kind}) is in the {first.direction.replace('_', ' ')} of"
    text += f" `{place or 'the model'}`, before any step"
    where = tuple(dict.fromkeys((first.layer or "model", place or "model", *_inputs_too(subject))))
    advice = (
        f"look at what `{first.layer or 'the model'}` gets: a division, log or sqrt of 0, or inputs that are not finite"
    )
    yield Finding("nonfinite", Status.BROKEN, text, advice, where=where)


def _inputs_too(subject: Subject) -> tuple[str, ...]:
    tensors = [each for batch in subject.batches(BATCHES) for _, each in nested.tensors(batch)]
    return () if all(bool(each.isfinite().all()) for each in tensors if nested.inexact(each)) else ("batches",)


# -- depth -------------------------------------------------------------------------------------------------------------


def _depth(subject: Subject, *, sound: bool) -> passed_by.Depth | Finding | None:
    """The passage by depth and the remedies that were tried; a finding where it could not be measured."""
    training = subject.training
    if subject.clock.left < subject.seen.seconds + subject.seen.copies:
        why = f"{subject.pace}, and there was no time left for one"
        return Finding("not_measured", Status.UNDECIDED, f"the passage by depth was not measured: {why}")
    batches = subject.batches(BATCHES)[: max(1, subject.count(COST * subject.seen.seconds, BATCHES, 0.3))]
    try:
        with training.untouched():
            seen = depth_of.passage(training, batches)
    except Exception as error:  # noqa: BLE001 - hooks in a user's module may meet anything
        why = f"the passage by depth was not measured: {describe_error(error)}"
        return Finding("not_measured", Status.UNDECIDED, why)
    if not len(seen.table):
        return None
    if not sound:
        return passed_by.Depth(seen, None, ())
    steps = subject.count(subject.step * TRIALS, remedies.STEPS, 0.8, copies=2 * TRIALS)
    return passed_by.examine(training, seen, batches, steps, going=lambda: subject.clock.left > 0)


def _measure(depth: passed_by.Depth | None) -> Measure:
    if depth is None or math.isnan(depth.passage.decades):
        return Measure()
    low, high = (10**end for end in depth.passage.interval)
    count = len(depth.passage.reach)
    return Measure(RATIO, 10**depth.passage.decades, low, high, method=f"{count} batches, Student's t on its logarithm")


def _says(found: list[Finding], alive: int, depth: passed_by.Depth | None, later: Later) -> str:
    worst = most_severe(found)
    if worst is not None and worst.status in {Status.BROKEN, Status.LOOK}:
        return worst.text
    reached = f"all {alive} parameters that train get a gradient" if alive != 1 else "its one parameter gets a gradient"
    if not alive:
        return "no parameter of the model trains"
    reached += f", also after {later.steps} steps" if later.steps else ""
    undecided = next((each.text for each in found if each.status is Status.UNDECIDED), "")
    if depth is None or math.isnan(depth.passage.decades):
        return f"{reached}; {undecided}" if undecided else reached
    layers = [depth.passage.layers[place] for place in depth.passage.with_gradient]
    ratio = f"{10**depth.passage.decades:.2g} times that at {listed(layers[-1:])}"
    if later.passage is not None and not math.isnan(later.passage.decades):
        ratio += f" ({10**later.passage.decades:.2g} after {later.steps} steps)"
    return f"the gradient at {listed(layers[:1])} is {ratio}: it reaches the input; {reached}"


def _tables(passed: Passed, depth: passed_by.Depth | None, later: Later) -> dict[str, pd.DataFrame]:
    """The evidence: layers, activations, remedies."""
    units = [
        {"layer": each.layer, "activation": each.kind, "units": len(each.dead), "dead": each.dead_share,
         "saturated": each.flat_share}
        for each in passed.units.layers.values()
    ]  # fmt: skip
    tables = {"units": pd.DataFrame(units)} if units else {}
    if depth is None or not len(depth.passage.table):
        return tables
    tables["layers"] = depth.passage.table
    if later.passage is not None:
        after = later.passage.table.drop_duplicates("layer").set_index("layer")["backward_decades"]
        tables["layers"] = tables["layers"].assign(backward_decades_later=tables["layers"]["layer"].map(after))
    if depth.plain is not None:
        tried = [
            {"remedy": each.name or "none", "steps": each.steps, "loss_after": each.ended,
             "gradient_first_over_last": 10**each.decades}
            for each in (depth.plain, *depth.tried)
        ]  # fmt: skip
        tables["remedies"] = pd.DataFrame(tried)
    return tables


def _without_doubles(units: Iterator[Finding], found: list[Finding]) -> list[Finding]:
    """Findings about units, less those that are the reason of a gradient of zero."""
    named = {name for each in found if each.kind == "no_gradient" for name in each.where}
    return [each for each in units if not (set(each.where) & named and each.status is Status.BROKEN)]


QUESTION = Question(
    "signal",
    "Does the signal reach the output, and the gradient the input?",
    ask,
    share=2,
    kinds={**KINDS, **averages.KINDS},
    draw=draw,
)
