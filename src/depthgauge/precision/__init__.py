"""Rounding in a module: where its errors arise, which differences it explains, arithmetic that a device lacks.

from depthgauge import precision

precision.bisect(model, x, torch.bfloat16).sort_values("own", ascending=False)     # which layers hurt
precision.compare(model, torch.compile(model), x)                                  # where two versions differ
with precision.emulated("float8_e4m3fn"):                                          # rounded after every operator
    loss(model(x), y).backward()
"""

from __future__ import annotations

from depthgauge.precision.bisection import bisect
from depthgauge.precision.comparison import Comparison, compare
from depthgauge.precision.divergence import Divergence, nudge, twins
from depthgauge.precision.emulation import cast, emulated
from depthgauge.precision.invariance import batch_invariance, ulp_distance

__all__ = [
    "Comparison",
    "Divergence",
    "batch_invariance",
    "bisect",
    "cast",
    "compare",
    "emulated",
    "nudge",
    "twins",
    "ulp_distance",
]
