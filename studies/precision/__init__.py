"""Number formats: what they lose, where, when it matters, and what to do about it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import (
    band,
    exponentials,
    kinks,
    layers,
    limits,
    loss_scales,
    operators,
    speed,
    sums,
    training,
    twins,
    updates,
    variances,
)

STUDY = study(
    "precision",
    "What does a narrower number format lose, in which layer, when does it matter, and what helps?",
    (
        updates.PART, loss_scales.PART, sums.PART, training.PART, limits.PART, exponentials.PART, variances.PART,
        layers.PART, twins.PART, band.PART, kinks.PART, speed.PART, operators.PART,
    ),
    topic="format",
    shown=("layer_ratios", "sum_growth", "twins", "band"),
    caveats=(
        "Loss scales: small networks, one batch; each weight, bias and output counts as a tensor of its own.",
        "Updates: one small network on 8 x 8 digits; gradients and the optimizer's state are exact, weights are not.",
        "Kinks: one fully connected layer at initialization, on real digits.",
        "Training: small networks on digits, a few hundred steps, one learning rate a network for all recipes.",
        "Twins: small models on images of 28 x 28 pixels; kernels are those of this machine's library.",
        "Speed: small presets, on one thread of this device; another device has other fast formats.",
        "Additions that the device lacks are emulated: each result is rounded once to the format.",
        ("Sizes, the networks, learning rates and targets of training, and the margins of `sum_law`, `welford`, "
        "`variance_law`, N29, `landing`, the loss scales and twins, whose measure of growth too, were set with trial "
        "runs in view, whose seeds are those of a report: on them it is no fresh confirmation."),
    ),
)  # fmt: skip
