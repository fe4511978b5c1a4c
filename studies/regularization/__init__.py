"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import expectation, weight_decay

STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (expectation.PART, weight_decay.PART),
    topic="regularization",
    series=1,
    caveats=(
        "Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",
        "Weight decay: 8 x 8 digits, two hidden layers; all seeds share the training examples and the wrong labels, so "
        "that n counts networks, not data. The maps were set with trial runs in view; those had other seeds.",
    ),
)
