"""Batch size: what it buys, what it costs, and the learning rate that goes with it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import budgets, growing, rules, width

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (budgets.PART, rules.PART, growing.PART, width.PART),
    caveats=(
        ("Budgets, rules, growing and width: perceptrons with one hidden layer on digits; rates of budgets and rules "
        "are tuned in factors of two."),
        ("Sizes, grids of rates and the margins of budgets, rules, growing and width were set with trial runs in view, "
        "whose seeds are in part those of a report: on them it is no fresh confirmation."),
    ),
)  # fmt: skip
