"""Regularization: what limits a network's capacity, and what that does to its error on new data."""

from __future__ import annotations

from depthgauge.parts import study
<<<<<<< HEAD
from depthgauge.studies.regularization import (
    augmentation,
    capacity,
    expectation,
    selection,
    size,
    targets,
)
=======
from depthgauge.studies.regularization import equilibrium, expectation, ghosts, weight_decay
>>>>>>> r_decay

SHARED = (
    "Weight decay, its equilibrium, ghost batches: 8 x 8 digits; all seeds share the training examples and the wrong "
    "labels, so that n counts networks, not data. Maps, products and steps were set with trial runs in view; those had "
    "other seeds."
)
STUDY = study(
    "regularization",
    "What does each regularizer do, and when does it lower the error on new data?",
<<<<<<< HEAD
    (
        capacity.PART,
        expectation.PART,
        size.PART,
        selection.PART,
        augmentation.PART,
        targets.PART,
    ),
    topic="regularization",
    series=1,
    caveats=(
        "Capacity: networks are trained as far as their steps go; with more steps fewer parameters fit 100 digits.",
        "Size: bounds, penalties and depths are tried on networks of one kind, on 100 digits.",
        "Capacity and size: sizes were set with trial runs in view; those had other seeds.",
        "Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.",
        "Augmentation: one strength each, small networks, at most 512 training images, a short training.",
        "Targets: the linear classifier's few images can be separated; networks are small and nearly always right.",
        "Model selection: linear problems, whose true errors are known; networks may share more or less of theirs.",
    ),
=======
    (expectation.PART, weight_decay.PART, equilibrium.PART, ghosts.PART),
    topic="regularization",
    series=1,
    caveats=("Dropout's mean: one layer of a few units at initialization; dropped layers in a stack add up.", SHARED),
>>>>>>> r_decay
)
