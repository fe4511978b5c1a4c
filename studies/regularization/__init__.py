"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import adaptive_l2, dropout, expectation, variance_shift

STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (expectation.PART, adaptive_l2.PART, dropout.PART, variance_shift.PART),
    topic="regularization",
    series=1,
    caveats=(
        "Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",
        "Dropout as a penalty: small networks on few digits, early in training; sizes were set after trial runs.",
        "Dropout in use, and with batch normalization: two or three hidden layers, few digits; sizes set likewise.",
    ),
)
