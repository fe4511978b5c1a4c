"""Number formats: what they lose, where, when it matters, and what to do about it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import speed, training

STUDY = study(
    "precision",
    "What is lost in a number format, where, when does it matter, and what helps?",
    (training.PART, speed.PART),
    caveats=(
        "Training: small networks on digits, a few hundred steps, one learning rate a network for all recipes.",
        "Speed: small presets, on one thread of this device; another device has other fast formats.",
    ),
)
