"""Numbers of fewer bits: what is lost, where, when it matters, and what to do about it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import layers

STUDY = study(
    "precision",
    "What does a number format of fewer bits lose, in which layer, and when does training suffer from it?",
    (layers.PART,),
    shown=("layer_ratios",),
)
