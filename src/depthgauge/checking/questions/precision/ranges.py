"""What each format would make of the numbers of the first steps: loss scales, and layers that float16 does not hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from depthgauge import probe
from depthgauge.checking.questions.precision import passes
from depthgauge.checking.subject import Subject
from depthgauge.probe import Record
from depthgauge.probe.loss_scale import LossScale

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Ranges:
    """What a record says of formats.

    Attributes:
        record: of the first steps, or of one pass where there is no optimizer.
        scale: float16's loss scales; None where the record holds no gradients.
        fits: that of `Record.fits`.
        beyond: layers whose activations or weights leave float16's range, in the order of execution.
    """

    record: Record
    scale: LossScale | None
    fits: pd.DataFrame
    beyond: tuple[str, ...]

    @property
    def says(self) -> str:
        """Float16's loss scales in a clause."""
        if self.beyond:
            return f"float16 does not hold the activations of {', '.join(self.beyond[:3])}"
        if self.scale is None:
            return ""
        if math.isnan(self.scale.least):
            ends = [str(each) for each in dict.fromkeys(self.scale.limits) if each is not None]
            return f"no loss scale keeps every gradient inside float16 ({' and '.join(ends)})"
        least, greatest = (math.log2(each) for each in (self.scale.least, self.scale.greatest))
        at_one = ", 1 among them" if least <= 0 <= greatest else ""
        return f"float16 holds every gradient at loss scales from 2^{least:g} to 2^{greatest:g}{at_one}"


def ranges(subject: Subject) -> Ranges:
    """Read the record of the first steps, or make one pass with a record."""
    begun = subject.begun
    if begun is not None and begun.steps:
        record = begun.record
    else:
        training = subject.training
        with training.untouched(), passes.quiet(), probe.track(training.model) as record:
            passes.run(training, subject.seen.batch)
    try:
        scale = record.loss_scale("float16")
    except ValueError:  # no gradients were seen
        scale = None
    shares = record.fractions("float16")
    over = shares[shares["direction"].isin(["activation", "weight"]) & (shares["over"] > 0)]
    beyond = over.sort_values("layer_index", kind="stable")["layer"].unique()
    return Ranges(record, scale, record.fits(), tuple(name or "model" for name in beyond))
