"""Figures of the part on accumulated steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing
from depthgauge.drawing.palette import GREY, PALETTE
from depthgauge.studies.data_parallel.windows import NEAR


@drawing.figure(
    "accumulation", "Accumulated gradients against the gradient of the whole batch",
    "Component of the accumulated gradient along the whole batch's, in multiples of it; ticks: predicted. Squares: the "
    f"distance of the two is more than {NEAR:g} of the norm, also where the factor is 1 and the direction another.",
)  # fmt: skip
def draw_factors(accumulation: pd.DataFrame) -> Any:
    """Factors by way, a panel a number of ranks."""
    looks = {"the whole batch's": drawing.Look(PALETTE[0]), "another": drawing.Look(PALETTE[1], "s")}
    same, another = looks
    shown = accumulation.assign(gradient=np.where(accumulation["distance"] <= NEAR, same, another))

    def form(axis: Any, own: pd.DataFrame, by: str, **_: Any) -> None:
        axis.axvline(1, color=GREY, lw=0.8, zorder=0, label="factor 1")
        drawing.estimates(axis, own, "row", by, looks=looks)

    axes = {"xscale": "log", "xlabel": "factor of the gradient"}
    return drawing.panels(shown, "ranks", form, by="gradient", axes=axes, size=(6.8, 5.2))


@drawing.figure(
    "token_weights", "Weight of a token in an accumulated step, by the number of tokens in its window",
    "Weight of a token in the accumulated step over its weight in the whole batch, solved from gradients of a small "
    "network, by the tokens of its window; dashed: predicted from the lengths alone. Divided by the tokens of a rank, "
    "the weight is that of the rank: the shorter windows are those of one, the longer of the other.",
)  # fmt: skip
def draw_weights(token_weights: pd.DataFrame) -> Any:
    """Weights by length, a panel a number of ranks."""
    looks = {row: drawing.Look(PALETTE[k], "os^"[k]) for k, row in enumerate(token_weights["row"].unique())}

    def form(axis: Any, own: pd.DataFrame, by: str, **_: Any) -> None:
        drawing.estimates(axis, own, "tokens", by, looks=looks)

    axes = {
        "xscale": "log",
        "yscale": "log",
        "xlabel": "tokens of the window",
        "ylabel": "weight over that in the whole batch",
    }
    return drawing.panels(token_weights, "ranks", form, by="row", axes=axes)


FIGURES = (draw_factors, draw_weights)
