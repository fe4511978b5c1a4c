"""The picture of a training's numbers between the limits of float16."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from depthgauge import formats
from depthgauge.checking import figures
from depthgauge.checking.answers import Answer
from depthgauge.drawing import PALETTE
from depthgauge.drawing.palette import FAINT, GREY, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = dict(zip(("activation", "activation_gradient", "weight", "weight_gradient"), PALETTE, strict=False))
_LEAST = 1e-5  # of a direction's numbers: what is drawn at all


def draw(answer: Answer) -> Figure | None:
    """Draw where the magnitudes of the first steps lie, by direction, with float16's limits; None without a record."""
    table = answer.tables.get("binades")
    if table is None or table.empty:
        return None
    figure, axis = figures.empty()
    table = table[(table["share"] >= _LEAST) & table["direction"].isin(list(_COLOURS))]  # updates need no format
    for direction, part in table.groupby("direction", sort=False):
        name = str(direction)
        axis.plot(
            part["exponent"], 100 * part["share"], color=_COLOURS[name], drawstyle="steps-mid", lw=1.4,
            label=name.replace("_", " "),
        )  # fmt: skip
    half = formats.get("float16")
    zero, normal, top = (math.log2(each) for each in (half.zero_below, half.smallest_normal, half.max))
    low, high = axis.get_xlim()
    low, high = min(low, zero - 3), max(high, top + 6)
    axis.axvspan(low, zero, color=FAINT, lw=0, zorder=0)
    axis.axvspan(top, high, color=FAINT, lw=0, zorder=0)
    axis.axvline(normal, color=GREY, lw=0.8, ls=":")
    above = axis.get_ylim()[1]
    for place, words, side in (
        (zero, "0 in float16 ", "right"),
        (top, " overflows", "left"),
        (normal, "fewer digits ", "right"),
    ):
        axis.text(place, above, words, ha=side, va="top", fontsize=8, color=INK)
    axis.set(xlim=(low, high), xlabel="magnitude, power of two", ylabel="share of the nonzero numbers, %")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left")
    axis.set_title("Magnitudes in the first steps, between float16's limits", loc="left", fontsize=10.5)
    return figure
