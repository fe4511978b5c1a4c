"""Learning rate: what too large a rate does, and whether a short test finds a good one."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import quadratics, range_test

QUESTION = "Which learning rate trains best, and does a short test find it?"
PARTS = (quadratics.PART, range_test.PART)
CAVEATS = ("Small networks and a fixed number of steps: a longer training, or a decaying rate, has another best rate.",)

STUDY = study("learning_rate", QUESTION, PARTS, caveats=CAVEATS)
