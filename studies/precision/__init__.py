"""Number formats: what they hold, how rounding errors add up, and what each costs."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import exponentials, limits, sums, variances

STUDY = study(
    "precision",
    "What does a narrower number format lose, where, and does it matter?",
    (limits.PART, sums.PART, exponentials.PART, variances.PART),
    shown=("sum_growth",),
    caveats=("Additions that the device lacks are emulated: each result is rounded once to the format.",),
)
