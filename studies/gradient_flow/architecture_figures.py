"""Figures of the part on real architectures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, theory
from depthgauge.factories import is_factory
from depthgauge.frames import layers_to_name

DRAWN = ("mlp", "vgg19", "resnet50", "googlenet", "rnn", "transformer")  # one of each kind, where all were measured
LIMITS = (-9.5, 4.5)  # decades that a figure shows
BATCH_NORM_GROWTH = math.log(theory.batch_norm_growth("relu", math.inf))  # of the squared gradient, at a large batch


def _caption(profiles: pd.DataFrame) -> str:
    names = profiles["model"].unique()
    made = ("as its factory makes it" if is_factory(name) else "at its small preset" for name in names)
    steps = " (rnn and lstm: the layer of the input, then that of the state step by step)" * ("rnn" in names)
    return (
        f"Each model {' or '.join(dict.fromkeys(made))}, fed {' or '.join(profiles['fed'].unique())}; weight layers "
        f"in the order in which they run{steps}. Backward: norm of the gradient at each layer's output, over that at "
        f"the last; forward: root mean square of the output. Median of {profiles['n'].min()} seeds; a gap: no signal."
    )


@drawing.figure(
    "architectures", "What reaches each weight layer of an architecture at initialization depends on its form", _caption
)
def layers(architecture_profiles: pd.DataFrame) -> Any:
    """The gradient layer by layer, one panel an architecture; signal and gradient of a single one, its layers named."""
    own, names = architecture_profiles.replace([math.inf, -math.inf], math.nan), set(architecture_profiles["model"])
    if single := len(names) == 1:
        named = layers_to_name(own[own["form"] == own["form"].iloc[0]])
        ticks: dict[str, Any] = {"xticks": named["depth"], "xticklabels": named["layer"]}
    else:
        own = own[(own["direction"] == "backward") & own["model"].isin(DRAWN if names >= set(DRAWN) else names)]
        ticks = {"xticks": (0, 0.5, 1), "xticklabels": ("in", "", "out")}
    axes = {**ticks, "xlabel": "layer", "ylabel": r"$\log_{10}$ size", "ylim": LIMITS}
    column, band = "direction" if single else "model", "range over seeds"
    canvas = drawing.panels(own, column, drawing.profile, by="form", x="depth", band=band, axes=axes)
    for axis in canvas.axes if single else ():
        axis.tick_params(axis="x", rotation=90)
    return canvas


def _with_theory(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.estimates(axis, rows, **options)
    for value, style, label in ((math.log(1 / 6), "--", "default"), (BATCH_NORM_GROWTH, ":", "batch norm")):
        axis.axvline(value, color="0.35", lw=1.2, ls=style, label=f"theory: ReLU, {label}")


@drawing.figure(
    "architecture_rates", "How fast the gradient of real architectures grows or shrinks toward the input",
    lambda architectures: "Slope of ln of the squared gradient norm over weight layers (rnn and lstm: over steps), "
    f"95 % t interval over {architectures['n'].min()} seeds. Theory, for fully connected ReLU layers: ln 1/6 (1/3 from "
    "nn.Linear's weights, 1/2 from ReLU); with batch normalization Yang et al. 2019.",
)  # fmt: skip
def growths(architectures: pd.DataFrame) -> Any:
    """The rate a layer at which each architecture's gradient grows or shrinks, beside theory's."""
    own = architectures.rename(columns={"backward_low_95": "low_95", "backward_high_95": "high_95"})
    axes = {"xlabel": "growth of the squared gradient toward the input, ln a layer"}
    options: dict[str, Any] = {"by": "form", "at": "model", "value": "backward", "axes": axes}
    return drawing.panels(own, "", _with_theory, **options) if np.isfinite(own["backward"]).any() else None
