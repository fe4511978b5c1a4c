"""Number formats: what is lost in them, where it matters, and what to do about it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.precision import band, twins

STUDY = study(
    "precision",
    "What is lost in a number format, in which layer, when does it matter, and what helps?",
    (twins.PART, band.PART),
    shown=("twins", "band"),
    caveats=("Small models on images of 28 x 28 pixels; kernels are those of this machine's library.",),
)
