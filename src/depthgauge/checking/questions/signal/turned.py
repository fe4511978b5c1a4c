"""Dropout rates above one half: what the training does with the share to keep in place of the share to drop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import numpy as np
from torch import nn

from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.questions.data.passing import DROPS
from depthgauge.checking.steps import go_on, losses
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import MOST_WHERE, listed, percent

HALF = 0.5  # a rate above it may be the share to keep
STEPS = 96
BATCHES = 8  # whose loss is looked at, in evaluation mode
SLOW = 0.25  # of the fall with the rates turned: 0.7 for 0.3 behind each of three convolutions makes 0.001 of it, an
# autoencoder that is to fill in the 0.8 of its inputs that are dropped 0.78 to 0.82
MOST, SLOWER = 0.85, 0.75  # a rate from which on SLOWER is asked in place of SLOW: 0.9 behind a DenseNet's last norm
# makes 0.68 to 0.71 of the fall (three seeds)
LEAST = 0.05  # of the loss at the start, by which it falls with the rates turned
A_STEP = 1.5  # times a pass


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where more is dropped than is kept, and the loss hardly falls for it."""
    training = subject.training
    rates = {
        name: (module, attribute, rate)
        for name, module in training.model.named_modules()
        if isinstance(module, DROPS) and module.training
        for attribute in ("p", "dropout")
        if isinstance(rate := getattr(module, attribute, None), float) and HALF < rate < 1
    }
    if not rates or training.optimizer is None:
        return
    if not subject.fits(
        2 * STEPS * A_STEP + 3 * BATCHES, "the steps with 1 minus each dropout rate", loads=2 * STEPS, copies=3
    ):
        return
    before = _after(subject, {}, 0)
    own, turned = _after(subject, {}, STEPS), _after(subject, rates, STEPS)
    fall, other = before - own, before - turned
    slow = SLOWER if all(rate >= MOST for _, _, rate in rates.values()) else SLOW
    if not math.isfinite(other) or other < LEAST * abs(before) or fall >= slow * other:
        return
    shares = " and ".join(sorted({percent(rate) for _, _, rate in rates.values()}))
    yield Finding(
        "dropped_for_kept", Status.LOOK,
        f"dropout at {listed(rates)} drops {shares} of the values, more than it keeps: {STEPS} steps"
        f" take the loss from {before:.3g} to {own:.3g} in evaluation mode, and to {turned:.3g} with 1 minus each rate",
        "set p to the share to drop: it may have been meant as the share to keep",
        f"{STEPS} steps take the loss to {turned:.3g}, not to {own:.3g}", (*tuple(rates)[: MOST_WHERE - 1], "model"),
        Measure("fall of the loss over that with the rates turned", max(fall, 0.0) / other),
        Tried("1 minus each rate", f"loss of {BATCHES} batches after {STEPS} steps, evaluation mode", own, turned),
    )  # fmt: skip


def _after(subject: Subject, rates: Mapping[str, tuple[nn.Module, str, float]], steps: int) -> float:
    """The mean loss of a few batches in evaluation mode after so many steps with these rates turned."""
    training, batches = subject.training, subject.batches(BATCHES)
    with training.untouched(), ExitStack() as stack:
        for module, attribute, rate in rates.values():
            stack.callback(setattr, module, attribute, rate)
            setattr(module, attribute, 1 - rate)
        if go_on(training, steps) < steps:
            return math.inf
        training.model.eval()
        return float(np.mean(losses(training, batches)))
