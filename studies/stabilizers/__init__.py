"""Stabilizers: what keeps deep training together, and by how much."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.stabilizers import rate_and_batch, shattering, transformers

STUDY = study(
    "stabilizers",
    "What keeps the training of a deep network stable, and by how much?",
    (shattering.PART, rate_and_batch.PART, transformers.PART),
    topic="stability",
    series=1,
    caveats=(
        "Shattered gradients: networks at initialization, independent inputs; those of data are alike from the start.",
        "Transformers: small, of few steps; sizes and the median for warm-up were set after trial runs of other seeds.",
        "Rate and batch size: small networks on small images; sizes were set with a trial run in view, of other seeds.",
    ),
)
