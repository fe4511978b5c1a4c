"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import expectation

STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (expectation.PART,),
    topic="regularization",
    series=1,
    caveats=("Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",),
)
