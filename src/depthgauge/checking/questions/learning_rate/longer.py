"""More steps at a rate that seems too small: how far the loss falls, what moves, and who gains on new batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthgauge.checking.parameters import held_by
from depthgauge.checking.questions.learning_rate import branches, kinds
from depthgauge.checking.questions.learning_rate.ladder import Ladder, walked
from depthgauge.checking.questions.learning_rate.rates import Rates
from depthgauge.checking.steps import losses
from depthgauge.workload import Training

NEW = 3  # times as many batches as the ladder has, from which on a gain on new ones is asked for


@dataclass(frozen=True)
class Longer:
    """The present rate over several times as many steps.

    Attributes:
        fall: of the ladder's batches.
        moved: by how much of their norm matrices have moved, over the numbers that have; NaN where there are none.
        gains: whether the loss of new batches falls further, too, at the ladder's best rate or at one below it.
        late: hundreds of steps at these rates; None where there was no time for so many.
    """

    fall: float = math.nan
    moved: float = math.nan
    gains: bool = True
    late: branches.Branches | None = None

    @property
    def slow(self) -> bool:
        """Tell whether the present rate is far behind a larger one still after hundreds of steps."""
        still = self.moved < kinds.MOVED and self.gains
        least = kinds.BEHIND_SHARE if still else kinds.SLOW_SHARE
        return self.late is not None and self.late.clear and self.late.share < least


def lengthened(training: Training, rates: Rates, batches: Sequence[Any], ladder: Ladder, more: int = 0) -> Longer:
    """Make the steps; the training is left as it was.

    Args:
        training: with an optimizer.
        rates: its rates.
        batches: the first ones, of which the ladder's are the first.
        ladder: whose best rate is above the present one.
        more: steps on new batches, where they are more than these.
    """
    own = batches[: len(ladder.before)]
    steps = kinds.LONGER * ladder.steps
    held = [each for each in held_by(training.optimizer) if _matrix(each)]
    before = [each.detach().clone() for each in held]
    with training.untouched():
        made = walked(training, rates.peak, own, steps)
        after = float(np.mean(losses(training, own))) if math.isfinite(made[-1]) else math.inf
        moved = _moved(before, held)
    gains, late = True, None
    if len(batches) >= NEW * len(own):
        far = ladder.best.factor
        many = max(more, len(batches))
        grown = branches.grow(training, rates, batches, (1.0, math.sqrt(10 * far), far), steps=many, start=ladder.start)
        late = grown if many >= kinds.MANY_STEPS else None
        first = grown.cut(len(batches))
        gains = any(first.late(each) < first.late(1.0) and first.differs(each) for each in (math.sqrt(10 * far), far))
    return Longer(ladder.start - after, moved, gains, late)


def _matrix(held: Tensor) -> bool:
    return held.dim() > 1 and held.layout is torch.strided and held.is_floating_point()


def _moved(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Norm of the change over that of what has changed: rows of a table that no example has are left out."""
    change = size = 0.0
    for old, new in zip(before, after, strict=True):
        apart = (new.detach() - old).float()
        change += float(apart.square().sum())
        size += float(old.float()[apart != 0].square().sum())
    return math.sqrt(change / size) if size else math.nan
