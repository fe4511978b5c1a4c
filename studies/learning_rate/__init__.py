"""Learning rates: which train, how one is found, and what makes training sensitive to it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import classification, losses, normalization, sensitivity, warmup

STUDY = study(
    "learning_rate",
    "Which learning rates train a network, what bounds them, and how much does a wrong one cost?",
    (sensitivity.PART, normalization.PART, warmup.PART, losses.PART, classification.PART),
    caveats=(
        "Sensitivity, normalization, warm-up: small fully connected networks on 8 x 8 digits, one budget of steps.",
        "Losses: linear regression with normal inputs; what a far point does to a network is not measured.",
        "Classification: small networks on ten balanced classes; a loss may differ where classes are many or rare.",
    ),
)
