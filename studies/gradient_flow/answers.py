"""What the parts of the study share: how near counts as the same, and colours."""

from __future__ import annotations

from typing import Any

MARGIN = 0.02  # ln a layer: rates closer to each other than this are called the same
CONFIDENCE = 0.99  # of a family of comparisons with theory


def shades(count: int) -> list[Any]:
    """Colours for an ordered quantity, dark to light, without the palest end."""
    import seaborn as sns  # noqa: PLC0415 - a second that workers, which draw nothing, need not spend

    return list(sns.color_palette("viridis", count))
