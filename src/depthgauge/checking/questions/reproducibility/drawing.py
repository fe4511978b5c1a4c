"""The figure of two equal runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from depthgauge import drawing
from depthgauge.checking.answers import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """Draw the share of tensors that differ in each phase of each step; None where no runs were compared."""
    table = answer.tables.get("equal runs")
    if table is None or not len(table):
        return None
    from matplotlib import pyplot as plt  # noqa: PLC0415 - drawn only where asked for

    canvas, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    names = [f"{phase}, step {step}" for step, phase in zip(table["step"], table["phase"], strict=True)]
    shares: Any = 100 * table["different"] / table["tensors"]
    axis.barh(names, shares, color=drawing.PALETTE[0], height=0.6)
    for place, (count, different) in enumerate(zip(table["tensors"], table["different"], strict=True)):
        axis.text(shares.iloc[place] + 1, place, f"{different} of {count}", va="center")
    axis.set(xlim=(0, 118), xticks=range(0, 101, 25), xlabel="tensors that differ between two equal runs (%)")
    axis.invert_yaxis()
    drawing.entitle(canvas, "Tensors of two equal runs, compared bit by bit")
    return canvas
