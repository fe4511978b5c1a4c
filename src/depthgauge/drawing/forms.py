"""Forms of figures on tidy rows: each draws on one axis, with every mark in the legend.

`panels` calls them; each may as well be called with an axis of one's own. `by` names the column that is told apart by
look, `looks` its looks where more rows than these share them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from depthgauge.drawing.palette import FAINT, GREY, INK, PALETTE, SEQUENTIAL, Look, kind_of, looks

Looks = Mapping[Any, Look]
_LABELS = {
    "sigma_w": r"$\sigma_w$", "sigma_b": r"$\sigma_b$", "layer_index": "layer", "lr": "learning rate",
    "steps_to_target": "steps to target",
}  # fmt: skip
_STYLES = ("-", "--", ":", "-.")


def label(column: str) -> str:
    """A column in words, as axes and legends have it."""
    return _LABELS.get(column, column.replace("_", " "))


def shown(value: object) -> str:
    """A value as a legend has it: numbers with three digits, a function of one's own without its module."""
    return f"{value:.3g}" if isinstance(value, float) else re.sub(r"^[\w.]+:(?=\w+$)", "", str(value))


def interval(table: pd.DataFrame, value: str = "value") -> tuple[str, str]:
    """The columns of a value's interval: `low_95` and `high_95`, or another level; its own, `rate_low_95`, go first.

    Raises:
        ValueError: there are none.
    """
    for start in (f"{value}_low_", "low_"):
        ends = {name: name.replace("low_", "high_") for name in map(str, table) if name.startswith(start)}
        for low, high in ends.items():
            if high in table and low.removeprefix(start).replace(".", "").isdigit():
                return low, high
    if not {"low", "high"} <= set(table):
        raise ValueError(f"no interval, low_95 and high_95 or the like, among the columns {', '.join(map(str, table))}")
    return "low", "high"


def looks_of(frame: pd.DataFrame, by: str) -> Looks:
    """The look of each value of a column: those of the palette for names, dark to light for an ordered quantity."""
    if pd.api.types.is_numeric_dtype(frame[by]):
        values = sorted(frame[by].unique())
        colours = _seaborn().color_palette(SEQUENTIAL, len(values)).as_hex()
        return {value: Look(colour) for value, colour in zip(values, colours, strict=True)}
    named = looks(kind_of(by), frame[by])
    return {value: named[str(value)] for value in dict.fromkeys(frame[by])}


def shaded(frame: pd.DataFrame, by: str) -> Iterator[tuple[Any, pd.DataFrame, str]]:
    """(value, rows, colour) for each value of an ordered column, dark to light."""
    for value, look in looks_of(frame, by).items():
        yield value, frame[frame[by] == value], look.colour


def lines(
    axis: Any, rows: pd.DataFrame, x: str, y: str, by: str = "", *, looks: Looks | None = None, marks: bool = True
) -> None:
    """Draw a line for each value of `by`, with a marker at each row."""
    _label(axis, x, y)
    looks = looks or (looks_of(rows, by) if by else {})
    names = {shown(value): look for value, look in looks.items() if (rows[by] == value).any()}
    style: dict[str, Any] = {"color": PALETTE[0], "marker": "o" if marks else None, "label": label(y)}
    if by:
        style = {
            "hue": rows[by].map(shown).astype(str), "hue_order": list(names), "style_order": list(names),
            "palette": {name: look.colour for name, look in names.items()}, "dashes": False,
        }  # fmt: skip
        if not marks and len({look.colour for look in names.values()}) < len(names):
            marks, style["markevery"] = True, 0.1  # more lines than colours
        style |= {"style": style["hue"], "markers": {n: look.marker for n, look in names.items()}} if marks else {}
    drawn = rows[np.isfinite(rows[y].to_numpy(float))]
    _seaborn().lineplot(drawn, x=x, y=y, ax=axis, errorbar=None, estimator=None, **style)


