"""The smallest batch of an epoch, as a rule the last: its loss may be no number where those before it have one."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.data.batches import MOST
from depthgauge.checking.steps import losses
from depthgauge.checking.subject import Subject

SHARE = 0.05  # of the time, for reading the batches of an epoch


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield that the loss of the smallest batch is not finite, where that of the first is."""
    if not math.isfinite(subject.seen.loss) or not subject.fits(2, "the loss of the smallest batch"):
        return
    taken = subject.batches(min(MOST, max(5, subject.count(subject.seen.seconds, MOST, SHARE))))
    sizes = [nested.examples(batch) for batch in taken]
    place = min(range(len(sizes)), key=sizes.__getitem__)
    if sizes[place] >= sizes[0] or place < len(subject.seen.losses):
        return
    with subject.training.untouched(), torch.enable_grad():
        try:
            loss = losses(subject.training, [taken[place]])[0]
        except Exception:  # noqa: BLE001 - the user's code; batch normalization of one value raises, and is told apart
            return
    if not math.isfinite(loss):
        yield Finding(
            "nonfinite_loss", Status.BROKEN,
            f"the loss of batch {place + 1}, which holds {sizes[place]} where others hold {sizes[0]}, is {loss:g}: a"
            " statistic of so few is no number, as the standard deviation of one",
            "drop the last batch where it is smaller (drop_last=True), or take its statistics over the whole epoch",
            "every step has a gradient", ("batches", "loss"), Measure("examples of the smallest batch", sizes[place]),
        )  # fmt: skip
