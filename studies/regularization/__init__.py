"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import capacity, expectation, size

STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (capacity.PART, expectation.PART, size.PART),
    topic="regularization",
    series=1,
    caveats=(
        "Capacity: networks are trained as far as their steps go; with more steps fewer parameters fit 100 digits.",
        "Size: bounds, penalties and depths are tried on networks of one kind, on 100 digits.",
        "Capacity and size: sizes were set with trial runs in view; those had other seeds.",
        "Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",
    ),
)
