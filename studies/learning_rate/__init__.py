"""Learning rates: which train, what bounds them, how one is found, and what a wrong one costs."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.learning_rate import (
    catapult,
    classification,
    edge,
    losses,
    normalization,
    quadratics,
    range_test,
    search,
    sensitivity,
    warmup,
    width,
)

STUDY = study(
    "learning_rate",
    "Which learning rates train a network, what bounds them, and how much does a wrong one cost?",
    (
        quadratics.PART, edge.PART, catapult.PART, sensitivity.PART, normalization.PART, warmup.PART,
        range_test.PART, width.PART, search.PART, losses.PART, classification.PART,
    ),
    topic="rate",
    series=2,  # the first was spent on trial runs
    caveats=(
        "Edge of stability: full batches of one set of digits, squared loss, smooth activations.",
        "Sensitivity, normalization, warm-up: small fully connected networks on 8 x 8 digits, one budget of steps.",
        "Range test: small networks and a fixed number of steps; a longer or decaying one has another best rate.",
        "Losses: linear regression with normal inputs; what a far point does to a network is not measured.",
        "Classification: small networks on ten balanced classes; a loss may differ where classes are many or rare.",
        "Width: one network of three weight layers, training loss after a fixed number of steps.",
        "Search: one small network, two hyperparameters, one range of each; another range may favour the other.",
        ("Sizes, rates, the reading of `width_drift`, the output's deviation in the coordinate check and the rule that "
        "a dead network does not train were set with trial runs in view; those had other seeds."),
    ),
)  # fmt: skip
