"""Batch size: what it buys, what it costs, and the learning rate that goes with it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import budgets, growing, quadratic, reduction, rules, sweep, throughput, width

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (
        sweep.PART, budgets.PART, rules.PART, growing.PART, width.PART, quadratic.PART, reduction.PART, throughput.PART,
    ),
    topic="rate",
    series=2,  # the first was spent on trial runs
    caveats=(
        "Sweep: small networks on digits and steps to a training loss; how well they do on other data was not asked.",
        ("Budgets, rules, growing and width: perceptrons with one hidden layer on digits; rates of budgets and rules "
        "are tuned in factors of two."),
        "Quadratics: a few curvatures; noise is Gaussian and, on the noisy quadratic, the same at all weights.",
        ("Sum against mean: one small network, a few steps, constant rates. Last batches: the limits are those of a "
        "linear regression."),
        "Throughput: small presets, on one thread of this device; another device stops gaining elsewhere.",
        ("Sizes, grids of rates, targets, budgets, margins, the families of comparisons and how answers are read were "
        "set with trial runs in view; those had other seeds."),
    ),
)  # fmt: skip
