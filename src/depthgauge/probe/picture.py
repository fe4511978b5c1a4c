"""The picture of a record: where each layer's values lie between the limits of a number format."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from depthgauge import formats
from depthgauge.probe.rows import CELLS, Rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# ruff: noqa: PLC0415 - matplotlib and pandas take a second that only who draws should spend

_MOST = 40  # layers
_LOST, _SUBNORMAL = "#D55E00", "#E69F00"
_STYLE: dict[Any, Any] = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}


def draw(
    rows: Rows, where: pd.DataFrame, shifts: NDArray[np.float64], table: pd.DataFrame, fmt: formats.Format
) -> Figure:
    """The figure of `Record.plot`.

    Args:
        rows: of a record; n tensors.
        where: (n,) their coordinates, as in `Record.to_frame`.
        shifts: (n,) powers of two that each is multiplied by.
        table: that of `Record.summary`.
        fmt: the format.

    Raises:
        ValueError: there are no rows.
    """
    if table.empty:
        raise ValueError("the record holds no rows that could be drawn")
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    layers = _chosen(table, where)
    seen = list(where["direction"].unique())
    directions = [name for name in seen if name != "update"] or seen  # an update is not what a format has to hold
    first, counts = _counted(rows, where, shifts, layers, directions)
    with mpl.rc_context():
        mpl.rcdefaults()  # but for the backend, which stays
        mpl.rcParams.update(_STYLE)
        size = (2.2 + 2.3 * len(directions), 1.9 + 0.24 * len(layers))
        canvas, axes = plt.subplots(
            ncols=len(directions), figsize=size, sharey=True, squeeze=False, layout="constrained"
        )
        for axis, direction, some in zip(axes[0], directions, counts, strict=True):
            mesh = _panel(axis, direction, first, some, fmt)
        axes[0, 0].set_yticks(range(len(layers)), [name or "(module)" for name in layers])
        axes[0, 0].set(ylabel="layer, in the order of execution", ylim=(len(layers) - 0.5, -0.5))
        axes[0, len(directions) // 2].set_xlabel("power of two of a value")
        canvas.suptitle(_title(table, fmt, len(layers)), x=0.01, ha="left", fontsize=11.5)
        _keys(canvas, mesh, fmt)
        plt.close(canvas)  # no window, and no second picture in a notebook
    return canvas


def _chosen(table: pd.DataFrame, where: pd.DataFrame) -> dict[str, int]:
    """The layers that lose most, with their places from the top: in the order of execution, else as they were seen."""
    index = table.head(_MOST).set_index("layer")["layer_index"]
    index = index.reindex([name for name in where["layer"].unique() if name in index.index])
    return {name: place for place, name in enumerate(index.sort_values(kind="stable").index)}


def _counted(
    rows: Rows, where: pd.DataFrame, shifts: NDArray[np.float64], layers: dict[str, int], directions: list[str]
) -> tuple[int, NDArray[np.float64]]:
    """The lowest binade, and counts by direction, layer and binade."""
    exponents, _ = formats.cell_of(rows.keys)
    row = np.repeat(np.arange(len(rows.words)), rows.words[:, CELLS])
    with np.errstate(invalid="ignore"):
        binades = exponents + np.nan_to_num(np.rint(shifts)).astype(np.int64)[row]
    layer = where["layer"].map(layers).fillna(-1).to_numpy(int)[row]
    direction = (
        where["direction"].map({name: place for place, name in enumerate(directions)}).fillna(-1).to_numpy(int)[row]
    )
    kept = (layer >= 0) & (direction >= 0)
    first = int(binades[kept].min(initial=0))
    counts = np.zeros((len(directions), len(layers), int(binades[kept].max(initial=0)) - first + 1))
    np.add.at(counts, (direction[kept], layer[kept], binades[kept] - first), rows.counts[kept])
    return first, counts


def _panel(axis: Any, direction: str, first: int, counts: NDArray[np.float64], fmt: formats.Format) -> Any:
    zero, normal, over = (math.log2(limit) for limit in (fmt.smallest_subnormal / 2, fmt.smallest_normal, fmt.max))
    filled = np.flatnonzero(counts.sum(axis=0))
    low, high = (first + filled[0], first + filled[-1] + 1) if len(filled) else (-1, 1)
    low, high = min(low, -4) - 1.0, max(high, 4) + 1.0
    axis.axvspan(min(low, zero) - 1, zero, color=_LOST, alpha=0.16, linewidth=0)
    axis.axvspan(over, max(high, over) + 1, color=_LOST, alpha=0.16, linewidth=0)
    axis.axvspan(zero, normal, color=_SUBNORMAL, alpha=0.16, linewidth=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = counts / counts.sum(axis=1, keepdims=True)
    edges = np.arange(first, first + counts.shape[1] + 1), np.arange(len(counts) + 1) - 0.5
    seen = np.ma.masked_less_equal(np.nan_to_num(share), 0)
    mesh = axis.pcolormesh(*edges, seen, cmap="Blues", norm=_shares())
    axis.set_xlim(low, high)
    for limit in (zero, over):
        if low < limit < high:
            axis.axvline(limit, color=_LOST, linewidth=1)
    axis.set_title(direction.replace("_", " "), fontsize=10.5)
    return mesh


def _shares() -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(1e-5, 1, clip=True)


def _keys(canvas: Any, mesh: Any, fmt: formats.Format) -> None:
    from matplotlib.patches import Patch

    lost = Patch(color=_LOST, alpha=0.3, label=f"lost in {fmt.name}: becomes zero, or overflows")
    fewer = Patch(color=_SUBNORMAL, alpha=0.3, label="subnormal: fewer digits")
    canvas.legend(handles=[lost, fewer], loc="outside lower center", ncols=2, frameon=False, fontsize=9.5)
    canvas.colorbar(mesh, ax=canvas.axes, label="share of the layer's values", pad=0.01, aspect=30)


def _title(table: pd.DataFrame, fmt: formats.Format, layers: int) -> str:
    worst = table.iloc[0]
    name = worst["layer"] or "(module)"
    some = f" ({layers} of {len(table)} layers)" if layers < len(table) else ""
    if worst["not_finite"] or worst["over"] or worst["under"]:
        return f"Worst is layer {name!r}{some}: {worst['says']}"
    return f"Every layer fits {fmt.name}{some}"
