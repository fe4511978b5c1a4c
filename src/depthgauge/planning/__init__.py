"""Plans of trainings: steps to a target against the size of a batch."""

from __future__ import annotations

from depthgauge.planning.hyperbola import Hyperbola, fit

__all__ = ["Hyperbola", "fit"]