def profile(
    axis: Any, rows: pd.DataFrame, x: str, by: str = "", *, looks: Looks | None = None, band: str = "middle 90 %"
) -> None:
    """Draw `median` with the band from `low` to `high`, and theory (`predicted`), where there is one, dashed."""
    looks = looks or (looks_of(rows, by) if by else {})
    lines(axis, rows, x, "median", by, looks=looks, marks=False)
    low, high = interval(rows)
    for _, part, look in _split(rows.sort_values(x), by, looks):
        axis.fill_between(part[x], part[low], part[high], color=look.colour, alpha=0.25, lw=0)
        if "predicted" in part and part["predicted"].notna().any():
            axis.plot(part[x], part["predicted"], color=INK, lw=0.9, ls="--", label="theory")
    axis.fill_between([], [], color=GREY, alpha=0.4, lw=0, label=band)


def estimates(
    axis: Any, rows: pd.DataFrame, at: str, by: str = "", *, value: str = "value", looks: Looks | None = None,
    theory: pd.DataFrame | None = None, joined: bool = False,
) -> None:  # fmt: skip
    """Draw points with their intervals, over a quantity (`joined` by lines), or beside names, a row each.

    Theory is dashed over a quantity, and a tick beside a name: the column `predicted` of `theory`, or of the rows. An
    end at infinity is drawn to the furthest end of the others, a value there not at all.
    """
    low, high = interval(rows, value)
    named = not pd.api.types.is_numeric_dtype(rows[at])
    places = _rows(axis, rows, at) if named else {}
    _label(axis, *((value, "") if named else (at, value)))
    looks = looks or (looks_of(rows, by) if by else {})
    finite = rows[[low, high, value]].to_numpy(float)
    finite = finite[np.isfinite(finite)]
    furthest = (finite.min(), finite.max()) if len(finite) else (None, None)
    parts = list(_split(rows if named else rows.sort_values(at), by, looks))
    crowd = len(parts) if named and rows[at].duplicated().any() else 1
    for i, (name, part, look) in enumerate(parts):
        where = part[at].map(places).to_numpy(float) if named else part[at].to_numpy(float)
        where = where + (i - (crowd - 1) / 2) * 0.7 / crowd * (crowd > 1)
        middle, ends = part[value].to_numpy(float), part[[low, high]].clip(*furthest)
        middle = np.where(np.isfinite(middle), middle, np.nan)
        reach = {"xerr" if named else "yerr": np.abs(ends.to_numpy(float).T - middle)}
        mark = {"fmt": look.marker, "color": look.colour, "ms": 5, "lw": 1.6, "label": name or "estimate"}
        mark["ls"] = "-" if joined else "none"
        axis.errorbar(*((middle, where) if named else (where, middle)), **reach, **mark)
        curve = part if theory is None else theory if not by else theory[theory[by].map(shown) == name]
        if "predicted" not in curve or curve["predicted"].isna().all():
            continue
        if named:
            axis.plot(part["predicted"], where, "|", ms=11, mew=2, color=INK, zorder=1, label="theory")
        else:
            axis.plot(
                at, "predicted", data=curve.sort_values(at), color=look.colour, lw=1.2, ls="--", zorder=1, label=""
            )
            axis.plot([], [], color=INK, lw=1.2, ls="--", label="theory")
    level = low.rpartition("low")[2].removeprefix("_")
    axis.plot([], [], color=GREY, lw=1.6, label=f"{level} % interval" if level else "interval")


def forest(
    axis: Any, rows: pd.DataFrame, at: str, margin: float, by: str = "answer", *, value: str = "value",
    looks: Looks | None = None,
) -> None:  # fmt: skip
    """Draw comparisons, a row each, sorted: intervals, the band within which nothing matters, answers as marks."""
    rows = ranked(rows, forest, {"at": at, "value": value})
    if axis.get_xscale() == "symlog":  # linear within the margin, where nothing matters
        axis.set_xscale("symlog", linthresh=margin)
    axis.axvspan(-margin, margin, color=FAINT, zorder=0, lw=0, label=f"margin, ±{margin:g}")
    axis.axvline(0, color=GREY, lw=0.8, zorder=0.5)
    estimates(axis, rows.drop(columns="predicted", errors="ignore"), at, by, value=value, looks=looks)


