"""Canvases: figures of tables, panels side by side, one legend, ticks that do not touch."""

from __future__ import annotations

import difflib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from depthgauge.drawing import forms
from depthgauge.verdict import Figure

Text = str | Callable[..., str]
Drawn = Callable[[Mapping[str, pd.DataFrame]], Iterator[Figure]]


def figure(name: str, title: Text, caption: Text, alt: Text = "") -> Callable[[Callable[..., Any]], Drawn]:
    """Make a figure of a function from tables to a canvas; the function's parameters name the tables.

    The figure is not drawn where one of them is empty, or the function returns None. Where one is missing, a `Figure`
    without a canvas says which: a problem of the report, of a part's once all of the study was analysed. Title, caption
    and alt may be functions of the same tables. The canvas gets its shared legend and ticks that do not touch.
    A function that returns (canvas, {label: canvas}) makes a figure with steps, which a reader can go through.

        @figure("gains", "Gains are as predicted", "Mean of 10 seeds.")
        def draw_gains(gains): ...

        draw_gains({"gains": table})  # yields one depthgauge.verdict.Figure or none
    """

    def decorate(draw: Callable[..., Any]) -> Drawn:
        wanted = tuple(inspect.signature(draw).parameters)

        def drawn(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
            if absent := [table for table in wanted if table not in tables]:
                near = difflib.get_close_matches(absent[0], tables, n=1)
                listed = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(tables) or 'none'}"
                yield Figure(
                    name, None, f"figure {name!r} is of a table {absent[0]!r} that no analysis yields; {listed}"
                )
            if absent or not all(len(tables[table]) for table in wanted):
                return
            shown = [tables[table] for table in wanted]
            if (made := draw(*shown)) is not None:
                canvas, steps = made if isinstance(made, tuple) else (made, {})
                for each in (canvas, *steps.values()):
                    finish(each)
                words = [text(*shown) if callable(text) else text for text in (title, caption, alt)]
                yield Figure(name, canvas, words[0], words[1], words[2], tuple(steps.items()))

        drawn.__name__ = name  # tells which figures a part declares
        return drawn

    return decorate


def panels(
    frame: pd.DataFrame, column: str, form: Callable[..., None], *, by: str = "", most: int = 6, shared: str = "y",
    axes: Mapping[str, Any] | None = None, size: tuple[float, float] | None = None, **options: Any,
) -> Any:  # fmt: skip
    """Draw a form once for each value of a column, side by side, three in a row; None where no row has a finite value.

    Args:
        frame: tidy rows.
        column: whose values have a panel each, in order of appearance; "" for a single panel.
        form: `lines`, `profile`, `estimates`, ..., or any function of (axis, rows, **options).
        by: column whose values are told apart by look, the same in every panel.
        most: panels that are drawn; the legend counts the others.
        shared: "x", "y", "both" or "": what panels share.
        axes: settings of every axis, as of `Axes.set`.
        size: width and height of a panel in inches.
        options: of the form; a frame among them that has `column` is cut to the panel's value.
    """
    parts = list(frame.groupby(column, sort=False, observed=True)) if column else [("", frame)][: len(frame)]
    if not parts:
        return None
    if (measured := forms.measured(form, options)) and not np.isfinite(frame[measured].to_numpy(float)).any():
        return None
    frame = forms.ranked(pd.concat([rows for _, rows in parts[:most]]), form, options)
    columns = min(3 if len(parts) != 4 else 2, len(parts))
    canvas, grid = _grid(min(len(parts), most), columns, size or forms.size(frame, options, columns), shared)
    told = {"by": by, "looks": forms.looks_of(frame, by)} if by else {}
    for place, (axis, (value, _)) in enumerate(zip(grid, parts, strict=False)):
        numbered = column and pd.api.types.is_numeric_dtype(frame[column])
        title = f"{forms.label(column)} = {forms.shown(value)}" if numbered else forms.shown(value)
        axis.set(title=title, **(axes or {}))
        cut = {name: _cut(option, column, value) for name, option in options.items()}
        form(axis, _cut(frame, column, value), **told, **cut)
        low, high = axis.dataLim.intervalx
        if axis.get_xscale() == "log" and 0 < high < 1.001 * low:  # one value: matplotlib divides by 0
            axis.update_datalim([(low / 2, axis.dataLim.y0), (high * 2, axis.dataLim.y0)])
        if place + columns < len(grid):
            axis.set_xlabel("")
        if place % columns and shared in {"y", "both"}:
            axis.set_ylabel("")
    if len(parts) > most:
        grid[0].plot([], [], " ", label=f"{len(parts) - most} more: see the table")
    forms.colour_bar(canvas, str(options.get("value", "")))
    ordered = bool(by) and pd.api.types.is_numeric_dtype(frame[by])
    legend(canvas, forms.label(by) if ordered else "", tuple(map(forms.shown, told.get("looks", ()))))
    return canvas


