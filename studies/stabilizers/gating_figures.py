"""Figures of gates and shortcuts."""

from __future__ import annotations

from typing import Any

import pandas as pd

from depthgauge import drawing

# What a figure calls them, so that no two look alike.
CELLS = {"RNN": "default RNN", "orthogonal RNN": "orthogonal", "identity RNN": "identity, ReLU"}


@drawing.figure(
    "gate_reach", "How far back the gradient reaches at initialization, through gates and through products",
    lambda reach: f"Root mean square of the gradient at what was passed on some steps back; median and middle 90 % of "
    f"{reach['n'].min()} networks. Dashed: product of the forget gates. What lies below the panel is not shown.",
)  # fmt: skip
def draw_reach(reach: pd.DataFrame) -> Any:
    """Gradient by steps back, a line a network."""
    axes = {"xscale": "symlog", "yscale": "log", "xlabel": "steps back", "ylabel": "gradient", "ylim": (1e-4, 10)}
    shown = reach[reach["median"] > 1e-6].rename(columns={"network": "cell"})
    shown = shown.assign(cell=shown["cell"].replace(CELLS))
    return drawing.panels(shown, "", drawing.profile, x="back", by="cell", axes=axes)


@drawing.figure(
    "off_critical", "Growth of the gradient through a stack of weights 10 % off He's, critical without shortcuts",
    lambda off_critical: f"ln of the squared gradient at the input over that at the output of "
    f"{off_critical['depth'].max()} ReLU layers or blocks; mean of {off_critical['n'].min()} seeds, 95 % "
    "intervals. Marks: theory.",
)  # fmt: skip
def draw_growth(off_critical: pd.DataFrame) -> Any:
    """Growths, a row a stack."""
    axes = {"xlabel": "ln of squared gradient, input over output"}
    return drawing.panels(off_critical, "", drawing.estimates, at="stack", axes=axes)


@drawing.figure(
    "gate_losses", "What recurrent networks learn over a hundred steps",
    lambda gate_losses: f"Loss of unseen sequences over that of the best answer without knowledge, each network at its "
    f"own rate; median of {gate_losses['n'].min()} seeds, 95 % intervals; +: a rate beyond the grid may do better.",
)  # fmt: skip
def draw_losses(gate_losses: pd.DataFrame) -> Any:
    """Losses, a row a network, a panel a task."""
    axes = {"xlabel": "loss over baseline"}
    marks = gate_losses["open_ended"].map({True: " +", False: ""})
    gate_losses = gate_losses.assign(network=gate_losses["network"] + marks)
    return drawing.panels(gate_losses, "task", drawing.estimates, at="network", value="loss", axes=axes, shared="both")
