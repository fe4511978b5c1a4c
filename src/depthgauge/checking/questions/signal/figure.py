"""The figure of the signal: what passes each weight layer, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 12  # on the axis; more are numbered


def draw(answer: Answer) -> Figure | None:
    """Decades of signal and gradient by weight layer; None where they were not measured."""
    table = answer.tables.get("layers")
    if table is None or len(table) < 2:
        return None
    figure, axis = figures.empty()
    for column, name, colour, style in (
        ("forward_decades", "signal (root mean square)", PALETTE[0], "o-"),
        ("backward_decades", "gradient (norm, last layer: 1)", PALETTE[1], "s-"),
        ("backward_decades_later", "gradient after the first steps", PALETTE[1], "s:"),
    ):
        if column in table:
            axis.plot(table["layer_index"], table[column], style, color=colour, label=name, markersize=4)
    axis.axhline(0, color="#8C8C8C", linewidth=0.8, zorder=0)
    if len(table) <= MOST_NAMES:
        axis.set_xticks(table["layer_index"], table["layer"], rotation=30, ha="right")
    axis.set(xlabel="weight layer, in the order of calls", ylabel="log10 of the size",
             title="Signal and gradient at the output of each weight layer")  # fmt: skip
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return figure
