"""Stabilizers: what keeps deep training together, and by how much."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.stabilizers import rate_and_batch, shattering

STUDY = study(
    "stabilizers",
    "What keeps the training of a deep network stable, and by how much?",
    (shattering.PART, rate_and_batch.PART),
    topic="stability",
    series=1,
    caveats=(
        "Shattered gradients: networks at initialization, independent inputs; those of data are alike from the start.",
        "Rate and batch size: small networks on small images; sizes were set with a trial run in view, of other seeds.",
    ),
)
