"""Schedules that are never stepped, so that rates stay where the first line has put them, or that end at once."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, cast

import numpy as np
from torch.optim.lr_scheduler import LRScheduler

from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.questions.learning_rate import kinds, ladder
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.steps import losses, set_rates, step
from depthgauge.checking.words import percent
from depthgauge.workload import Training

_ADVICE = (
    "call scheduler.step() after each optimizer.step(), and keep the scheduler with the training (in its loss, or in an"
    " optimizer whose step calls it), or build the training without it"
)


def unsteered(optimizer: Any, rates: Rates, after: Sequence[float]) -> bool:
    """Tell whether a scheduler has set all rates to a hundredth of their peaks or less, and nothing raises them.

    Args:
        optimizer: the user's.
        rates: its rates.
        after: those after some steps of the optimizer's own; empty where none were made.
    """
    pairs = [(here, peak) for here, peak in zip(rates.present, rates.peak, strict=True) if peak > 0]
    low = rates.scheduled and bool(pairs) and all(here <= kinds.LOW_START * peak for here, peak in pairs)
    return low and tuple(after) == rates.present and not _steered(optimizer)


def _steered(optimizer: Any) -> bool:
    """Tell whether something is left that could step the schedule, other than the optimizer's own steps.

    A scheduler that the optimizer holds is none: its steps are the optimizer's, and have been tried.
    """
    gc.collect()  # what is held by nothing but itself is gone
    own = {id(each) for each in vars(optimizer).values()}
    return any(
        issubclass(type(each), LRScheduler) and getattr(each, "optimizer", None) is optimizer and id(each) not in own
        for each in gc.get_objects()  # by type, as some objects answer `isinstance` with a warning
    )


def ended(training: Training, rates: Rates, batches: Sequence[Any]) -> Iterator[Finding]:
    """A finding where the schedule has come to its end after a few steps, and steps at its peak get much further."""
    own, low_, seen = _fall(training, batches, None)
    peaks = [peak for peak in rates.peak if peak > 0]
    if not low_ or not peaks or seen < kinds.LARGE_SHARE * max(peaks):
        return
    held, _, _ = _fall(training, batches, rates.peak)
    if held > ladder.least(losses(training, batches)) and own < kinds.SHORT * held:
        yield Finding(
            "short_schedule", Status.BROKEN,
            f"after {kinds.SCHEDULED} steps the schedule has brought every rate from {rates} to"
            f" {percent(kinds.LOW_START)} of it or less: they lower the loss by {own:.3g}, and by {held:.3g} where the"
            " rate stays",
            "step the schedule once an epoch, or give it the number of all steps",
            f"the loss falls by {held:.3g}, not by {own:.3g}, in the first {kinds.SCHEDULED} steps", ("optimizer",),
            Measure("fall of the loss over that at the peak", max(own, 0.0) / held),
        )  # fmt: skip


def _fall(training: Training, batches: Sequence[Any], held: Sequence[float] | None) -> tuple[float, bool, float]:
    """The loss's fall in so many steps; whether all rates are low then, beside the first; the largest on the way."""
    optimizer = training.optimizer
    assert optimizer is not None
    with training.untouched(), closing(cast("Any", training.stream())) as stream:
        before, first = losses(training, batches), Rates.of(optimizer)
        largest = 0.0
        for _ in range(kinds.SCHEDULED):
            if held is not None:
                set_rates(optimizer, held)
            largest = max(largest, *Rates.of(optimizer).present)
            if not math.isfinite(step(training, next(stream))):
                return -math.inf, False, largest
        after = losses(training, batches)
        pairs = zip(Rates.of(optimizer).present, first.peak, strict=True)
        low_ = all(here <= kinds.LOW_START * peak for here, peak in pairs)
    return float(np.mean(before) - np.mean(after)), low_, largest


def low(
    training: Training, rates: Rates, batches: Sequence[Any], rungs: ladder.Ladder, steps: int
) -> Iterator[Finding]:
    """A finding where the rate as it stands, above 0, lets the loss fall next to nothing, and its peak does."""
    if rungs.steps < ladder.STEPS or rungs.best.fall <= ladder.least(rungs.before):
        return
    reached = ladder.rung(training, rates.present, batches, kinds.LONGER * rungs.steps, rungs.before).fall
    if reached < kinds.SMALL_SHARE * rungs.best.fall:
        yield idle(rates, steps, share=reached / rungs.best.fall, of=kinds.LONGER * rungs.steps)


def idle(rates: Rates, steps: int, *, share: float | None = None, of: int = 0) -> Finding:
    """Report a schedule that nothing steps.

    Args:
        rates: as they stand, and their peaks.
        steps: of the optimizer's own, that left them as they are.
        share: of the best rate's fall of the loss that the present rates reach; None where they are 0.
        of: in so many steps.
    """
    here = max(rates.present)
    does = (
        "no weight moves" if share is None
        else f"in {of} steps it reaches {percent(max(share, 0))} of the best rate's fall of the loss"
    )  # fmt: skip
    return Finding(
        "idle_schedule", Status.BROKEN if share is None else Status.LOOK,
        f"a schedule has set the learning rate to {here:.3g} where {rates} was asked for, and nothing steps it: no"
        f" scheduler is left but the optimizer's own, {steps} steps leave the rate as it is, and {does}",
        _ADVICE, f"the rate reaches {rates}", ("optimizer",), Measure("learning rate", here),
    )  # fmt: skip
