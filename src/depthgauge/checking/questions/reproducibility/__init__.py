"""Equal runs and their numbers; parts of a batch, and examples that share one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from depthgauge.checking.answers import Answer, Finding, Measure, Status
from depthgauge.checking.attributes import left_changed, takes_on
from depthgauge.checking.question import Question
from depthgauge.checking.questions.reproducibility import (
    accumulating,
    future,
    handing,
    mixing,
    ordering,
    repeating,
    reseeding,
    saying,
    shared,
)
from depthgauge.checking.questions.reproducibility.figure import draw
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import listed, percent
from depthgauge.foreign import contained, describe_error

if TYPE_CHECKING:
    import pandas as pd

TEXT = "Do equal runs give equal numbers, and parts of a batch the batch's?"
OVERHEAD = 1.5  # a step under observation, against one without: checksums, copies of what is put back
PASSES, CUTS = 14, 12  # passes of few examples, and of a batch or its halves, that the two last parts take
KEPT = 0.2  # of the time, that single examples' gradients leave

_TIES = {
    "keeps_state": "the model keeps something from call to call",
    "hands_on_state": "the model keeps something from call to call",
    "examples_meet": "examples of a batch meet in the model",
    "mixes_examples": "the model mixes examples",
    "shared_number": "examples share a number of their batch",
}


@dataclass
class _Asked:
    """What has been found so far."""

    subject: Subject
    findings: list[Finding]
    said: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    measure: Measure = field(default_factory=Measure)
    epsilon: float = 0.0

    def found(self, finding: Finding | None, otherwise: str) -> None:
        """Take a finding in, or what is said where there is none."""
        if finding is not None:
            self.findings.append(finding)
        self.said.append(saying.in_short(finding) if finding is not None else otherwise)

    def fits(self, passes: float) -> bool:
        """Tell whether so many passes over the batch, each put back by itself, fit into the time left."""
        seen = self.subject.seen
        return passes * (seen.seconds + seen.copies) <= self.subject.clock.left


def ask(subject: Subject) -> Answer:
    """Run the first steps twice, replace an example and a token, and cut the batch."""
    asked = _Asked(subject, subject.found)
    parts: dict[str, Callable[[_Asked], None]] = {
        "two equal runs": _repeated, "seeds in a step": _reseeded, "examples of one batch": _mixed,
        "parts of a batch": _accumulated
    }  # fmt: skip
    for name, part in parts.items():
        try:
            with contained():
                part(asked)
        except Exception as error:  # noqa: BLE001 - what fails of one part costs no other
            asked.missing.append(f"{name}: {describe_error(error)}")
    findings = list(asked.findings)
    if asked.missing:
        text = f"Not measured: {'; '.join(asked.missing)}."
        findings.append(Finding("not_measured", Status.UNDECIDED, text))
        asked.said.append(text[0].lower() + text[1:-1])
    broken = next((finding for finding in findings if finding.status is Status.BROKEN), None)
    says = broken.text if broken else "; ".join(asked.said)
    return Answer("reproducibility", TEXT, says, tuple(findings), asked.measure, asked.tables)


def _repeated(asked: _Asked) -> None:
    """Two equal runs."""
    subject = asked.subject
    steps = subject.count(2 * OVERHEAD * subject.seen.seconds, repeating.STEPS, 0.45, copies=2)
    if not steps:
        asked.missing.append(
            f"two equal runs take {2 * OVERHEAD * subject.seen.seconds:.2g} s a step, longer than there is"
        )
        return
    subject.tell("two equal runs")
    batches = subject.batches(steps)
    batches = [batches[step % len(batches)] for step in range(steps)]
    with left_changed(subject.training) as changed:
        one, other = (repeating.run(subject.training, batches) for _ in range(2))
    found = repeating.compared(one, other)
    asked.epsilon, asked.tables["equal runs"] = repeating.epsilon_of(one), found.table
    asked.measure = Measure(
        "tensors that differ between two equal runs", float(found.table["different"].sum()), unit=f"of {found.tensors}"
    )
    if found.first is not None and found.difference > found.rounding and takes_on(subject.training):
        asked.said.append("two runs cannot be compared: the loss takes from an iterator, which goes on")
        return
    if found.first is not None and changed:
        asked.missing.append(f"two equal runs: {listed(changed)} is written to, and too large to be put back")
        return
    count = f"{found.steps} steps" if found.steps > 1 else "one step"
    asked.found(
        saying.repeated(found),
        f"equal runs of {count} have the same bits in all {found.tensors} tensors",
    )


def _reseeded(asked: _Asked) -> None:
    """Generators that a step sets to one state, and a loader whose generator nobody has set to any."""
    for part in (ordering, reseeding):
        if part is ordering or asked.subject.fits(2 * len(reseeding.SEEDS), "seeds in a step"):
            for each in part.findings(asked.subject):
                asked.findings.append(each)
                asked.said.append(each.text)


def _mixed(asked: _Asked) -> None:
    """Examples of one batch, tokens of a sequence, calls of a model."""
    training, batch, clock = asked.subject.training, asked.subject.seen.batch, asked.subject.clock
    start = clock.left
    part = mixing.bearable(training, batch) if asked.fits(1) else None
    if (start - clock.left) * PASSES > clock.left or not asked.fits(1):
        asked.missing.append("whether examples of a batch are mixed: there was no time for it")
        return
    found = mixing.mixed(training, batch, part)
    if found.why:
        asked.said.append(f"whether examples are mixed was not told: {found.why}")
    else:
        same = "has the same bits" if found.moved == 0 else f"moves by {percent(found.moved)}, as rounding does,"
        surely = mixing.by_example(training, batch)
        told = saying.mixed(found, surely=surely)
        if surely and found.repeats and not found.meant and (told is None or told.kind == "examples_meet"):
            met = shared.shared(training, part)
            told = told if met is None else saying.shared(*met)
        asked.found(told, f"an example's output {same} whatever else is in its batch")
    part = batch if part is None else part
    noise = max((each.measure.value for each in asked.findings if each.kind == "order_of_sums"), default=0.0)
    if found.repeats and (kept := saying.carried(mixing.carries(training, part), noise)) is not None:
        handed = handing.handed_on(training)
        asked.found(saying.handed_on(handed) if handed else kept, "")
    later = future.future(training, part)
    if later.moved == later.moved:  # it is a model of next tokens
        asked.found(saying.future(later), "no output depends on a later token")


def _accumulated(asked: _Asked) -> None:
    """Parts of a batch."""
    training, batch, clock = asked.subject.training, asked.subject.seen.batch, asked.subject.clock
    if not asked.fits(CUTS):
        asked.missing.append("whether parts of a batch make up its gradient: there was no time for it")
        return
    if meeting := [each.kind for each in asked.findings if each.kind in _TIES]:
        asked.said.append(f"whether parts of a batch make up its gradient was not told, for {_TIES[meeting[0]]}")
        return
    found = accumulating.accumulated(training, batch, asked.epsilon, lambda: clock.left > KEPT * clock.seconds)
    if found.table is not None:
        asked.tables["parts of a batch"] = found.table
    if found.why:
        asked.said.append(f"whether parts of a batch make up its gradient was not told: {found.why}")
        return
    asked.found(
        saying.accumulated(found),
        f"the mean gradient of two halves is the batch's to {percent(found.apart)}",
    )


QUESTION = Question("reproducibility", TEXT, ask, share=1.5, kinds=saying.KINDS, draw=draw)
