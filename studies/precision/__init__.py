"""Number formats: what is lost, where, when it matters, and what helps."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import kinks, loss_scales, updates

STUDY = study(
    "precision",
    "What does a number format lose, where, and what helps?",
    (loss_scales.PART, updates.PART, kinks.PART),
    caveats=(
        "Loss scales: small networks, one batch; each weight, bias and output counts as a tensor of its own.",
        "Updates: one small network on 8 x 8 digits; gradients and the optimizer's state are exact, weights are not.",
        "Kinks: one fully connected layer at initialization, on real digits.",
    ),
)
