"""The drawing kit: figures of tidy tables, each form drawn one way and each thing in one look in every report.

    from depthgauge import drawing

    @drawing.figure("rates", "The growth a layer is known before the first step", "Mean of 40 seeds; dashed: theory.")
    def rates(rates):
        return drawing.panels(rates, "init", drawing.estimates, at="sigma_w", by="activation", axes={"xscale": "log"})

Importing it loads no drawing library.
"""

from depthgauge.drawing.canvas import described, entitle, figure, finish, lay_out, legend, panels
from depthgauge.drawing.forms import (
    colour_bar,
    estimates,
    forest,
    heat,
    interval,
    label,
    ladder,
    lines,
    looks_of,
    profile,
    shaded,
)  # fmt: skip
from depthgauge.drawing.palette import PALETTE, Look, look, looks

__all__ = [
    "PALETTE", "Look", "colour_bar", "described", "entitle", "estimates", "figure", "finish", "forest", "heat",
    "interval", "label", "ladder", "lay_out", "legend", "lines", "look", "looks", "looks_of", "panels", "profile",
    "shaded",
]  # fmt: skip
