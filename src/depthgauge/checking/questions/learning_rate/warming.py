"""Warm-up: whether the first steps raise the loss, and whether a rate that rises helps; tried."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.questions.learning_rate import kinds
from depthgauge.checking.questions.learning_rate.ladder import Ladder, walked
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.steps import losses
from depthgauge.workload import Training


def warmed(training: Training, rates: Rates, batches: Sequence[Any], ladder: Ladder) -> Iterator[Finding]:
    """A finding where the first steps at the full rate raise the loss, and a rate that rises over them ends lower.

    Args:
        training: left as it was.
        rates: its rates.
        batches: those of the ladder.
        ladder: whose rung at the user's rates is held against the same steps with a warm-up.
    """
    here, count = ladder.here, len(batches)
    change = np.array([loss - ladder.before[place % count] for place, loss in enumerate(here.losses)])
    rise = float(change.max())
    if not rise > max(kinds.RISE * abs(ladder.start), kinds.SPREADS * float(np.std(ladder.before))):
        return
    after = _with_warm_up(training, rates, batches, ladder.steps)
    if not ladder.start - after > here.fall:
        return
    warm, present = ladder.steps // 2, ladder.start - here.fall
    yield Finding(
        "warm_up", Status.LOOK,
        f"the first steps at the rate {rates} raise a batch's loss by {rise:.3g}, from {ladder.start:.3g}",
        f"let the rate rise linearly from 0 over the first {warm} steps or more (torch.optim.lr_scheduler.LinearLR)",
        f"after {ladder.steps} steps the loss is {after:.3g}, and {present:.3g} without", ("optimizer",),
        Measure("largest rise of a batch's loss", rise),
        Tried(f"warm-up over {warm} steps", f"loss after {ladder.steps} steps", present, after),
    )  # fmt: skip


def _with_warm_up(training: Training, rates: Rates, batches: Sequence[Any], steps: int) -> float:
    """Mean loss of the batches after steps whose rate rises over the first half; infinite where it is not finite."""
    with training.untouched():
        if not math.isfinite(walked(training, rates.peak, batches, steps, warm=steps // 2)[-1]):
            return math.inf
        after = float(np.mean(losses(training, batches)))
    return after if math.isfinite(after) else math.inf
