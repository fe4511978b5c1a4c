"""Data parallelism: is it the same training, what does it buy, and what does it cost?"""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import pipelines, shares, ways

STUDY = study(
    "data_parallel",
    "Is training on many devices the same training as on one, and what does it buy?",
    (ways.PART, pipelines.PART, shares.PART),
    caveats=(
        "Ways and pipelines: two ranks on one machine, one kind of network; never run on several GPUs.",
        "Shares: bytes that collectives need at the least; one kind of network, whose activations are small.",
    ),
)  # fmt: skip
