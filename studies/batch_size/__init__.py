"""Batch size: what it buys, what it costs, and the learning rate that goes with it."""

from __future__ import annotations

from depthgauge.parts import study
from depthgauge.studies.batch_size import quadratic, reduction, throughput

STUDY = study(
    "batch_size",
    "How large a batch, at which learning rate, and what does it buy?",
    (quadratic.PART, reduction.PART, throughput.PART),
    caveats=(
        "Quadratics: a few curvatures; noise is Gaussian and, on the noisy quadratic, the same at all weights.",
        ("Sum against mean: one small network, a few steps, constant rates. Last batches: the limits are those of a "
        "linear regression."),
        "Throughput: small presets, on one thread of this device; another device stops gaining elsewhere.",
        ("Sizes of the quadratics and of the last batches, and the window over which a measured loss is averaged, were "
        "set with trial runs in view, whose seeds are those of a report: on them it is no fresh confirmation."),
    ),
)  # fmt: skip
