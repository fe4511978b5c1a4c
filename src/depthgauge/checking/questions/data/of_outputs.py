"""The questions about what a loss makes of the model's outputs, which are caught once."""

from __future__ import annotations

import math
from collections.abc import Iterator

from depthgauge.checking.answers import Finding
from depthgauge.checking.questions.data import axes, floors, held, meaning
from depthgauge.checking.questions.data.outputs import caught
from depthgauge.checking.subject import Subject

PASSES = 40  # that it may take, of the loss without its model's part

KINDS = {**meaning.KINDS, **axes.KINDS, **floors.KINDS}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what is found with the model's outputs caught, and others in their place."""
    training, seen = subject.training, subject.seen
    if not math.isfinite(seen.loss) or not subject.fits(PASSES, "the loss of other outputs"):
        return
    with training.untouched():
        outputs = caught(training, seen.batch)
        if outputs is None:
            return
        pairs = held.against(outputs)
        yield from meaning.findings(subject, outputs, pairs)
        yield from axes.findings(subject, outputs, pairs)
        yield from floors.findings(outputs, pairs)
