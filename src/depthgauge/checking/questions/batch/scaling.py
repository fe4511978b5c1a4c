"""The gradient noise scale at the weights as they are, and after a few own steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from depthgauge import nested, noise
from depthgauge.checking.steps import go_on
from depthgauge.noise import NoiseError, NoiseScale
from depthgauge.planning.costs import joined
from depthgauge.workload import Training, WorkloadError, default_loss

EXAMPLES = 512  # that a scale is estimated from
UNITS = 128  # gradients, each of a group of these
GROUPS = 5  # gradients at least, each of a batch, where an example has none of its own
OWN_STEPS = 30  # before the second measurement, at most
FEWEST = 16  # gradients below which an interval has no upper end, as a rule
FILLING = 16  # batches, at most, that the examples are taken from


@dataclass(frozen=True)
class Scales:
    """Noise scales.

    Attributes:
        now: at the weights as they are; None where it cannot be had.
        later: after `steps` own steps; None where there were none.
        steps: own steps that were made.
        why: it cannot be had; empty where it can.
    """

    now: NoiseScale | None = None
    later: NoiseScale | None = None
    steps: int = 0
    why: str = ""

    @property
    def last(self) -> NoiseScale | None:
        """The scale after the most steps."""
        return self.later or self.now


def scales(
    training: Training, batches: list[Any], second: float, a_step: float, left: Callable[[], float], *, mixed: bool
) -> Scales:
    """Measure within the time.

    Args:
        training: left as it was.
        batches: the first ones.
        second: that a pass of a batch takes.
        a_step: seconds of a step, with the batch that the loader makes for it.
        left: seconds that there are.
        mixed: whether an example has no gradient of its own, as with batch normalization.
    """
    present = nested.rows(batches[0]) or 0
    total = min(EXAMPLES, sum(nested.rows(batch) or 0 for batch in batches[:FILLING]))
    if not present or total < FEWEST:
        return Scales(why=f"a noise scale takes {FEWEST} examples or more, and the batches hold {total}")
    try:
        sample = joined(batches, total)
        groups = [min(present, total // GROUPS)] if mixed else [max(1, total // UNITS), min(present, total // GROUPS)]
        with training.untouched():
            start = time.perf_counter()
            now, group = _measured(training, sample, groups, second, left)
        took = time.perf_counter() - start
    except (NoiseError, WorkloadError) as error:
        return Scales(why=f"no noise scale can be had: {getattr(error, 'what', error)}")
    steps = min(OWN_STEPS, int((0.8 * left() - took) / max(a_step, 1e-9)))
    if training.optimizer is None or steps < 1 or math.isnan(now.signal):
        return Scales(now)
    try:
        with training.untouched():
            if go_on(training, steps, lambda: left() > 0) < steps:
                return Scales(now)
            return Scales(now, _scale(training, sample, group), steps)
    except Exception:  # noqa: BLE001 - what a stranger's step raises is told by other questions
        return Scales(now)


def _measured(
    training: Training, sample: Any, groups: list[int], second: float, left: Callable[[], float]
) -> tuple[NoiseScale, int]:
    """The scale, of the first group size that works, and that size."""
    for place, group in enumerate(groups):
        fitting = int(0.4 * left() / max(_pass(training, sample, group, second), 1e-9))
        part = nested.first(sample, min(nested.rows(sample) or 0, group * fitting))
        units = (nested.rows(part) or 0) // group
        if units < min(FEWEST, (nested.rows(sample) or 0) // group):
            raise WorkloadError(f"there was time for {units} gradients, and it takes {FEWEST}; give a larger budget")
        try:
            return _scale(training, part, group), group
        except NoiseError:
            if place + 1 == len(groups):
                raise
    raise AssertionError


def _scale(training: Training, sample: Any, group: int) -> NoiseScale:
    loss = training.loss or default_loss
    return noise.scale(
        training.model, lambda model, batch, _: loss(model, nested.copied(batch)), sample, None, batch=group
    )


def _pass(training: Training, sample: Any, group: int, otherwise: float) -> float:
    """Seconds of a gradient of a group."""
    part = nested.first(sample, group)
    try:
        start = time.perf_counter()
        training.value(part).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return time.perf_counter() - start
    except Exception:  # noqa: BLE001 - a small batch may be no batch for this model
        return otherwise
