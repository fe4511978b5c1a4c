"""The figure of the batch size's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing.palette import FAINT, GREY, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """Steps to the same loss against the batch size; None where there is no noise scale."""
    if "batches" not in answer.tables:
        return None
    rows = answer.tables["batches"]
    present = rows.loc[rows["relative_steps"] == 1, "batch"]
    canvas, axis = figures.empty()
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.fill_between(rows["batch"], rows["low_95"], rows["high_95"], color=FAINT, label="95 % of the noise scale")
    axis.plot(rows["batch"], rows["relative_steps"], "o-", color=PALETTE[0], label="steps, over those now")
    if len(present):
        axis.axvline(present.iloc[0], color=PALETTE[1], label="present batch")
        axis.plot(rows["batch"], present.iloc[0] / rows["batch"], "--", color=GREY, label="as many examples in all")
    if np.isfinite(answer.measure.value) and answer.measure.value > 0:
        axis.axvline(answer.measure.value, color=PALETTE[2], linestyle=":", label="noise scale")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set(xlabel="examples a batch", ylabel="steps to the same loss", title="Steps that other batch sizes take")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return canvas
