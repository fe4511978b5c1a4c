"""The figure of the learning rate's answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing.palette import FAINT, GREY, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(answer: Answer) -> Figure | None:
    """Loss after a few steps from the same weights, against the rate; None where no rate was tried."""
    if "rates" not in answer.tables:
        return None
    rates, stable = answer.tables["rates"], answer.tables["stability"].iloc[0]
    start = float(rates["start"].iloc[0])
    shown = rates[np.isfinite(rates["loss"]) & (rates["loss"] <= start + 1.5 * abs(start - rates["loss"].min()))]
    canvas, axis = figures.empty()
    axis.set_xscale("log")
    axis.axhline(start, color=GREY, linestyle="--", label="before")
    axis.plot(shown["rate"], shown["loss"], "o-", color=PALETTE[0], label=f"after {rates['steps'].iloc[0]} steps")
    left_out = rates.drop(shown.index)
    if len(left_out):
        top = [start] * len(left_out)
        axis.plot(left_out["rate"], top, "^", color=PALETTE[1], label="higher, or not finite")
    axis.axvline(stable["rate"], color=PALETTE[1], label="present rate")
    if np.isfinite(answer.measure.low):
        axis.axvspan(answer.measure.low, answer.measure.high, color=FAINT, label="suggested, 95 %")
    if np.isfinite(stable["value"]):
        axis.axvline(stable["value"], color=PALETTE[2], linestyle=":", label="largest stable rate now")
    axis.set(xlabel="learning rate", ylabel="loss", title="Loss after a few steps at each rate, from the same weights")
    axis.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return canvas
