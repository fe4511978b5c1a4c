"""Batch size: what it buys, what it costs, and the learning rate that goes with it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import quadratic, reduction

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (quadratic.PART, reduction.PART),
    caveats=(
        "Quadratics: a few curvatures; noise is Gaussian and, on the noisy quadratic, the same at all weights.",
    ),
)  # fmt: skip
