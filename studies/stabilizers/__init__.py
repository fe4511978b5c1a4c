"""Stabilizers: what keeps deep training together, and by how much."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.stabilizers import (
    clip_bias,
    clipping,
    deeper,
    depth_laws,
    depth_trained,
    depth_transformers,
    final,
    gating,
    lesion,
    noise_tails,
    rate_and_batch,
    shattering,
    smoothness,
    transformers,
)

STUDY = study(
    "stabilizers",
    "What keeps the training of a deep network stable, and by how much?",
    (
        shattering.PART,
        depth_transformers.PART,
        depth_laws.PART,
        depth_trained.PART,
        lesion.PART,
        deeper.PART,
        final.PART,
        clipping.PART,
        clip_bias.PART,
        noise_tails.PART,
        smoothness.PART,
        gating.PART,
        rate_and_batch.PART,
        transformers.PART,
    ),
    topic="stability",
    series=1,
    time_limit=3600,  # at `full` a chunk is minutes of training, and more where a machine is slow or shared
    caveats=(
        "Shattered gradients: networks at initialization, independent inputs; those of data are alike from the start.",
        "Depth laws: stacks and transformers at initialization; sizes and margins were set with trial runs in view.",
        "How deep they train: narrow stacks on 8 x 8 digits, a short budget; a linear model reaches the target, too.",
        "Lesions, depth, final accuracy: narrow networks, small images.",
        "Their sizes, rates and margins were set with trial runs in view; those had other seeds.",
        "N25: the first half alone; its second, on dropout, is asked by the study regularization.",
        "Clipping: levels of the bounds are fixed, not tuned; sizes were set with trial runs in view, of other seeds.",
        "The bias of clipping: one weight and one example a step; batches average skewness and tails away.",
        "Noise tails: two small networks, one rate each; a tail of finite data is one as far as they reach.",
        "Smoothness: small networks on 128 or 512 images; the source's are language models.",
        "Gates: one layer, at initialization without biases but those named; 100 steps are short; sizes as above.",
        "Transformers: small, of few steps; sizes and the median for warm-up were set after trial runs of other seeds.",
        "Rate and batch size: small networks on small images; sizes were set with a trial run in view, of other seeds.",
    ),
)