def ladder(
    axis: Any, rows: pd.DataFrame, at: str, by: str = "", *, steps: str = "steps_to_target", budget: str = "steps",
    looks: Looks | None = None,
) -> None:  # fmt: skip
    """Draw censored times to a target, a row a name, sorted: a dot a run, the median, hollow triangles at the budget.

    A run with `reached` 0 had not got there when its budget was spent; the triangle counts such runs. The median (of an
    even number of runs the lower) is drawn where at least half of the runs arrived.
    """
    rows = ranked(rows, ladder, {"at": at, "steps": steps})
    places = _rows(axis, rows, at)
    _label(axis, steps, "")
    looks, by = looks or (looks_of(rows, by or at)), by or at
    limit = float(rows[budget].max())
    colours = {shown(value): look.colour for value, look in looks.items()}
    arrived = rows[rows["reached"] > 0]
    if len(arrived):
        _seaborn().scatterplot(
            arrived, x=steps, y=arrived[at].map(places).to_numpy(float), hue=arrived[by].map(shown).astype(str),
            ax=axis, palette=colours, alpha=0.6, s=24, lw=0, legend=False,
        )  # fmt: skip
    for name, runs in rows.groupby(at, observed=True):
        times = np.sort(runs[steps].where(runs["reached"] > 0, np.inf))
        if np.isfinite(middle := times[(len(times) - 1) // 2]):
            axis.plot([middle], [places[name]], "|", ms=13, mew=2, color=INK)
        if never := int((runs["reached"] == 0).sum()):
            look = looks[runs[by].iloc[0]]
            axis.plot([limit], [places[name]], ">", ms=7, mfc="white", mec=look.colour, mew=1.4, clip_on=False)
            axis.annotate(
                str(never), (limit, places[name]), (8, 0), textcoords="offset points", va="center", fontsize="small"
            )
    axis.axvline(limit, color=GREY, lw=0.8, ls=":", zorder=0)
    axis.plot([], [], "o", ms=5, color=GREY, label="a run")
    axis.plot([], [], "|", ms=13, mew=2, color=INK, label="median")
    axis.plot([], [], ">", ms=7, mfc="white", mec=GREY, label="not within the budget (how many)")
    axis.set_xlim(0, limit * 1.15)


def heat(
    axis: Any, rows: pd.DataFrame, x: str, y: str, value: str, *, over: pd.DataFrame | None = None, line: str = "line"
) -> None:
    """Draw a map, each cell around its true place, and the curves of `over` (columns x, y, `line`: its name) on it.

    A cell whose value is not finite stays blank.
    """
    from matplotlib.patheffects import withStroke  # noqa: PLC0415 -- drawing is imported by who draws nothing

    grid = rows.dropna(subset=[x, y]).pivot_table(index=y, columns=x, values=value, dropna=False)  # NaN is a blank cell
    edges = [_edges(places.to_numpy(float), scale) for places, scale in (
        (grid.columns, axis.get_xscale()), (grid.index, axis.get_yscale()))]  # fmt: skip
    axis.pcolormesh(*edges, grid.to_numpy(float), cmap=SEQUENTIAL, rasterized=True, shading="flat")
    curves = () if over is None else over.groupby(line, sort=False)
    for style, (name, curve) in zip(_STYLES * 9, curves, strict=False):
        axis.plot(
            curve[x], curve[y], color="white", ls=style, lw=1.8, label=shown(name),
            path_effects=[withStroke(linewidth=3, foreground=INK)],
        )  # fmt: skip
    axis.set(xlim=edges[0][[0, -1]], ylim=edges[1][[0, -1]])
    for side, places in ((axis.xaxis, grid.columns), (axis.yaxis, grid.index)):
        side.set_ticks(places, [f"{place:.3g}" for place in places])
    axis.minorticks_off()
    axis.grid(visible=False)
    _label(axis, x, y)


def colour_bar(canvas: Any, value: str) -> None:
    """Give all maps of a canvas one scale and one colour bar."""
    from matplotlib.collections import QuadMesh  # noqa: PLC0415 -- drawing is imported by who draws nothing

    meshes = [mesh for axis in canvas.axes for mesh in axis.collections if isinstance(mesh, QuadMesh)]
    if meshes:
        values = np.concatenate([np.ravel(np.asarray(mesh.get_array(), float)) for mesh in meshes])
        values = values[np.isfinite(values)]  # of an infinity the scale would be all
        for mesh in meshes if len(values) else ():
            mesh.set_clim(values.min(), values.max())
        canvas.colorbar(meshes[0], ax=canvas.axes, label=label(value), pad=0.02)


def ranked(frame: pd.DataFrame, form: Callable[..., None], options: Mapping[str, Any]) -> pd.DataFrame:
    """The rows with their names in the order in which a form has them: `forest` and `ladder` by median, from the top.

    Runs that never arrived come last; other forms keep the order of appearance.
    """
    at = options.get("at", "")
    if not at or pd.api.types.is_numeric_dtype(frame[at]) or isinstance(frame[at].dtype, pd.CategoricalDtype):
        return frame
    order = list(dict.fromkeys(frame[at]))
    if form is forest:
        middle = frame.groupby(at)[options.get("value", "value")].median()
        order.sort(key=lambda name: middle[name])
    if form is ladder:
        steps = frame[options.get("steps", "steps_to_target")].where(frame["reached"] > 0, np.inf)
        rank = steps.groupby(frame[at]).agg(["median", "min"])
        order.sort(key=lambda name: tuple(rank.loc[name]))
    return frame.assign(**{at: pd.Categorical(frame[at], order)})


def measured(form: Callable[..., None], options: Mapping[str, Any]) -> str:
    """The column of what a form shows as measured; empty for a form of one's own, and for times, which may be none."""
    columns = {lines: "y", estimates: "value", forest: "value", heat: "value"}
    return "median" if form is profile else str(options.get(columns[form], "value")) if form in columns else ""


def size(frame: pd.DataFrame, options: Mapping[str, Any], columns: int) -> tuple[float, float]:
    """Width and height of a panel in inches: a row of names takes the same height in every figure."""
    at = options.get("at", "")
    height = (4.25, 3.6, 2.9)[columns - 1]
    if at and not pd.api.types.is_numeric_dtype(frame[at]):
        height = 1.5 + 0.27 * frame[at].nunique()
    return (6.8, 5.2, 3.2)[columns - 1], height


def _seaborn() -> Any:
    import seaborn  # noqa: PLC0415 -- takes a second that only who draws should spend

    return seaborn


def _split(rows: pd.DataFrame, by: str, looks: Looks) -> Iterator[tuple[str, pd.DataFrame, Look]]:
    if not by:
        yield "", rows, Look(PALETTE[0])
    for value, look in looks.items() if by else ():
        part = rows[rows[by] == value]
        if len(part):
            yield shown(value), part, look


def _rows(axis: Any, rows: pd.DataFrame, at: str) -> dict[Any, int]:
    """Give each name a row, the first on top; returns where."""
    column = rows[at]
    names = list(column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else dict.fromkeys(column))
    axis.set_yticks(range(len(names)), [shown(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    return {name: place for place, name in enumerate(names)}


def _edges(centres: np.ndarray[Any, Any], scale: str) -> np.ndarray[Any, Any]:
    """Edges of the cells around sorted centres: half-way between neighbours on the axis' scale."""
    centres = np.log(centres) if scale == "log" else centres
    step = np.diff(centres) if len(centres) > 1 else np.ones(1)
    edges = np.concatenate([centres[:1] - step[:1] / 2, centres[:-1] + step / 2, centres[-1:] + step[-1:] / 2])
    return np.asarray(np.exp(edges) if scale == "log" else edges)


def _label(axis: Any, x: str, y: str) -> None:
    """Name the axes that have no name yet."""
    axis.set(xlabel=axis.get_xlabel() or label(x), ylabel=axis.get_ylabel() or label(y))
