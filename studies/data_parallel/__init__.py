"""Data parallelism: one training on several ranks, and what it buys."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import scaling

STUDY = study(
    "data_parallel",
    "Is training on several devices the same training as on one, and what does it buy?",
    (scaling.PART,),
    caveats=(
        ("Scaling: processes on one machine, which share memory, caches and power; steps on data that lie in memory, "
        "the same batch again and again, at a learning rate of 0."),
    ),
)  # fmt: skip
