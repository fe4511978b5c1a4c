"""Is the loss a sum over examples, and what would its mean do?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status, Tried
from depthgauge.checking.questions.data.seeing import loss_of
from depthgauge.checking.steps import step
from depthgauge.checking.subject import Subject
from depthgauge.updating import takes_closure
from depthgauge.workload import Training

SUMMED = 0.02  # of the ratio, in evaluation mode: what noise of the loss's own may move it
BETTER = 0.9  # of the loss after the steps, that a mean must reach against a sum: more than batches differ
STEPS = 20
SECONDS = 0.3  # of either

KINDS = {
    "summed_loss": Kind(
        "fault",
        f"the loss doubles with the batch, and after {STEPS} of its own steps the mean over examples is below"
        f" {BETTER:g} of the loss that the sum reaches",
    ),
    "divided_twice": Kind(
        "fault", "two and three times the batch have a half and a third of the loss: a mean is divided by their number"
    ),
    "grows_with_batch": Kind("property", "the loss is a sum over examples: its gradient grows with the batch"),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Tell whether the loss is a sum over examples, and what its mean would do."""
    training, count = subject.training, subject.seen.examples
    if count is None or count < 2 or not subject.seen.loss:
        return
    power = _power(training, subject.seen.batch) if subject.fits(6, "whether the loss is a sum over examples") else None
    if power == -1:
        yield _divided(subject.seen.loss, count)
    if power != 1:
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
            f"use {tried.what} (reduction='mean'), or divide the rate by as much",
            f"{tried.after:.4g} an example after as many steps", ("loss",), measure, tried,
        )  # fmt: skip
    else:
        yield Finding(
            "grows_with_batch", Status.LOOK, f"{text}, so that its gradient grows with the batch",
            "divide the rate by as much as a batch grows, or use the mean over examples",
            "another batch size, or a last batch that is smaller, asks for no other rate", ("loss",), measure,
        )  # fmt: skip


def _power(training: Training, batch: Any) -> int | None:
    """The power of the number of examples that the loss goes by, where two and three times the batch agree in it."""
    with training.untouched():
        training.model.eval()  # for batch normalization and dropout, one example is not like its copy
        loss = loss_of(training, batch)
        found = set()
        for times in (2, 3):
            try:
                value = loss_of(training, nested.mapped(batch, partial(_repeated, times)))
            except Exception:  # noqa: BLE001 - rows that are no examples, as of a graph
                return None
            powers = (p for p in (-1, 0, 1) if abs(value - times**p * loss) < SUMMED * abs(times**p * loss))
            found.add(next(powers, None))
    return found.pop() if len(found) == 1 else None


def _divided(loss: float, count: int) -> Finding:
    return Finding(
        "divided_twice", Status.LOOK,
        f"twice the examples give half the loss ({loss:.4g} for {count}): a mean is divided by their number once more",
        f"divide once (the loss of this batch is then {count * loss:.4g}), and keep the rate",
        f"gradients are {count} times as large, and do not shrink as a batch grows", ("loss",),
        Measure("loss of twice the examples over loss", 0.5),
    )  # fmt: skip


def _repeated(times: int, tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor] * times)


def _as_mean(subject: Subject, count: int) -> Tried | None:
    """The loss an example after own steps, of the sum and of its mean over examples, or over all numbers."""
    reached = _stepped(subject, 1.0) / count
    after, over = _stepped(subject, 1.0 / count) / count, "examples"
    numbers = max((len(term.targets) for term in subject.seen.graph.terms if term.form == "regression"), default=0)
    if not math.isfinite(reached) and not math.isfinite(after) and numbers > count:
        after, over = _stepped(subject, 1.0 / numbers) / count, "all numbers"
    if math.isnan(after):
        return None
    before = reached if math.isfinite(reached) else math.inf
    return Tried(f"the mean over {over}", "loss an example after the same steps", before, after)


def _stepped(subject: Subject, scale: float) -> float:
    """The loss of the first batch after own steps with a multiple of the loss; infinite where it diverges."""
    training = subject.training
    if training.optimizer is not None and takes_closure(training.optimizer):
        return math.nan
    batches = subject.batches(4)
    start, limit = time.perf_counter(), min(SECONDS, 0.4 * subject.clock.left)
    with training.untouched():
        for place in range(STEPS):
            if not math.isfinite(step(training, batches[place % len(batches)], scale=scale)):
                return math.inf
            if time.perf_counter() - start > limit:
                break
        last = loss_of(training, batches[0])
    return last if math.isfinite(last) else math.inf
