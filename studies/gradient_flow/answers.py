"""What the parts of the study share: how near counts as the same, and what a colour means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 0.02  # ln a layer: rates closer to each other than this are called the same
CONFIDENCE = 0.99  # of a family of comparisons with theory
COLOURS = {"linear": "C0", "relu": "C1", "tanh": "C2", "sigmoid": "C3", "gelu": "C4"}  # an activation, in every figure


def shades(count: int) -> list[Any]:
    """Colours for an ordered quantity, dark to light, without the palest end."""
    import seaborn as sns  # noqa: PLC0415 - a second that workers, which draw nothing, need not spend

    return list(sns.color_palette("viridis", count))


def coinciding(lines: pd.DataFrame, *, within: float) -> list[list[str]]:
    """The columns, in groups whose curves are nowhere further than `within` from the group's first."""
    found: list[list[str]] = []
    for name in lines:
        same = (group for group in found if (lines[group[0]] - lines[name]).abs().max() <= within)
        group = next(same, None)
        if group is None:
            found.append([str(name)])
        else:
            group.append(str(name))
    return found