def _grid(count: int, columns: int, size: tuple[float, float], shared: str) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot as plt  # noqa: PLC0415 -- reports set the backend before it is first used

    rows = math.ceil(count / columns)
    x, y = shared in {"x", "both"}, shared in {"y", "both"}
    canvas, grid = plt.subplots(
        rows, columns, squeeze=False, sharex=x, sharey=y, figsize=(size[0] * columns, size[1] * rows)
    )
    for axis in grid.flat[count:]:
        axis.remove()
    for axis in grid.flat[max(count - columns, 0) : count]:
        axis.tick_params(labelbottom=True)
    return canvas, list(grid.flat[:count])


def _cut(option: Any, column: str, value: Any) -> Any:
    return option[option[column] == value] if isinstance(option, pd.DataFrame) and column in option else option


def finish(canvas: Any) -> None:
    """Give a canvas one legend for all its marks, if it has none, ticks that do not touch, and its panels their places.

    Drawing it lays nothing out any more.
    """
    if not canvas.legends:
        legend(canvas)
    _plain_ticks(canvas)
    lay_out(canvas)
    if _fit(canvas):
        lay_out(canvas)
    canvas.set_layout_engine("none")


def lay_out(canvas: Any) -> None:
    """Give the panels of a canvas their places, by the layout engine that it has, and draw nothing."""
    engine = canvas.get_layout_engine()
    if engine is not None and canvas.axes:
        engine.execute(canvas)


def legend(canvas: Any, title: str = "", first: Sequence[str] = ()) -> None:
    """Put one legend below the panels: every labelled mark once, those of `first` first, in columns that fit."""
    marks: dict[str, Any] = {}
    for axis in canvas.axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            marks.setdefault(name, handle)
        if axis.get_legend() is not None:
            axis.get_legend().remove()
    order = [*(name for name in (*first, "estimate") if name in marks), *marks]
    marks = {name: marks[name] for name in order}
    if not marks:
        return
    for rows in range(1, len(marks) + 1):
        look = {"ncols": math.ceil(len(marks) / rows), "fontsize": 10.5, "title": title or None}
        made = canvas.legend(marks.values(), marks.keys(), loc="outside lower center", **look)
        if made.get_window_extent().width <= canvas.bbox.width or look["ncols"] == 1:
            break
        made.remove()
    canvas.set_figheight(canvas.get_figheight() + 0.22 * (rows - 1))  # what the legend takes, panels keep
    for handle in made.legend_handles:
        if hasattr(handle, "set_sizes"):  # dots whose area is a number
            handle.set_sizes([36])


def entitle(canvas: Any, title: str) -> None:
    """Write a figure's message above its panels, wrapped, at the left; the canvas grows by it where it is saved."""
    if title and not canvas.get_suptitle():
        text = canvas.suptitle(title, x=0, y=1.01, ha="left", va="bottom", fontsize=13, parse_math=False)
        letters = int(len(title) * canvas.bbox.width / text.get_window_extent().width) + 6
        while text.get_window_extent().width > canvas.bbox.width and letters > 12:
            letters -= 2
            text.set_text("\n".join(textwrap.wrap(title, letters)))


