"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import equilibrium, expectation, ghosts, weight_decay

SHARED = (
    "Weight decay, its equilibrium, ghost batches: 8 x 8 digits; all seeds share the training examples and the wrong "
    "labels, so that n counts networks, not data. Maps, products and steps were set with trial runs in view; those had "
    "other seeds."
)
STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (expectation.PART, weight_decay.PART, equilibrium.PART, ghosts.PART),
    topic="regularization",
    series=1,
    caveats=("Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.", SHARED),
)
