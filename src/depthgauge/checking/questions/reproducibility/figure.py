"""The figure of two equal runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """Draw the share of tensors that differ in each phase of each step; None where no runs were compared."""
    table = answer.tables.get("equal runs")
    if table is None or not len(table):
        return None
    canvas, axis = figures.empty()
    names = [f"{phase}, step {step}" for step, phase in zip(table["step"], table["phase"], strict=True)]
    shares: Any = 100 * table["different"] / table["tensors"]
    axis.barh(names, shares, color=PALETTE[0], height=0.6)
    for place, (count, different) in enumerate(zip(table["tensors"], table["different"], strict=True)):
        axis.text(shares.iloc[place] + 1, place, f"{different} of {count}", va="center")
    axis.set(xlim=(0, 118), xticks=range(0, 101, 25), xlabel="tensors that differ between two equal runs (%)")
    axis.invert_yaxis()
    axis.set_title("Tensors of two equal runs, compared bit by bit")
    return canvas
