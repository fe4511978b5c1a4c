"""Batch size: what it buys in steps, examples and accuracy, and what becomes of the learning rate."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import budgets, growing, rules, width

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (budgets.PART, rules.PART, growing.PART, width.PART),
)  # fmt: skip
