"""Differences of accuracy in words: points of a hundred, with their interval."""

from __future__ import annotations

from depthgauge.stats import Estimate


def signed(share: float) -> str:
    """A difference of shares in points: `+1.3`, `-0.2`, `0.0`."""
    value = round(100 * share, 1)
    return f"{value:+.1f}" if value else "0.0"


def spanned(effect: Estimate) -> str:
    """A difference of shares with its interval, where it has one: `0.0 points [-0.8, +0.9]`."""
    interval = f" [{signed(effect.low)}, {signed(effect.high)}]" if effect.has_interval else ""
    return f"{signed(effect.value)} points{interval}"
