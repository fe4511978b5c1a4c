"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.regularization import (
    adaptive_l2,
    augmentation,
    capacity,
    dropout,
    equilibrium,
    expectation,
    ghosts,
    selection,
    size,
    targets,
    variance_shift,
    weight_decay,
)

STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
    (
        capacity.PART,
        expectation.PART,
        size.PART,
        selection.PART,
        augmentation.PART,
        targets.PART,
        weight_decay.PART,
        equilibrium.PART,
        ghosts.PART,
        adaptive_l2.PART,
        dropout.PART,
        variance_shift.PART,
    ),
    topic="regularization",
    series=1,
    time_limit=3600,  # at `full` a chunk is minutes of training, and more where a machine is slow or shared
    caveats=(
        "Capacity: networks are trained as far as their steps go; with more steps fewer parameters fit 100 digits.",
        "Size: bounds, penalties and depths are tried on networks of one kind, on 100 digits.",
        "Capacity and size: sizes were set with trial runs in view; those had other seeds.",
        "Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",
        "Augmentation: one strength each, small networks, at most 512 training images, a short training.",
        "Augmentation's and dropout's seeds share training images, and copies of one augmentation; n counts networks.",
        "Targets: the linear classifier's few images can be separated; networks are small and nearly always right.",
        "Model selection: linear problems, whose true errors are known; networks may share more or less of theirs.",
        "Weight decay, its equilibrium, ghost batches: seeds share examples and wrong labels; n counts networks.",
        "Their maps, products and steps were set with trial runs in view; those had other seeds.",
        "Dropout as a penalty: small networks on few digits, early in training; sizes were set after trial runs.",
        "Dropout in use, and with batch normalization: two or three hidden layers, few digits; sizes set likewise.",
    ),
)
