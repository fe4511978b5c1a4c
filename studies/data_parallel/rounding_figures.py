"""Figures of the part on rounding."""

from __future__ import annotations

from typing import Any

import pandas as pd

from depthgauge import drawing
from depthgauge.drawing.palette import GREY, INK, PALETTE
from depthgauge.questions import ends
from depthgauge.studies.data_parallel.ring import GRADIENTS


@drawing.figure(
    "reduction_error", "Emulated: rounding error of a reduced gradient, by the number of ranks",
    "Error of a reduced gradient over its norm, in unit roundoffs u, by the number n of ranks: medians, 95 % "
    "intervals; dashed: the law of roundings in the ring's order; dotted: n u. An emulation of gloo's ring.",
)  # fmt: skip
def draw_errors(reduction_error: pd.DataFrame) -> Any:
    """Errors by ranks, a panel a format."""
    looks = {gradient: drawing.Look(PALETTE[k], "os^D"[k]) for k, gradient in enumerate(GRADIENTS)}
    unit = reduction_error["n u"] / reduction_error["ranks"]
    in_units = {name: reduction_error[name] / unit for name in ("error", *ends(0.95, "error"))}
    shown = reduction_error.assign(predicted=reduction_error["law"] / unit, **in_units)

    def form(axis: Any, own: pd.DataFrame, by: str, **_: Any) -> None:
        drawing.estimates(axis, own, "ranks", by, value="error", looks=looks)
        line = [own["ranks"].min(), own["ranks"].max()]
        axis.plot(line, line, color=INK, ls=":", lw=1.2, label="n u")

    axes = {"xscale": "log", "yscale": "log", "xlabel": "ranks", "ylabel": "relative error, u"}
    return drawing.panels(shown[shown["error"] > 0], "format", form, by="gradient", axes=axes)


@drawing.figure(
    "compression", "Emulated: error of a float16 hook over a bfloat16 hook's, by the size of the gradients",
    "Error of a float16 hook over that of a bfloat16 hook, by a factor on the gradients of a small network on digits; "
    "intervals that hold at once. Dashed: independent roundings, underflow among them. Grey: 1/8, three bits more.",
)  # fmt: skip
def draw_compression(compression: pd.DataFrame) -> Any:
    """Ratios by the gradient's size."""

    def form(axis: Any, own: pd.DataFrame, **options: Any) -> None:
        drawing.estimates(axis, own.assign(predicted=own["law"]), "scale", **options)
        axis.axhline(1 / 8, color=GREY, lw=0.8, zorder=0, label="three bits more")

    axes = {
        "xscale": "log",
        "yscale": "log",
        "xlabel": "factor on the gradients",
        "ylabel": "error, float16 over bfloat16",
    }
    return drawing.panels(compression, "", form, axes=axes)


FIGURES = (draw_errors, draw_compression)
