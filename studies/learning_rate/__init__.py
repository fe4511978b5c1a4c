"""Learning rates: which train, what bounds them, how one is found, and what a wrong one costs."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import (
    catapult,
    classification,
    edge,
    losses,
    normalization,
    quadratics,
    range_test,
    sensitivity,
    warmup,
)

STUDY = study(
    "learning_rate",
    "Which learning rates train a network, what bounds them, and how much does a wrong one cost?",
    (
        quadratics.PART, edge.PART, catapult.PART, sensitivity.PART, normalization.PART, warmup.PART,
        range_test.PART, losses.PART, classification.PART,
    ),
    caveats=(
        "Edge of stability: full batches of one set of digits, squared loss, smooth activations.",
        "Sensitivity, normalization, warm-up: small fully connected networks on 8 x 8 digits, one budget of steps.",
        "Range test: small networks and a fixed number of steps; a longer or decaying one has another best rate.",
        "Losses: linear regression with normal inputs; what a far point does to a network is not measured.",
        "Classification: small networks on ten balanced classes; a loss may differ where classes are many or rare.",
    ),
)  # fmt: skip
