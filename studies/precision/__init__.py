"""Number formats: what is lost, where, when it matters, and what helps."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import updates

STUDY = study(
    "precision",
    "What does a number format lose, where, and what helps?",
    (updates.PART,),
)
