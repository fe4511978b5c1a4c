"""Plans of trainings: steps to a target against the size of a batch, and what follows for time and learning rate."""

from __future__ import annotations

from depthgauge.planning.hyperbola import Hyperbola, fit
from depthgauge.planning.making import plan
from depthgauge.planning.result import Plan, Point, Row

__all__ = ["Hyperbola", "Plan", "Point", "Row", "fit", "plan"]
