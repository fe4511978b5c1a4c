"""A weight decay that holds the loss up: the same steps with it and without, from the same weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from depthgauge.checking.answers import Finding, Measure, Status, Tried
from depthgauge.checking.questions.learning_rate import kinds, ladder
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.workload import Training

STEPS = kinds.LONGER * ladder.STEPS
TRIED = 0.05  # share of a weight that a decay takes in so many steps; of less it is not tried
PENALTY = 1e-2  # a penalty that Adam divides with the gradient, below which it is not tried


def asked(training: Training, rates: Rates) -> bool:
    """Tell whether a group decays so much that it may matter within STEPS steps."""
    assert training.optimizer is not None
    for group, rate in zip(training.optimizer.param_groups, rates.peak, strict=True):
        decay = float(group.get("weight_decay") or 0.0)
        adapts = "betas" in group or "eps" in group  # Adam's, and RMSprop's, Adagrad's, Adadelta's
        coupled = adapts and not group.get("decoupled_weight_decay")
        if decay >= PENALTY if coupled else rate * decay * STEPS >= TRIED:
            return True
    return False


def findings(training: Training, rates: Rates, batches: Sequence[Any], rungs: ladder.Ladder) -> Iterator[Finding]:
    """One where the loss falls less than half as far with the decay as without, over STEPS steps."""
    assert training.optimizer is not None
    own = ladder.rung(training, rates.present, batches, STEPS, rungs.before).fall
    with training.untouched():
        for group in training.optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        without = ladder.rung(training, rates.present, batches, STEPS, rungs.before).fall
    share = max(own, 0.0) / without if math.isfinite(own) and without > 0 else 0.0
    left = (rungs.start - own, rungs.start - without)  # of the loss
    held_up = share < kinds.HELD_UP and left[0] > kinds.LEFT * left[1] > 0
    if not (without > ladder.least(rungs.before) and (share < kinds.LARGE_SHARE or held_up)):
        return
    measure = f"loss of {len(rungs.before)} batches after {STEPS} steps on them"
    yield Finding(
        "decay_dominates", Status.BROKEN if share < kinds.LARGE_SHARE else Status.LOOK,
        f"with its weight decay {STEPS} steps lower the loss by {own:.3g}, and without it by {without:.3g}",
        "divide weight_decay by 100, or use AdamW with 0.01, whose decay is no part of the gradient",
        f"without decay the loss falls to {rungs.start - without:.3g}, not to {rungs.start - own:.3g}", ("optimizer",),
        Measure("fall of the loss over that without weight decay", share),
        Tried("no weight decay", measure, rungs.start - own, rungs.start - without),
    )  # fmt: skip
