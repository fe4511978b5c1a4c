"""Two versions of a computation side by side, and what number formats do to a module."""

from __future__ import annotations

from depthgauge.precision.comparison import Comparison, compare
from depthgauge.precision.divergence import Divergence, nudge, twins
from depthgauge.precision.invariance import batch_invariance, ulp_distance

__all__ = [
    "Comparison",
    "Divergence",
    "batch_invariance",
    "compare",
    "nudge",
    "twins",
    "ulp_distance",
]
