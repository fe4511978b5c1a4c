"""Signal and gradient by depth: eight parts, a file each (`weight_layers`: of `architectures`)."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.gradient_flow import (
    architectures,
    overflow,
    products,
    rescaling,
    scalars,
    signal,
    training,
    walk,
)

STUDY = study(
    "gradient_flow",
    "How do signal and gradient grow or shrink with depth, when does training survive it, and does theory say so in "
    "advance?",
    (
        training.PART, architectures.PART, signal.PART, overflow.PART, rescaling.PART, walk.PART, products.PART,
        scalars.PART,
    ),
    topic="signal",
    shown=("growth", "loss_scales", "walk", "scalars"),
    caveats=(
        ("Plain multilayer perceptrons of constant width, without normalization or skip connections, but for the part "
        "on architectures, whose models are small: for 28 x 28 images, with few channels."),
        ("Training: SGD with momentum 0.9, learning rate 0.01, batch 32 in every cell of the map; another optimizer, "
        "rate or budget moves its borders. Accuracy is that on the first 1,000 training digits."),
        ("A tensor counts as lost to a number format when more than 1 % of its nonzero values round to zero, or any "
        "overflows; what a format does to sums on the way is not simulated."),
    ),
)  # fmt: skip
