"""The cost of a step: its phases, arithmetic and memory, and what would save most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from depthgauge.checking.answers import Answer, Finding, Measure, most_severe, undecided
from depthgauge.checking.question import Question
from depthgauge.checking.questions.cost import phases as timed
from depthgauge.checking.questions.cost import room, saying, trying
from depthgauge.checking.questions.cost.figure import draw
from depthgauge.checking.subject import Subject

TEXT = "What does a step cost, and what would save most?"
STEPS = 30  # that are timed at most: a median's 95 % interval takes 6
SHARE = 0.3  # of the time, for them
COUNTED = 6  # passes that counting of operations and of tensors takes, each of which is slower than a plain one


def ask(subject: Subject) -> Answer:
    """Time the phases of the first steps; count operations and bytes; try what may save."""
    clock, seen, training = subject.clock, subject.seen, subject.training
    if (1.5 * seen.seconds + subject.load) * (timed.WARM + 1) > clock.left:
        text = f"{subject.pace}, forward and backward; phases, memory and savings were not measured"
        answer = undecided("cost", TEXT, f"{text}: there was time for {clock.left / seen.seconds:.1f} passes")
        return replace(answer, measure=Measure("time of a pass", 1e3 * seen.seconds, unit="ms", method="one pass"))
    end = clock.left * (1 - SHARE)
    found = timed.phases(training, STEPS, lambda: clock.left > end)
    kept = subject.found
    kept += filter(None, (saying.slow_loader(training, found), saying.anomaly_mode()))
    tables = {"phases": found.table()}
    fraction, place, reads = math.nan, None, 0
    missing = []
    if COUNTED * found.step.value < clock.left:
        fraction = _fraction(subject, found)
        place = room.room(training, seen.batch, found.device)
        tables["memory"] = place.table
        with training.untouched(), trying.waits() as counts:
            training.value(seen.batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        reads = counts[0]
    else:
        missing.append("operations and memory were not counted, for want of time")
    tries = trying.Tries(training, seen.batch, found, lambda seconds: seconds < clock.left)
    savings = sorted(tries.all(), key=lambda each: each.expected)
    if savings:
        tables["tried"] = trying.table(savings)
    kept += filter(None, (saying.synchronizing(reads, found), *map(saying.saving, savings)))
    said = [*saying.summary(found, fraction, place), *missing, _largest(kept, savings, tries.skipped)]
    return Answer("cost", TEXT, "; ".join(said), tuple(kept), saying.step_measure(found), tables)


def _fraction(subject: Subject, found: timed.Phases) -> float:
    """The step's arithmetic over what the device does at most in that time; NaN where there is none."""
    counted = timed.arithmetic(subject.training, subject.seen.batch)
    seconds = found.phase("forward").value + found.phase("backward").value
    if not counted.flops or counted.dtype not in {"float32", "float64", "bfloat16", "float16"}:
        return math.nan
    return counted.flops / seconds / timed.peak(found.device, counted.dtype)


def _largest(findings: Sequence[Finding], savings: list[trying.Saving], skipped: list[str]) -> str:
    """The largest saving in words, or what was tried in vain."""
    if (most := most_severe(findings)) is not None:
        return "what would save most: " + ", ".join(filter(None, (most.advice, most.expected)))
    short = [name for name, _, why in (each.partition(": ") for each in skipped) if why == "no time"]
    rest = f"; for want of time not tried: {', '.join(short)}" if short else ""
    return ("nothing that was tried saves 5 %" if savings else "no saving was tried") + rest


QUESTION = Question("cost", TEXT, ask, share=1.5, kinds=saying.KINDS, draw=draw)
