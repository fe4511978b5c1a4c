"""The figure of a step's phases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """Draw the phases' times with their intervals; None where none were timed."""
    table = answer.tables.get("phases")
    if table is None or not len(table):
        return None
    rows = table[table["phase"] != "step"]
    canvas, axis = figures.empty()
    errors = None
    if rows[["low_95", "high_95"]].notna().all(axis=None):
        errors = [rows["ms"] - rows["low_95"], rows["high_95"] - rows["ms"]]
    axis.barh(rows["phase"], rows["ms"], xerr=errors, color=PALETTE[0], height=0.6)
    axis.set(xlabel="median time in a step (ms)", xlim=(0, None))
    axis.invert_yaxis()
    axis.set_title("Time of a step by phase, with the 95 % interval of the median")
    return canvas