def described(canvas: Any, title: str) -> str:
    """The figure in one sentence, for a reader who cannot see it: the message, the axes and the panels."""

    def each(texts: Iterator[str]) -> list[str]:
        return list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))

    y, x = each(axis.get_ylabel() for axis in canvas.axes), each(axis.get_xlabel() for axis in canvas.axes)
    names = each(axis.get_title(loc) for axis in canvas.axes for loc in ("left", "center"))
    seen = " against ".join(" and ".join(some) for some in (y, x) if some)
    where = f"{'panels' if len(names) > 1 else 'panel'} {', '.join(names)}" if names else ""
    what = re.sub(r"[$\\{}]|_(?={)", "", "; ".join(part for part in (seen, where) if part))
    return ": ".join(part for part in (title.strip().rstrip("."), what) if part)


def _plain_ticks(canvas: Any) -> None:
    """Write the ticks of logarithmic axes as plain numbers, 1, 2 and 5 of a decade where few decades are shown."""
    from matplotlib import ticker  # noqa: PLC0415 -- drawing is imported by who draws nothing

    for axes in canvas.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), ticker.SymmetricalLogLocator):
                axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _plain(value)))
            if not isinstance(axis.get_major_locator(), ticker.LogLocator):
                continue
            low, high = sorted(axis.get_view_interval())
            decades = math.log10(high / low)
            few = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
            narrow = decades < 0.8
            axis.set_major_locator(ticker.MaxNLocator(4) if narrow else ticker.LogLocator(subs=few))
            axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _plain(value)))
            axis.set_minor_formatter(ticker.NullFormatter())


def _plain(value: float) -> str:
    if not value or 1e-4 < abs(value) < 1e5:
        return f"{value:g}"
    digits, _, power = f"{value:.1e}".partition("e")
    factor = "" if digits == "1.0" else rf"{float(digits):g} \times "
    return f"${factor}10^{{{int(power)}}}$"


def _fit(canvas: Any) -> bool:
    """Wrap titles and labels that are longer than their panel, and thin its ticks; tell whether anything changed."""
    from matplotlib.text import Text  # noqa: PLC0415 -- drawing is imported by who draws nothing

    changed = False
    for axes in canvas.axes:
        room = axes.get_window_extent()
        titles = {axes.get_title(loc) for loc in ("left", "center", "right")} - {""}
        for text in axes.get_children():  # a title that is too wide would run into the next panel's
            if isinstance(text, Text) and text.get_text() in titles:
                changed |= _wrap(text, room.width, text.get_window_extent().width)
        for side, axis in enumerate((axes.xaxis, axes.yaxis)):
            box = axis.label.get_window_extent()
            changed |= _wrap(axis.label, *((room.height, box.height) if side else (room.width, box.width)))
            changed |= _thin(axis, upright=bool(side))
    return changed


def _wrap(text: Any, room: float, taken: float) -> bool:
    """Break a text that takes more than its room."""
    words = text.get_text()
    if too_long := bool(words) and taken > room:
        text.set_text("\n".join(textwrap.wrap(words, max(12, int(len(words) * room / taken)))))
    return too_long


def _thin(axis: Any, *, upright: bool) -> bool:
    """Leave out ticks of an axis, or turn names upright, until no two labels touch; tell whether any did."""
    low, high = sorted(axis.get_view_interval())
    axis.get_majorticklabels()  # brings the ticks up to date
    ticks = [(tick.get_loc(), tick.label1) for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    ticks = [(place, words) for place, words in ticks if words.get_visible() and words.get_text()]
    spans = [(words.get_window_extent(), place, words.get_text()) for place, words in ticks]
    spans.sort(key=lambda span: span[0].y0 if upright else span[0].x0)
    ends = [(box.y0, box.y1) if upright else (box.x0 - 2, box.x1 + 2) for box, _, _ in spans]
    every = next(k for k in range(1, len(ends) + 2) if all(a[1] < b[0] for a, b in pairwise(ends[::k])))
    if every > 1 and any(text[:1].isalpha() or text.isidentifier() for _, _, text in spans):  # names: none may lack
        axis.set_tick_params(rotation=0 if upright else 90)
    elif every > 1:
        axis.set_ticks([place for _, place, _ in spans[::every]], [text for _, _, text in spans[::every]])
    return every > 1
