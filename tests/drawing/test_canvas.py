"""Figures of tables, panels, the one legend, ticks, titles, and the words for who cannot see them."""

from __future__ import annotations

from collections import Counter

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.layout_engine import ConstrainedLayoutEngine
from overprinting import overprinted

from depthgauge import drawing
from depthgauge.reports import style
from depthgauge.verdict import Figure

ROWS = pd.DataFrame(
    [(name, sigma, x, x * sigma) for name in ("relu", "tanh") for sigma in (1.0, 2.0) for x in range(5)],
    columns=["activation", "sigma_w", "x", "y"],
)


@drawing.figure("gains", "Gains", lambda gains, seeds: f"{len(gains)} gains of {seeds['n'].max()} seeds", alt="Seen.")
def gains_of(gains, seeds):
    if gains["x"].max() < 0:
        return None
    return drawing.panels(gains, "activation", drawing.lines, x="x", y="y", by="sigma_w")


def test_a_figure_is_drawn_of_the_tables_that_its_parameters_name():
    seeds = pd.DataFrame({"n": [8]})
    (figure,) = gains_of({"gains": ROWS, "seeds": seeds, "more": ROWS})
    assert isinstance(figure, Figure)
    words = (figure.name, figure.title, figure.caption, figure.alt)
    assert words == ("gains", "Gains", "20 gains of 8 seeds", "Seen.")


def test_a_figure_has_a_step_for_each_labelled_canvas():
    def drawn(rows):
        return drawing.panels(rows, "activation", drawing.lines, x="x", y="y", by="sigma_w")

    @drawing.figure("stepped", "By sigma_w", "")
    def stepped(gains):
        return drawn(gains), {f"sigma_w = {value:g}": drawn(rows) for value, rows in gains.groupby("sigma_w")}

    (figure,) = stepped({"gains": ROWS})
    assert [label for label, _ in figure.steps] == [f"sigma_w = {value:g}" for value in sorted(set(ROWS["sigma_w"]))]
    assert len({canvas for _, canvas in figure.steps} | {figure.canvas}) == len(figure.steps) + 1
    assert all(canvas.legends for _, canvas in figure.steps)


def test_it_is_not_drawn_where_a_table_is_empty_and_says_which_is_missing():
    assert list(gains_of({"gains": ROWS, "seeds": pd.DataFrame({"n": []})})) == []
    (figure,) = gains_of({"gain": ROWS, "seeds": ROWS})
    assert figure.canvas is None
    assert figure.title == "figure 'gains' is of a table 'gains' that no analysis yields; did you mean 'gain'?"


def test_it_is_not_drawn_where_there_is_nothing_to_draw():
    assert list(gains_of({"gains": ROWS.assign(x=-1), "seeds": ROWS.assign(n=1)})) == []
    assert drawing.panels(ROWS[:0], "activation", drawing.lines, x="x", y="y") is None
    assert drawing.panels(ROWS[:0], "", drawing.lines, x="x", y="y") is None
    assert plt.get_fignums() == []


def test_theory_alone_is_no_figure():
    """A measurement that is NaN or infinite everywhere: nothing is drawn, and nothing warns."""
    rows = pd.DataFrame(
        {"at": [1, 2], "value": [np.nan, np.inf], "low_95": np.nan, "high_95": np.nan, "predicted": 1.0}
    )
    assert drawing.panels(rows, "", drawing.estimates, at="at") is None
    assert drawing.panels(rows, "", drawing.forest, at="at", margin=1.0) is None
    assert drawing.panels(rows, "", drawing.lines, x="at", y="value") is None
    assert drawing.panels(rows.rename(columns={"value": "median"}), "", drawing.profile, x="at") is None
    figure, axis = plt.subplots()
    drawing.estimates(axis, rows, "at")  # on a canvas of one's own
    plt.close(figure)


def test_panels_share_a_scale_a_legend_and_looks():
    only = ROWS[(ROWS["activation"] == "relu") | (ROWS["sigma_w"] == 2)]
    canvas = drawing.panels(only, "activation", drawing.lines, x="x", y="y", by="sigma_w")
    left, right = canvas.axes
    assert (left.get_title("left") or left.get_title(), right.get_ylabel()) == ("relu", "")
    assert left.get_ylim() == right.get_ylim()
    (legend,) = canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1", "2"]
    assert legend.get_title().get_text() == r"$\sigma_w$"
    assert left.get_legend() is right.get_legend() is None
    colours = [[line.get_color() for line in axis.lines if len(line.get_xdata())] for axis in canvas.axes]
    assert colours[1] == colours[0][1:]


def test_at_most_six_panels_are_drawn_and_the_others_are_counted():
    rows = pd.concat([ROWS.assign(depth=depth) for depth in range(9)])
    canvas = drawing.panels(rows, "depth", drawing.lines, x="x", y="y", by="activation")
    assert [axis.get_title() or axis.get_title("left") for axis in canvas.axes] == [f"depth = {i}" for i in range(6)]
    assert canvas.legends[0].get_texts()[-1].get_text() == "3 more: see the table"
    assert [axis.get_xlabel() for axis in canvas.axes] == ["", "", "", "x", "x", "x"]


def test_a_form_may_be_any_function_of_an_axis_and_rows():
    seen = []
    other = ROWS.assign(z=1)
    drawing.panels(ROWS, "activation", lambda _, rows, extra: seen.append((len(rows), len(extra))), extra=other[:15])
    assert seen == [(10, 10), (10, 5)]


