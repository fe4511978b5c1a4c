"""The figure of the question: one small batch, fitted."""

# ruff: noqa: PLC0415 - a drawing library is imported where something is drawn

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from depthgauge.checking.answers import Answer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """The loss of one small batch against steps, a line an optimizer."""
    from matplotlib.figure import Figure

    from depthgauge import drawing

    rows = answer.tables.get("fit")
    if rows is None or len(rows) < 2 or not np.isfinite(rows["loss"]).any():
        return None
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    drawing.lines(axis, rows, "step", "loss", "optimizer", marks=False)
    if (rows["loss"] > 0).all():
        axis.set_yscale("log")
    axis.set_title("Loss of one small batch, steps repeated on it")
    return figure
