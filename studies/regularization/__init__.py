"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import expectation, selection

STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (expectation.PART, selection.PART),
    topic="regularization",
    series=1,
    caveats=(
        "Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",
        "Model selection: linear problems, whose true errors are known; networks may share more or less of theirs.",
    ),
)
