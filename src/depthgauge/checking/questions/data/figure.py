"""The figure of the question: one small batch, fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from depthgauge import drawing
from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing.palette import GREY

WIDE = 30  # largest over smallest loss, above which the axis is logarithmic: one end would lie on the other's line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """The loss of one small batch against steps, a line an optimizer."""
    rows = answer.tables.get("fit")
    if rows is None or len(rows) < 2 or not np.isfinite(rows["loss"]).any():
        return None
    figure, axis = figures.empty()
    finite = rows[np.isfinite(rows["loss"])]
    for colour, (optimizer, steps) in zip(drawing.PALETTE, finite.groupby("optimizer", sort=False), strict=False):
        axis.plot(steps["step"], steps["loss"], color=colour, label=optimizer)
    if len(levels := rows["chance"].dropna()):
        axis.axhline(levels.iloc[0], color=GREY, linestyle="--", label="chance")
    if finite["loss"].min() > 0 and finite["loss"].max() > WIDE * finite["loss"].min():
        axis.set_yscale("log")
    axis.set(xlabel="step", ylabel="loss", title="Loss of one small batch, on which every step is made")
    drawing.finish(figure)
    return figure
