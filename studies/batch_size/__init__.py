"""Batch size: what a larger one buys in steps, at which learning rate, and where it buys nothing."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import sweep

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (sweep.PART,),
    caveats=(
        "Sweep: small networks on digits and steps to a training loss; how well they do on other data was not asked.",
        ("Sweep: targets, budgets and the centres of the grids of learning rates follow a pilot, whose seeds are no "
        "others' here."),
    ),
)  # fmt: skip
