"""Learning rate: how large it may be, and what the curvature makes of it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import catapult, edge

STUDY = study(
    "learning_rate",
    "How large may a learning rate be, and what does training do at that edge?",
    (edge.PART, catapult.PART),
    caveats=("Edge of stability: full batches of one set of digits, squared loss, smooth activations.",),
)
