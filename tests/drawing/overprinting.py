"""What is printed over something else on a canvas, by the boxes in which it is rendered."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from matplotlib.text import Annotation, Text

SLACK = 1.0  # pixels: boxes hold a little more than ink


def overprinted(canvas: Any) -> list[str]:
    """Pairs of tick labels, titles, axis labels, annotations and legends whose boxes overlap, in words."""
    canvas.draw_without_rendering()
    boxes = [(name, box.padded(-SLACK)) for name, box in printed(canvas) if box.width > 2 * SLACK]
    return [f"{a} / {b}" for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]


def printed(canvas: Any) -> Iterator[tuple[str, Any]]:
    """Everything readable with its box in pixels."""
    for legend in (*canvas.legends, *(axes.get_legend() for axes in canvas.axes if axes.get_legend())):
        yield "legend", legend.get_window_extent()
    texts = [*canvas.texts]
    for axes in canvas.axes:
        if not axes.get_visible():
            continue
        texts += [*axes.texts, axes.title, axes._left_title, axes._right_title]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            texts += [axis.label, *tick_labels(axis)]
    for text in texts:
        if text is not None and text.get_visible() and text.get_text().strip():
            yield repr(text.get_text()), box_of(text)


def box_of(text: Any) -> Any:
    """The box of the words alone: an annotation's own would hold its arrow."""
    if isinstance(text, Annotation):
        text.update_positions(text.get_figure(root=True).canvas.get_renderer())
    return Text.get_window_extent(text)


def tick_labels(axis: Any) -> Iterator[Any]:
    """The labels of ticks that lie in view."""
    low, high = sorted(axis.get_view_interval())
    near = 1e-9 * (high - low)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if low - near <= tick.get_loc() <= high + near:
            yield from (label for label in (tick.label1, tick.label2) if label.get_visible())
