"""Data parallelism: is it the same training, what does it buy, and what does it cost?"""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.data_parallel import shares

STUDY = study(
    "data_parallel",
    "Is training on many devices the same training as on one, and what does it buy?",
    (shares.PART,),
    caveats=(
        "Shares: bytes that collectives need at the least; one kind of network, whose activations are small.",
    ),
)  # fmt: skip
