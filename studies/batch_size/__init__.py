"""Batch size: what it buys, what it costs, and the learning rate that goes with it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import budgets, growing, quadratic, reduction, rules, throughput, width

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (
        budgets.PART, rules.PART, growing.PART, width.PART, quadratic.PART, reduction.PART, throughput.PART,
    ),
    caveats=(
        ("Budgets, rules, growing and width: perceptrons with one hidden layer on digits; rates of budgets and rules "
        "are tuned in factors of two."),
        "Quadratics: a few curvatures; noise is Gaussian and, on the noisy quadratic, the same at all weights.",
        ("Sum against mean: one small network, a few steps, constant rates. Last batches: the limits are those of a "
        "linear regression."),
        "Throughput: small presets, on one thread of this device; another device stops gaining elsewhere.",
        ("Sizes, grids of rates, the margins of budgets, rules, growing and width, the conditions that growing judges, "
        "and the window over which a measured loss is averaged, were set with trial runs in view, whose seeds are in "
        "part those of a report: on them it is no fresh confirmation."),
    ),
)  # fmt: skip
