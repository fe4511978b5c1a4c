"""Do equal runs give equal numbers, and parts of a batch the batch's?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from depthgauge import nested
from depthgauge.checking.answers import Answer, Finding, Measure, Status
from depthgauge.checking.question import Question
from depthgauge.checking.questions.reproducibility import accumulating, future, mixing, repeating, saying
from depthgauge.checking.questions.reproducibility.drawing import draw
from depthgauge.checking.questions.reproducibility.holding import takes_on
from depthgauge.checking.subject import Subject
from depthgauge.foreign import contained, describe_error

if TYPE_CHECKING:
    import pandas as pd

TEXT = "Do equal runs give equal numbers, and parts of a batch the batch's?"
OVERHEAD = 1.5  # a step under observation, against one without: checksums, copies of what is put back
FEW = 0.35  # a forward pass of at most 8 examples against a pass over the batch, forward and backward, at most
PASSES, CUTS = 14, 12  # passes of few examples, and of a batch or its halves, that the two last parts take
SINGLE = 0.3  # seconds' share that single examples' gradients may take


@dataclass
class _Asked:
    """What has been found so far."""

    subject: Subject
    findings: list[Finding] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    measure: Measure = field(default_factory=Measure)
    epsilon: float = 0.0

    def found(self, finding: Finding | None, otherwise: str) -> None:
        """Take a finding in, or what is said where there is none."""
        if finding is not None:
            self.findings.append(finding)
        self.said.append(finding.text.rstrip(".") if finding is not None else otherwise)

    def fits(self, passes: float) -> bool:
        """Tell whether so many passes over the batch fit into the time left."""
        return passes * self.subject.seen.seconds <= self.subject.clock.left


def ask(subject: Subject) -> Answer:
    """Run the first steps twice, replace an example and a token, and cut the batch."""
    asked = _Asked(subject)
    parts: dict[str, Callable[[_Asked], None]] = {
        "two equal runs": _repeated, "examples of one batch": _mixed, "parts of a batch": _accumulated
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
        asked.said.append(text.rstrip("."))
    return Answer("reproducibility", TEXT, "; ".join(asked.said) + ".", tuple(findings), asked.measure, asked.tables)


def _repeated(asked: _Asked) -> None:
    """Two equal runs."""
    subject = asked.subject
    steps = subject.clock.count(2 * OVERHEAD * subject.seen.seconds, repeating.STEPS, 0.45)
    if not steps:
        asked.missing.append(
            f"two equal runs take {2 * OVERHEAD * subject.seen.seconds:.2g} s a step, longer than there is"
        )
        return
    batches = subject.batches(steps)
    batches = [batches[step % len(batches)] for step in range(steps)]
    one, other = (repeating.run(subject.training, batches) for _ in range(2))
    found = repeating.compared(one, other)
    asked.epsilon, asked.tables["equal runs"] = repeating.epsilon_of(one), found.table
    asked.measure = Measure(
        "tensors that differ between two equal runs", float(found.table["different"].sum()), unit=f"of {found.tensors}"
    )
    if found.first is not None and found.difference > found.rounding and takes_on(subject.training):
        asked.said.append("two runs cannot be compared: the loss takes from an iterator, which goes on")
        return
    asked.found(
        saying.repeated(found),
        f"two equal runs of {found.steps} steps have the same bits in all {found.tensors} tensors",
    )


def _mixed(asked: _Asked) -> None:
    """Examples of one batch, tokens of a sequence, calls of a model."""
    training, batch = asked.subject.training, asked.subject.seen.batch
    if not asked.fits(FEW * PASSES):
        asked.missing.append("whether examples of a batch are mixed: there was no time for it")
        return
    found = mixing.mixed(training, batch)
    if found.why:
        asked.said.append(f"whether examples are mixed was not tried: {found.why}")
    else:
        same = "has the same bits" if found.moved == 0 else f"moves by {saying.share(found.moved)}, as rounding does,"
        asked.found(
            saying.mixed(found, surely=mixing.by_example(training, batch)),
            f"an example's output {same} when another of its batch is replaced",
        )
    part = mixing.bearable(training, batch)
    part = batch if part is None else part
    if found.repeats and (kept := saying.carried(mixing.carries(training, part))) is not None:
        asked.found(kept, "")
    later = future.future(training, part)
    if later.moved == later.moved:  # it is a model of next tokens
        asked.found(saying.future(later), "no output depends on a later token")


def _accumulated(asked: _Asked) -> None:
    """Parts of a batch."""
    training, batch, clock = asked.subject.training, asked.subject.seen.batch, asked.subject.clock
    if not asked.fits(CUTS):
        asked.missing.append("whether parts of a batch make up its gradient: there was no time for it")
        return
    end = clock.left * (1 - SINGLE)
    found = accumulating.accumulated(training, batch, asked.epsilon, lambda: clock.left > min(end, 0.2 * clock.seconds))
    if found.table is not None:
        asked.tables["parts of a batch"] = found.table
    if found.why:
        asked.said.append(f"whether parts of a batch make up its gradient was not told: {found.why}")
        return
    surely = mixing.by_example(training, batch) or bool(nested.rows(batch))
    asked.found(
        saying.accumulated(found, surely=surely),
        f"the halves' mean gradient is the batch's to {saying.share(found.apart)}",
    )


QUESTION = Question("reproducibility", TEXT, ask, share=1.5, kinds=saying.KINDS, draw=draw)
