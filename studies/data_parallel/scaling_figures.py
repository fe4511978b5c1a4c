"""Figures of the part on scaling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing
from depthgauge.drawing.palette import FAINT, GREY, INK, PALETTE

PARTS = {  # what a step's time is divided into: its look in the bars
    "computing": (PALETTE[0], ""), "hidden": (PALETTE[0], "///"), "exposed": (PALETTE[1], ""), "rest": (FAINT, ""),
}  # fmt: skip
NAMES = {
    "computing": "computing alone", "hidden": "computing while communicating", "exposed": "communicating alone",
    "rest": "the rest",
}  # fmt: skip


def _speed(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    """Draw speed-up against ranks, the ideal, and where ranks share cores."""
    drawing.estimates(axis, rows.drop(columns="predicted"), "ranks", joined=True, **options)
    ranks = np.sort(rows["ranks"].unique())
    axis.plot(ranks, ranks, color=INK, lw=1.2, ls="--", zorder=1, label="ideal")
    axis.set_xticks(ranks, [str(each) for each in ranks])
    axis.minorticks_off()
    shared = rows.loc[rows["shared"], "ranks"]
    if len(shared):
        apart = rows.loc[~rows["shared"], "ranks"].max()
        axis.axvspan(
            np.sqrt(apart * shared.min()), ranks.max() * 1.15, color=GREY, alpha=0.25, lw=0, zorder=0,
            label="ranks share cores: no scaling",
        )  # fmt: skip


def _speedup(speedup: pd.DataFrame, kind: str) -> Any:
    rows = speedup[speedup["scaling"] == kind]
    several = rows.groupby(["net", "batch"])["ranks"].transform("nunique") > 1
    axes = {"xscale": "log", "yscale": "log", "xlabel": "ranks", "ylabel": "speed-up"}
    return drawing.panels(rows[several], "net", _speed, by="batch", axes=axes)


@drawing.figure(
    "strong_scaling", "Speed-up by DDP at a fixed total batch",
    "Examples a second of DDP over those of plain training on one rank with the same total batch (the lines); "
    "medians of rounds, 95 % intervals; dashed: the ideal; grey: more ranks than cores.",
)  # fmt: skip
def draw_strong(speedup: pd.DataFrame) -> Any:
    """Speed-up at a fixed total batch, a panel a network."""
    return _speedup(speedup, "strong")


@drawing.figure(
    "weak_scaling", "Speed-up by DDP at a fixed batch a rank",
    "Examples a second of DDP over those of plain training on one rank with the same batch a rank (the lines); "
    "medians of rounds, 95 % intervals; dashed: the ideal; grey: more ranks than cores.",
)  # fmt: skip
def draw_weak(speedup: pd.DataFrame) -> Any:
    """Speed-up at a fixed batch a rank, a panel a network."""
    return _speedup(speedup, "weak")


@drawing.figure(
    "time_lost", "Time lost on two ranks to each other's company, and to the exchange of gradients",
    "Seconds of a step on two ranks: plain training over that on one rank (side by side), DDP over plain training "
    "on two ranks (DDP); medians, 95 % intervals that hold at once for each; grey: nothing lost.",
)  # fmt: skip
def draw_time_lost(time_lost: pd.DataFrame) -> Any:
    """Factors by batch, a panel a network."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch a rank", "ylabel": "times as long"}
    return drawing.panels(time_lost, "net", _ratio, by="loss", axes=axes, at="batch")


@drawing.figure(
    "overlap", "A step that waits for each bucket, against one that overlaps reduction and backward pass",
    "Seconds of a step that waits for each bucket over those of DDP as it is, two ranks; medians, 95 % intervals "
    "that hold at once; grey: no gain.",
)  # fmt: skip
def draw_overlap(overlap: pd.DataFrame) -> Any:
    """Ratio by batch, a panel a network."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch a rank", "ylabel": "seconds waiting / overlapping"}
    return drawing.panels(overlap, "net", _ratio, axes=axes, at="batch")


@drawing.figure(
    "buckets", "Seconds of a step with DDP's default buckets, over those with other sizes",
    "Seconds of a step with the default of 25 MiB over those with this size, two ranks; medians, 95 % intervals "
    "that hold at once; above the grey line the size is faster.",
)  # fmt: skip
def draw_buckets(buckets: pd.DataFrame) -> Any:
    """Ratio by bucket size, a panel a network."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "bucket, MiB", "ylabel": "seconds, 25 MiB / this size"}
    return drawing.panels(buckets, "net", _ratio, by="batch", axes=axes, at="bucket")


def _ratio(axis: Any, rows: pd.DataFrame, at: str, **options: Any) -> None:
    axis.plot([rows[at].min() / 1.2, rows[at].max() * 1.2], [1, 1], color=GREY, lw=0.8, zorder=0)
    drawing.estimates(axis, rows, at, joined=True, **options)


@drawing.figure(
    "where_time_goes", "Where the time of a step goes",
    "Medians of traced turns, the mean of both ranks; hatched: gradients are exchanged while operators run, and "
    "are hidden. Tick: the step without the profiler, timed at another moment.",
)  # fmt: skip
def draw_split(split: pd.DataFrame) -> Any:
    """Stacked parts of a step by layout, a panel a network."""
    rows = split.sort_values(["batch", "layout"], kind="stable")
    names = rows["layout"] + ", batch " + rows["batch"].astype(str)
    shown = rows.assign(row=pd.Categorical(names, list(dict.fromkeys(names)))).sort_index()
    size = (3.9, 1.5 + 0.27 * shown["row"].nunique())
    return drawing.panels(shown, "net", _bars, shared="y", size=size, axes={"xlabel": "milliseconds"})


def _bars(axis: Any, rows: pd.DataFrame) -> None:
    """Draw a bar a layout, of the parts that add up to a traced step; all panels have the same rows."""
    names, places = list(rows["row"].cat.categories), rows["row"].cat.codes.to_numpy()
    left = np.zeros(len(rows))
    for part, (colour, hatch) in PARTS.items():
        width = rows[part].to_numpy(float) - (rows["hidden"].to_numpy(float) if part == "computing" else 0.0)
        axis.barh(places, width, 0.7, left, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=NAMES[part])
        left = left + width
    axis.plot(rows["untraced"], places, "|", ms=13, mew=2, color=INK, label="without the profiler")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


FIGURES = (draw_strong, draw_weak, draw_time_lost, draw_overlap, draw_buckets, draw_split)
