"""The learning rate: what its best value depends on."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import search, width

STUDY = study(
    "learning_rate",
    "How is a learning rate chosen, and what does it depend on?",
    (width.PART, search.PART),
    caveats=(
        "Width: one network of three weight layers, training loss after a fixed number of steps.",
        "Search: one small network, two hyperparameters, ranges set with trial runs in view.",
    ),
)
