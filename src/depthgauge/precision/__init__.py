"""Two versions of a computation side by side, and what number formats do to a module."""

from __future__ import annotations

from depthgauge.precision.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
