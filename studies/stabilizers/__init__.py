"""Stabilizers: what keeps deep training together, and by how much."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.stabilizers import clip_bias, clipping, gating, shattering, smoothness

STUDY = study(
    "stabilizers",
    "What keeps the training of a deep network stable, and by how much?",
    (shattering.PART, clipping.PART, clip_bias.PART, smoothness.PART, gating.PART),
    topic="stability",
    series=1,
    caveats=(
        "Shattered gradients: networks at initialization, independent inputs; those of data are alike from the start.",
        "Clipping: levels of the bounds are fixed, not tuned; sizes were set with trial runs in view, of other seeds.",
        "The bias of clipping: one weight and one example a step; batches average skewness and tails away.",
        "Smoothness: small networks on 128 or 512 images; the source's are language models.",
        "Gates: one layer, at initialization without biases but those named; 100 steps are short; sizes as above.",
    ),
)
