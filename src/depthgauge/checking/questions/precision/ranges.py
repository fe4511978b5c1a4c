"""Losses of each format on the numbers of the first steps: loss scales, and layers that float16 does not hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from depthgauge import formats
from depthgauge.checking.beginning import recorded
from depthgauge.checking.questions.precision import passes
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import listed
from depthgauge.probe import Record

if TYPE_CHECKING:
    import pandas as pd

LOST = 0.01  # of all gradients of the record together, as `Record.loss_scale` allows of one tensor
MASK = -1e9  # scores at or below are a mask's, which becomes -inf in float16 and means the same


@dataclass(frozen=True, eq=False)
class Ranges:
    """Verdicts of a record on formats.

    Attributes:
        record: of the first steps, or of one pass where there is no optimizer.
        scales: what float16's loss scales cost, as `LossScale.by_scale`; empty where the record holds no gradients.
        fits: that of `Record.fits`.
        beyond: layers whose activations or weights leave float16's range, in the order of execution.
    """

    record: Record
    scales: pd.DataFrame
    fits: pd.DataFrame
    beyond: tuple[str, ...]

    @property
    def says(self) -> str:
        """Float16's loss scales in a clause."""
        if self.beyond:
            return f"float16 does not hold the activations of {listed(self.beyond)}"
        if self.scales.empty:
            return ""
        safe = self.scales[(self.scales["overflowing"] == 0) & (self.scales["under"] <= LOST)]["loss_scale"]
        held = f"{100 * (1 - LOST):g} % of the gradients"
        if safe.empty:
            return f"no loss scale holds {held} in float16"
        least, greatest = (math.log2(each) for each in (safe.min(), safe.max()))
        at_one = ", 1 among them" if least <= 0 <= greatest else ""
        return f"float16 holds {held} at loss scales from 2^{least:g} to 2^{greatest:g}{at_one}"


def ranges(subject: Subject) -> Ranges:
    """Read the record of the first steps, or make one pass with a record."""
    import pandas as pd  # noqa: PLC0415 # half a second, needed only here

    begun = subject.begun
    if begun is not None and begun.steps:
        record = begun.record
    else:
        training = subject.training
        with training.untouched(), passes.quiet(), recorded(training) as record:
            passes.run(training, subject.seen.batch)
    try:
        scales = record.loss_scale("float16").by_scale()
    except ValueError:  # no gradients were seen
        scales = pd.DataFrame()
    shares = record.fractions("float16")
    frame = record.to_frame()
    masked = (frame["min"] <= MASK) & (frame["max"] <= formats.get("float16").max)
    over = shares[shares["direction"].isin(["activation", "weight"]) & (shares["over"] > 0) & ~masked]
    beyond = over.sort_values("layer_index", kind="stable")["layer"].unique()
    return Ranges(record, scales, record.fits(), tuple(name or "model" for name in beyond))
