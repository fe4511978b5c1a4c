"""Learning rates: which train, how one is found, and what makes training sensitive to it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import sensitivity

STUDY = study(
    "learning_rate",
    "Which learning rates train a network, what bounds them, and how much does a wrong one cost?",
    (sensitivity.PART,),
    caveats=("Sensitivity: small fully connected networks on 8 x 8 digits, one budget of steps, SGD.",),
)
