"""Figures of answers in words: a number with its interval, in the unit that is read most easily."""

from __future__ import annotations

import math

from depthgauge.checking.answers import Measure
from depthgauge.reports.numbers import interval, number


def figure(measure: Measure) -> str:
    """`largest stable rate 0.31 [0.28, 0.35]`; empty where nothing was measured."""
    if math.isnan(measure.value):
        return ""
    return f"{measure.name} {shown(measure)}".strip()


def shown(measure: Measure) -> str:
    """`0.31 [0.28, 0.35]`, `5.1 [4.9, 5.4] ms`."""
    factor, unit = _scale(measure)
    value, low, high = (factor * end for end in (measure.value, measure.low, measure.high))
    bare = math.isnan(low) and math.isnan(high)
    return f"{number(value) if bare else interval(value, low, high)} {unit}".rstrip()


def _scale(measure: Measure) -> tuple[float, str]:
    """Return the factor and the unit in which seconds are read most easily."""
    if measure.unit != "s" or not 0 < abs(measure.value) < 1:
        return 1.0, measure.unit
    return (1e3, "ms") if abs(measure.value) >= 1e-3 else (1e6, "µs")