def test_the_legend_has_every_mark_once_and_takes_the_place_of_those_inside():
    canvas, axes = plt.subplots(1, 2)
    for axis in axes:
        axis.plot([0, 1], [0, 1], label="measured")
        axis.fill_between([0, 1], [0, 1], [1, 2], label="band")
        axis.scatter([0], [0], s=900, label="share")
        axis.legend()
    drawing.finish(canvas)
    (legend,) = canvas.legends
    assert [text.get_text() for text in legend.get_texts()] == ["measured", "band", "share"]
    assert [axis.get_legend() for axis in axes] == [None, None]
    drawing.finish(canvas)
    assert len(canvas.legends) == 1
    assert overprinted(canvas) == []


def test_a_canvas_is_laid_out_once_and_drawn_once_a_file(monkeypatch):
    count = Counter()
    for owner, name in ((ConstrainedLayoutEngine, "execute"), (mpl.figure.Figure, "draw")):
        do = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, do=do, name=name: (count.update([name]), do(*args))[1])
    canvas = drawing.panels(ROWS, "activation", drawing.lines, x="x", y="y", by="sigma_w")
    drawing.finish(canvas)
    drawing.entitle(canvas, "A message")
    png, svg = style.files(canvas, "png", "svg")
    assert (png[1:4], svg[:5], dict(count)) == (b"PNG", b"<?xml", {"execute": 1, "draw": 2})


def test_ticks_that_touch_are_thinned():
    canvas, axis = plt.subplots(figsize=(3, 2))
    places = np.arange(1000, 1030)
    axis.plot(places, places)
    axis.set_xticks(places)
    axis.set_yticks(places)
    assert overprinted(canvas)
    drawing.finish(canvas)
    assert overprinted(canvas) == []
    assert len(axis.get_xticks()) >= 3
    assert len(axis.get_yticks()) >= 3


def test_titles_of_panels_are_as_wide_as_their_panels():
    names = ["a network of two layers whose one activation is large", "another network of two layers, as it is built"]
    frame = pd.DataFrame({"net": [*names, "c"], "x": 1.0, "y": 1.0})
    canvas = drawing.panels(frame, "net", drawing.lines, x="x", y="y")
    drawing.finish(canvas)
    canvas.draw_without_rendering()
    for axes, name in zip(canvas.axes, [*names, "c"], strict=True):
        (title,) = (text for text in axes.get_children() if getattr(text, "get_text", str)().replace("\n", " ") == name)
        assert title.get_window_extent().width <= 1.05 * axes.get_window_extent().width


@pytest.mark.parametrize("name", ["layer_{}", "layer norm {}"])
def test_names_that_touch_stand_upright_and_none_is_left_out(name):
    canvas, axis = plt.subplots(figsize=(3, 2))
    names = [name.format(i) for i in range(8)]
    axis.bar(names, range(8))
    drawing.finish(canvas)
    assert [label.get_text() for label in axis.get_xticklabels()] == names
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {90}
    assert overprinted(canvas) == []


@pytest.mark.parametrize(
    ("low", "high", "among"),
    [(0.5, 16, {"0.5", "1", "2", "5", "10"}), (1e-3, 0.1, {"0.001", "0.01", "0.1"}), (2, 9, {"4", "6", "8"}),
     (1e-12, 1, {"$10^{-12}$", "1"}), (1e8, 4e9, {"$10^{8}$", r"$2 \times 10^{9}$"})],
)  # fmt: skip
def test_logarithmic_axes_have_plain_numbers(low, high, among):
    canvas, axis = plt.subplots()
    axis.loglog([low, high], [low, high])
    drawing.finish(canvas)
    canvas.draw_without_rendering()
    assert among <= {label.get_text() for label in axis.get_xticklabels()}
    assert overprinted(canvas) == []


def test_the_message_stands_above_the_panels_at_the_left():
    canvas, axis = plt.subplots()
    axis.plot([0, 1])
    axis.set(title="panel", ylabel="a label of an axis that is a good deal longer than the axis is high, but wraps")
    drawing.finish(canvas)
    drawing.entitle(canvas, "A message " * 20)
    canvas.draw_without_rendering()
    title = canvas._suptitle.get_window_extent()
    assert title.y0 >= canvas.bbox.y1
    assert title.x0 == pytest.approx(canvas.bbox.x0, abs=2)
    assert title.x1 <= canvas.bbox.x1
    assert overprinted(canvas) == []
    assert "\n" in canvas.get_suptitle()
    drawing.entitle(canvas, "another")
    assert canvas.get_suptitle().startswith("A message")


def test_a_title_is_text_in_any_script_and_never_a_formula():
    canvas = plt.figure()
    drawing.entitle(canvas, "It costs $5, not $x_{ \u4e2d\u6587")
    assert style.png(canvas).startswith(b"\x89PNG")


def test_a_figure_without_alt_is_described_by_its_title_axes_and_panels():
    canvas = drawing.panels(
        ROWS, "activation", drawing.lines, x="x", y="y", by="sigma_w", axes={"ylabel": "growth (ln)"}
    )
    assert drawing.described(canvas, "It grows.") == "It grows: growth (ln) against x; panels relu, tanh"
    canvas.axes[0].set_ylabel(r"$\log_{10}$ size")
    assert drawing.described(canvas, "It grows.") == "It grows: log10 size against x; panels relu, tanh"
    assert drawing.described(plt.figure(), "Nothing") == "Nothing"


def test_what_is_printed_over_something_is_found():
    canvas, axis = plt.subplots()
    axis.plot([0, 1], label="line")
    assert overprinted(canvas) == []
    axis.annotate("first words", (0.5, 0.5))
    axis.annotate("second words", (0.52, 0.5))
    assert overprinted(canvas) == ["'first words' / 'second words'"]
    axis.texts[1].remove()
    canvas.legend(loc="lower left")
    assert any(pair.startswith("legend / ") for pair in overprinted(canvas))
