"""The figures of a profile: a step in time, its operators at the roofline, and its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt

from depthgauge.drawing import finish
from depthgauge.drawing.palette import FAINT, INK, PALETTE
from depthgauge.profiling import Profile
from depthgauge.profiling.kinds import MATRIX
from depthgauge.profiling.memory import CATEGORIES
from depthgauge.profiling.timeline import WAITING
from depthgauge.verdict import Figure

# What a reader tells apart, and in which colour: matrix work, what moves data, and what only keeps books.
GROUPS = {
    "matrix products, convolutions, attention": PALETTE[0],
    "normalization, pooling, reductions": PALETTE[2],
    "elementwise, copies, indexing": PALETTE[4],
    "communication": PALETTE[3],
    "other": PALETTE[6],
}
_GROUP_OF = {
    "normalization": "normalization, pooling, reductions",
    "pooling": "normalization, pooling, reductions",
    "reduction": "normalization, pooling, reductions",
    "elementwise": "elementwise, copies, indexing",
    "copy": "elementwise, copies, indexing",
    "indexing": "elementwise, copies, indexing",
    "communication": "communication",
    **dict.fromkeys(MATRIX, "matrix products, convolutions, attention"),
}
_PHASES = {"forward": PALETTE[5], "backward": PALETTE[1], "optimizer": PALETTE[3]}
_MEMORY = dict(zip(CATEGORIES, (*(PALETTE[place] for place in (0, 5, 6, 1, 2)), "#D9D9D9"), strict=True))
_FINEST = 20_000  # parts of a step; gaps that are shorter are not drawn
_BARS = 400  # changes of memory that are drawn, the peak among them
_BROAD = (6.8, 3.0)
_NOTHING = "nothing computes, outside the optimizer"


def group(kind: str) -> str:
    """The group of a kind of work, as the figures tell them apart."""
    return _GROUP_OF.get(kind, "other")


def step(profile: Profile) -> Figure:
    """One step in time: its phases, and what runs in them."""
    canvas, axes = plt.subplots(figsize=_BROAD)
    whole = float(profile.step["end"].max())
    operators = profile.pieces["kind"].map(group)
    phases = [name for name in _PHASES if (profile.step["phase"] == name).any()]
    for rows, kinds, looks, span in (
        (profile.step, profile.step["phase"], _PHASES, (1.1, 0.7)), (profile.pieces, operators, GROUPS, (0.0, 0.85)),
    ):  # fmt: skip
        for name, color in looks.items():
            if (kinds == name).any():
                axes.broken_barh(_merged(rows[kinds == name], whole), span, color=color, linewidth=0, label=name)
    axes.set(xlabel="time in the step, as traced (ms)", xlim=(0, whole * 1e3), ylim=(-0.1, 1.9))
    axes.set_yticks([0.425, 1.45], ["operators" if profile.on_host else "device", "phase"])
    axes.grid(visible=False)
    finish(canvas)
    shares = ", ".join(f"{name} {profile.phase(name):.0%}" for name in phases)
    nothing = "no operator computes" if profile.on_host else "the device waits for the host"
    return Figure(
        "step",
        canvas,
        f"A step: {shares}",
        f"One traced step. Blank in the lower row: {nothing}, {profile.waiting:.0%} of the step. The profiler "
        f"makes a step {profile.overhead.effect.value:.2f} times as long.",
    )


def _merged(spans: pd.DataFrame, whole: float) -> list[tuple[float, float]]:
    """Spans as (start, width) in ms; those that lie closest are one."""
    merged: list[list[float]] = []
    for start, end in zip(spans["start"], spans["end"], strict=True):
        if merged and start - merged[-1][1] < whole / _FINEST:
            merged[-1][1] = max(end, merged[-1][1])
        else:
            merged.append([start, end])
    return [(start * 1e3, (end - start) * 1e3) for start, end in merged]


def roofline(profile: Profile) -> Figure:
    """Operators (kernels) with counted operations under the roofline, and the others against the bandwidth."""
    points = profile.points[profile.points["seconds"] > 0]
    points = points.assign(group=points["kind"].map(group))
    counted = points[points["flops"] > 0]
    moving = points[~(points["flops"] > 0) & (points["bytes"] > 0)]
    canvas, (left, right) = plt.subplots(ncols=2, figsize=(6.8, 4.2), width_ratios=(1.9, 1))
    _roofs(left, profile, counted)
    for name, some in counted.groupby("group"):
        left.scatter(some["flops"] / some["bytes"], some["flop_rate"], **_dots(some, str(name)))
    for name, some in moving.groupby("group"):
        right.scatter(some["bytes"] / some["calls"], some["byte_rate"], **_dots(some, str(name)))
    left.set(xscale="log", yscale="log", xlabel="operations a byte moved", ylabel="operations a second")
    right.set(xscale="log", yscale="log", xlabel="bytes a call", ylabel="bytes a second")
    left.set_title("with counted operations", fontsize=11)
    right.set_title("only moving data", fontsize=11)
    ceilings = profile.capture.ceilings
    if ceilings.levels:  # what moves so many bytes touches half of them at least
        sizes = [2.0 * size for size, _ in ceilings.levels]
        right.step(
            sizes, [ceilings.bandwidth_within(size / 2) for size in sizes], where="post", color=INK, linewidth=1.2,
            label="ceiling",
        )  # fmt: skip
    else:
        right.axhline(ceilings.bandwidth, color=INK, linewidth=1.2, label="copy, memory")
        right.axhline(ceilings.cached_bandwidth, color=INK, linestyle="--", linewidth=1.2, label="copy, 128 KiB")
    finish(canvas)
    matrix = counted[counted["kind"].isin(MATRIX)]
    share = float(matrix["floor"].sum() / matrix["seconds"].sum()) if len(matrix) else 0.0
    what = "operator" if profile.on_host else "kernel"
    return Figure(
        "roofline",
        canvas,
        f"Matrix work runs at {share:.0%} of the measured ceilings" if len(matrix) else "No matrix work was counted",
        f"A point is one {what} with one set of shapes; its area is its share of the step. Lines: measured on this "
        "device, products of square matrices by number format, and data moved in memory (solid) and in the fastest "
        "cache (dashed). Points above a line of the left panel work with a better library than the matrix product's, "
        "or without all the operations that are counted.",
    )


def _dots(some: pd.DataFrame, name: str) -> dict[str, Any]:
    area = np.clip(some["share"].to_numpy(float) * 2500, 8, 500)
    return {"s": area, "color": GROUPS[name], "alpha": 0.65, "edgecolors": "white", "linewidths": 0.6, "label": name}


def _roofs(axes: Any, profile: Profile, counted: pd.DataFrame) -> None:
    ceilings = profile.capture.ceilings
    used = set(counted["dtype"].replace("float32", profile.capture.precision)) or {profile.capture.precision}
    intensity = counted["flops"] / counted["bytes"]
    low = min(float(intensity.min()) / 2 if len(counted) else 1.0, 0.5)
    high = max(
        float(intensity.max()) * 3 if len(counted) else 1.0, 4 * max(ceilings.flops.values()) / ceilings.bandwidth
    )
    for name, peak in sorted(ceilings.flops.items(), key=lambda pair: pair[1]):
        x = np.geomspace(low, high, 200)
        mine = name in used
        for bandwidth, style in ((ceilings.bandwidth, "-"), (ceilings.cached_bandwidth, "--")):
            axes.plot(
                x, np.minimum(peak, x * bandwidth), color=INK if mine else "#AAAAAA", linestyle=style,
                linewidth=1.2 if mine else 0.8, zorder=1,
            )  # fmt: skip
        axes.annotate(
            name, (high, peak), xytext=(-2, 2), textcoords="offset points", ha="right", va="bottom", fontsize=9,
            color=INK if mine else "#777777",
        )  # fmt: skip
    axes.set_xlim(low, high)


def memory(profile: Profile) -> Figure:
    """Draw the memory in use during the step, by category."""
    frame = _thinned(profile.memory)
    canvas, axes = plt.subplots(figsize=(6.8, 3.6))
    time = frame["time"].to_numpy(float) * 1e3
    total = frame[list(CATEGORIES)].sum(axis=1)
    scale, unit = (2**30, "GiB") if total.max() >= 2**30 else (2**20, "MiB")
    floor = np.zeros(len(frame))
    for category in CATEGORIES:
        top = floor + frame[category].to_numpy(float) / scale
        axes.fill_between(time, floor, top, step="post", color=_MEMORY[category], linewidth=0, label=category)
        floor = top
    for phase, spans in profile.step[profile.step["phase"] != "other"].groupby("phase"):
        edge = float(spans["start"].min()) * 1e3
        axes.axvline(edge, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate(str(phase), (edge, 1.0), xycoords=("data", "axes fraction"), xytext=(3, -3),
                      textcoords="offset points", va="top", fontsize=9.5)  # fmt: skip
    axes.set(xlabel="time in the step, as traced (ms)", ylabel=f"memory ({unit})", xlim=(0, time[-1]))
    axes.set_ylim(0, float(floor.max()) * 1.15)
    axes.grid(visible=True, color=FAINT)
    finish(canvas)
    peak = profile.peak
    most, whole = max(peak, key=lambda name: peak[name]), sum(peak.values())
    return Figure(
        "memory",
        canvas,
        f"Memory peaks at {whole / scale:.3g} {unit}, {peak[most] / whole:.0%} of it {most}",
        "What torch's allocator holds for the step. Activations: tensors kept for the backward pass; "
        "temporary: tensors of one phase, gradients of activations among them.",
    )


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    """At most `_BARS` rows, in each stretch of time the one that holds most."""
    if len(frame) <= _BARS:
        return frame
    total = frame[list(CATEGORIES)].sum(axis=1)
    stretch = np.minimum((frame["time"] / frame["time"].iloc[-1] * (_BARS - 2)).astype(int), _BARS - 3)
    chosen = {0, len(frame) - 1, *total.groupby(stretch).idxmax()}
    return frame.iloc[sorted(chosen)]


def comparison(profiles: Sequence[Profile]) -> Figure:
    """Draw the parts of a step's time, one bar for each profile."""
    table = pd.DataFrame([shares(profile) for profile in profiles], index=[each.capture.label for each in profiles])
    canvas, axes = plt.subplots(figsize=(6.8, 1.4 + 0.27 * len(table)))
    colors = dict(zip(table, (*(PALETTE[place] for place in (0, 2, 4, 3, 6)), "#D9D9D9"), strict=True))
    seen = table.columns[(table >= 0.001).any()]
    (100 * table[seen]).plot.barh(stacked=True, width=0.78, color=[colors[name] for name in seen], ax=axes)
    axes.set(xlabel="share of the step (%)", xlim=(0, 100), ylim=(len(table) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    finish(canvas)
    matrix = table.iloc[:, 0]
    return Figure(
        "comparison",
        canvas,
        f"Matrix work takes {matrix.min():.0%} to {matrix.max():.0%} of a step",
        "Shares of the traced step; the profiler lengthens short operators. The optimizer's part holds its operators "
        f"and the gaps between them. {_NOTHING.capitalize()}: Python, dispatch and autograd on a CPU; elsewhere the "
        "device waits for its host.",
    )


def shares(profile: Profile) -> dict[str, float]:
    """The step as shares that add up to 1: three groups of operators, optimizer, the rest, and waiting."""
    training = profile.points[profile.points["phase"] != "optimizer"]
    by_group = training.groupby(training["kind"].map(group))["share"].sum()
    first, second, third = list(GROUPS)[:3]
    optimizer = profile.phase("optimizer")
    waits = profile.timeline[(profile.timeline["state"] == WAITING) & (profile.timeline["phase"] != "optimizer")]
    waiting = float(waits["share"].sum())
    groups = {name: float(by_group.get(name, 0.0)) for name in (first, second, third)}
    rest = max(0.0, 1.0 - sum(groups.values()) - optimizer - waiting)
    return {**groups, "optimizer": optimizer, "other": rest, _NOTHING: waiting}
