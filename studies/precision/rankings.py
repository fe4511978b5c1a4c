"""Figures of every layer: the largest errors of their own, and how errors grow through a network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing

FORMATS = ("float16", "bfloat16")
MOST = 10  # modules of a network in a ranking's figure


def dots(axis: Any, rows: pd.DataFrame, by: str, looks: Any) -> None:
    """A row a module: its own error filled, the network's total error at it hollow."""
    names = list(dict.fromkeys(rows["layer"]))
    axis.set_yticks(range(len(names)), [name or "the network itself" for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set(xlabel="relative rms error")
    for fmt, look in looks.items():
        part = rows[rows[by] == fmt]
        where = part["layer"].map({name: place for place, name in enumerate(names)})
        axis.plot(part["value"], where, look.marker, color=look.colour, label=str(fmt))
        axis.plot(part["total"], where, look.marker, color=look.colour, mfc="none", alpha=0.7)
    axis.plot([], [], "o", color="#8C8C8C", label="own error")
    axis.plot([], [], "o", color="#8C8C8C", mfc="none", label="total error at the layer")


def ranked(layer_errors: pd.DataFrame, direction: str) -> Any:
    """Own and total errors of the worst modules in a direction at initialization, a panel a network."""
    worst = at_start(layer_errors[layer_errors["bfloat16_own"] > 0], direction)
    worst = worst.groupby("network", sort=False).head(MOST)
    parts = [worst.assign(format=f, value=worst[f"{f}_own"], total=worst[f"{f}_total"]) for f in FORMATS]
    options: dict[str, Any] = {"shared": "", "axes": {"xscale": "log"}, "size": (4.3, 3.4)}
    return drawing.panels(pd.concat(parts).replace(np.inf, np.nan), "network", dots, by="format", **options)


def at_start(layer_errors: pd.DataFrame, direction: str) -> pd.DataFrame:
    """The rows of a direction at initialization."""
    return layer_errors[(layer_errors["direction"] == direction) & (layer_errors["state"] == "initialized")]


@drawing.figure(
    "layer_ranking", "Layers by the error that they make themselves",
    f"The {MOST} modules with the largest own error in bfloat16 at initialization, forward: the module is given its "
    "float32 inputs and runs in the format. Hollow: the plain run of the whole network. Medians over networks; an "
    "infinite error has no mark.",
)  # fmt: skip
def draw_ranking(layer_errors: pd.DataFrame) -> Any:
    """The forward pass."""
    return ranked(layer_errors, "forward")


@drawing.figure(
    "gradient_ranking", "Layers by the error that their backward pass makes itself",
    f"The {MOST} modules with the largest own error in bfloat16 at initialization, backward: the module is given its "
    "float32 inputs and output gradients; the error is the larger one of its inputs' gradient and its weights'. "
    "Hollow: the plain run of the whole network. Medians over networks; an infinite error has no mark.",
)  # fmt: skip
def draw_gradient_ranking(layer_errors: pd.DataFrame) -> Any:
    """The backward pass."""
    return ranked(layer_errors, "backward")


@drawing.figure(
    "layer_profiles", "Errors grow through a network until float16 overflows",
    "Total error of the plain low-precision run at the output of each module without children, in the order of "
    "execution, at initialization; median over networks. A line ends where the error is infinite.",
)  # fmt: skip
def draw_profiles(layer_errors: pd.DataFrame) -> Any:
    """Total error by place, a line a format, a panel a network."""
    own = at_start(layer_errors[~layer_errors["composite"]], "forward").sort_values("layer_index")
    own = own.assign(module=own.groupby("network").cumcount() + 1)
    shown = pd.concat([own.assign(format=fmt, error=own[f"{fmt}_total"]) for fmt in FORMATS])
    shown = shown[np.isfinite(shown["error"]) & (shown["error"] > 0)]
    options: dict[str, Any] = {"marks": False, "axes": {"yscale": "log", "ylabel": "relative rms error"}}
    return drawing.panels(shown, "network", drawing.lines, x="module", y="error", by="format", **options)
