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
        "Search: one small network, two hyperparameters, one range of each; another range may favour the other search.",
        (
            "Widths, rates, the reading of `width_drift`, the output's deviation in the coordinate check and the seeds "
            "of the search were set with trial runs in view, whose seeds are those of a report."
        ),
    ),
)
