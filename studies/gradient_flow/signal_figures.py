"""Figures of the part on deep plain networks at initialization."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pandas as pd

from depthgauge import drawing, formats
from depthgauge.drawing.palette import GREY
from depthgauge.replicas import plain

UNBIASED = "direction == 'backward' and init == 'gaussian' and sigma_b == 0"
SEEN = {"forward": r"$\log_{10}$ signal", "backward": r"$\log_{10}$ gradient", "": "correlation of two inputs"}


def _one_of(axis: Any, rows: pd.DataFrame, by: str, looks: Any, at: float | None = None) -> None:
    """Profiles of every value, or of one with the others in grey."""
    if at is not None:
        for _, other in rows[rows[by] != at].groupby(by):
            axis.plot(other["layer_index"], other["median"], color=GREY, lw=0.8, alpha=0.6, label="other values")
        rows = rows[rows[by] == at]
    drawing.profile(axis, rows, "layer_index", by, looks=looks)


@drawing.figure(
    "phases", "What the scale of its weights does to a deep network: signal, gradient, and the likeness of two inputs",
    lambda _, correlations: f"tanh, sigma_b = {correlations['sigma_b'].min():g}. Left: second moment of the "
    "pre-activations; middle: of the gradient with respect to them, which enters at the last layer as 1; right: "
    f"correlation of two inputs that start at {plain.INPUT_OVERLAP:g}. Median over seeds; "
    "dashed: mean-field theory.",
    "Size of signal and gradient and correlation of two inputs by layer, a line for each sigma_w from small to large.",
)  # fmt: skip
def phases(profiles: pd.DataFrame, correlations: pd.DataFrame) -> Any:
    """Signal, gradient and correlation by layer at every sigma_w, and a step for each."""
    biased = profiles["sigma_b"] == correlations["sigma_b"].iloc[0]
    own = profiles[biased & (profiles["activation"] == "tanh") & (profiles["init"] == "gaussian")]
    table = pd.concat([own, correlations.assign(direction="")])
    table = table.assign(seen=table["direction"].map(SEEN))

    def draw(at: float | None = None) -> Any:
        axes = {"ylabel": " ", "xlabel": "layer"}
        return drawing.panels(table, "seen", partial(_one_of, at=at), by="sigma_w", shared="x", axes=axes)

    steps = {f"sigma_w = {at:.3g}": draw(at) for at in sorted(correlations["sigma_w"].unique())}
    whole = draw()
    for axis, *others in zip(whole.axes, *(step.axes for step in steps.values()), strict=True):
        for other in others:
            other.set_ylim(axis.get_ylim())
    return whole, steps


@drawing.figure(
    "rates", "How fast the gradient grows or shrinks a layer: measured, and predicted before the first step",
    lambda rates: "Growth of the gradient's second moment a layer, back through the network, mean over "
    f"{rates['n'].min()} seeds with intervals for all configurations at once (sigma_b = 0). Dashed: theory at "
    "that width. Below zero gradients vanish, above zero they explode.",
    "Growth of the gradient a layer against sigma_w: points for each activation, theory's line through them dashed.",
)  # fmt: skip
def rates(rates: pd.DataFrame) -> Any:
    """Measured growth of the gradient a layer against the prediction."""
    own = rates.query(UNBIASED)
    axes = {"xscale": "log", "ylabel": "ln growth of squared gradient a layer"}
    return drawing.panels(own, "", drawing.estimates, by="activation", at="sigma_w", axes=axes) if len(own) else None


@drawing.figure(
    "profiles", "The same loss gradient arrives at layer 1 enlarged or erased by many powers of ten",
    "Second moment of the gradient with respect to each layer's pre-activations; it enters at the last layer (right) "
    "with second moment 1. Median over seeds; sigma_b = 0.",
)  # fmt: skip
def profiles(profiles: pd.DataFrame) -> Any:
    """Gradient second moment by layer, one panel an activation, sigma_w as colour."""
    own = profiles.query(UNBIASED)
    form, axes = drawing.profile, {"ylabel": r"$\log_{10}$ gradient"}
    return drawing.panels(own, "activation", form, by="sigma_w", x="layer_index", axes=axes) if len(own) else None


def _with_formats(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.profile(axis, rows, **options)
    for name, style in (("float16", ":"), ("float32", "-.")):
        axis.axhline(
            math.log10(formats.get(name).smallest_subnormal), color=GREY, lw=1.2, ls=style, label=f"least in {name}"
        )


@drawing.figure(
    "pytorch_default", "What PyTorch's default initialization leaves of the gradient of a deep plain network",
    "Root-mean-square gradient, relative to that at the last layer; weights and biases uniform in +-1/sqrt(fan-in), "
    "that is sigma_w^2 = 1/3. Median over seeds; linear lies under tanh.",
    "Size of the gradient by layers passed, a falling line an activation, and where number formats hold none of it.",
)  # fmt: skip
def default(profiles: pd.DataFrame) -> Any:
    """Gradient by layer under nn.Linear's own initialization."""
    own = profiles.query("direction == 'backward' and init == 'torch'")
    halves = {name: own[name] / 2 for name in ("low", "median", "high", "predicted")}  # of a root
    own = own.assign(**halves, layers_passed=own["layer_index"].max() - own["layer_index"])
    axes = {"ylabel": r"$\log_{10}$ rms gradient"}
    return drawing.panels(own, "", _with_formats, by="activation", x="layers_passed", axes=axes) if len(own) else None
