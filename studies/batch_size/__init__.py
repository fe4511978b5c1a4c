"""Batch size: what it buys, what it costs, and the learning rate that goes with it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import quadratic, sweep

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (sweep.PART, quadratic.PART),
    caveats=(
        "Sweep: small networks on digits and steps to a training loss; how well they do on other data was not asked.",
        ("Sweep: targets, budgets and the centres of the grids of learning rates follow a pilot of other seeds; that a "
        "curve's fit is judged by its root mean square, and not point by point, was decided with a run in view."),
        "Quadratics: a few curvatures; noise is Gaussian and, on the noisy quadratic, the same at all weights.",
    ),
)  # fmt: skip
