"""What each form draws: where its marks stand, and that the legend has every one of them."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection, QuadMesh
from overprinting import overprinted

from depthgauge import drawing
from depthgauge.drawing.forms import shown

NAMES = ("relu", "tanh", "gelu")


def estimates_of(**columns) -> pd.DataFrame:
    return pd.DataFrame({"value": [1.0, 2.0, 4.0], "low_95": [0.5, 1.0, 3.0], "high_95": [1.5, 3.5, 4.5]} | columns)


def runs() -> pd.DataFrame:
    """relu arrives at 10, 20, 30 and once not; tanh always at 50; gelu arrives once in four."""
    steps = {"gelu": (80, 100, 100, 100), "tanh": (50,) * 4, "relu": (10, 20, 30, 100)}
    rows = [(name, float(s), float(s < 100), 100) for name, taken in steps.items() for s in taken]
    return pd.DataFrame(rows, columns=["activation", "steps_to_target", "reached", "steps"])


def bars(axis) -> list[np.ndarray]:
    return [segment for box in axis.containers for segments in box[2] for segment in segments.get_segments()]


def legend_of(canvas) -> list[str]:
    (legend,) = canvas.legends
    return [text.get_text() for text in legend.get_texts()]


def test_the_interval_is_found_by_its_level():
    assert drawing.interval(estimates_of()) == ("low_95", "high_95")
    assert drawing.interval(pd.DataFrame(columns=["low_99.9", "low_key", "high_99.9"])) == ("low_99.9", "high_99.9")
    assert drawing.interval(pd.DataFrame(columns=["low", "high"])) == ("low", "high")
    both = pd.DataFrame(columns=["low_95", "high_95", "rate_low_99", "rate_high_99"])
    assert drawing.interval(both, "rate") == ("rate_low_99", "rate_high_99")
    assert drawing.interval(both) == ("low_95", "high_95")
    with pytest.raises(
        ValueError, match="no interval, low_95 and high_95 or the like, among the columns value, low_95"
    ):
        drawing.interval(pd.DataFrame(columns=["value", "low_95"]))


def test_estimates_stand_over_a_quantity_with_their_intervals_and_theory_dashed():
    _, axis = plt.subplots()
    drawing.estimates(axis, estimates_of(sigma_w=[1.0, 2.0, 3.0], predicted=[1.1, 2.1, 3.9]), "sigma_w")
    assert [tuple(segment[:, 1]) for segment in bars(axis)] == [(0.5, 1.5), (1.0, 3.5), (3.0, 4.5)]
    dashed = next(line for line in axis.lines if line.get_linestyle() == "--")
    assert list(dashed.get_ydata()) == [1.1, 2.1, 3.9]
    assert {"estimate", "95 % interval", "theory"} == set(axis.get_legend_handles_labels()[1])


def test_estimates_stand_beside_names_one_row_each():
    _, axis = plt.subplots()
    drawing.estimates(axis, estimates_of(activation=NAMES, predicted=[1.0, 2.0, 4.0]), "activation")
    assert [label.get_text() for label in axis.get_yticklabels()] == list(NAMES)
    assert [tuple(segment[0]) for segment in bars(axis)] == [(0.5, 0.0), (1.0, 1.0), (3.0, 2.0)]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first stands on top


def test_estimates_over_a_quantity_may_be_joined():
    _, axis = plt.subplots()
    drawing.estimates(axis, estimates_of(step=[30, 10, 20]), "step", joined=True)
    assert [axis.containers[0][0].get_linestyle(), list(axis.containers[0][0].get_xdata())] == ["-", [10, 20, 30]]


def test_a_name_is_shown_without_its_module_and_a_number_with_three_digits():
    assert [shown(value) for value in ("mine.nets:swoosh", "width: 8", 0.123456, 8)] == [
        "swoosh",
        "width: 8",
        "0.123",
        "8",
    ]


def test_an_interval_without_end_reaches_the_furthest_end_of_the_others():
    _, axis = plt.subplots()
    drawing.estimates(axis, estimates_of(activation=NAMES, high_95=[1.5, math.inf, 9.0]), "activation")
    assert bars(axis)[1][1][0] == 9.0


def test_a_value_at_infinity_is_no_point():
    _, axis = plt.subplots()
    rows = estimates_of(width=[1, 2, 3], value=[1.0, math.inf, 3.0], high_95=[1.5, math.inf, 9.0])
    drawing.estimates(axis, rows, "width", joined=True)
    points = axis.lines[0].get_ydata()
    assert np.isfinite(points).tolist() == [True, False, True]


def test_a_line_goes_from_left_to_right_and_over_what_is_not_finite():
    _, axis = plt.subplots()
    rows = pd.DataFrame({"x": [3, 1, 2, 4], "y": [9.0, 1.0, np.nan, np.inf], "scheme": "he"})
    drawing.lines(axis, rows, "x", "y", "scheme")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines if len(line.get_xdata())]
    assert drawn == [([1, 3], [1.0, 9.0])]
    canvas = axis.get_figure()
    drawing.legend(canvas)
    assert [text.get_text() for text in canvas.legends[0].get_texts()] == ["he"]


def test_several_estimates_of_one_name_stand_beside_each_other():
    _, axis = plt.subplots()
    rows = pd.concat([estimates_of(activation=NAMES, format=name) for name in ("float32", "float16")])
    drawing.estimates(axis, rows, "activation", "format")
    heights = [segment[0][1] for segment in bars(axis)]
    assert len(set(heights)) == 6
    assert all(abs(height - round(height)) < 0.5 for height in heights)


def test_a_profile_has_median_band_and_theory():
    _, axis = plt.subplots()
    layers = np.arange(1, 6)
    rows = pd.DataFrame({"layer_index": layers, "low": -layers - 1.0, "median": -layers, "high": 1.0 - layers})
    drawing.profile(axis, rows.assign(predicted=-layers * 1.1, sigma_w=2.0), "layer_index", "sigma_w")
    band = next(one for one in axis.collections if isinstance(one, PolyCollection) and one.get_paths())
    assert band.get_datalim(axis.transData).intervaly.tolist() == [-6.0, 0.0]
    assert any(list(line.get_ydata()) == list(-layers) for line in axis.lines)
    assert set(axis.get_legend_handles_labels()[1]) == {"2", "theory", "middle 90 %"}


def test_an_ordered_quantity_goes_from_dark_to_light():
    frame = pd.DataFrame({"sigma_w": [2.0, 0.5, 1.0, 4.0]})
    shaded = list(drawing.shaded(frame, "sigma_w"))
    assert [value for value, _, _ in shaded] == [0.5, 1.0, 2.0, 4.0]
    light = [np.dot(mpl.colors.to_rgb(colour), (0.2126, 0.7152, 0.0722)) for _, _, colour in shaded]
    assert light == sorted(light)
    assert light[-1] < 0.8  # the palest end would be lost on white


def test_lines_of_more_names_than_colours_have_markers_of_their_own():
    names = ("linear", "relu", "tanh", "sigmoid", "gelu", "leaky_relu", "silu", "elu")  # elu has linear's colour
    rows = pd.DataFrame(
        [(name, x, x * i) for i, name in enumerate(names) for x in (1, 2)], columns=["activation", *"xy"]
    )
    for marks in (True, False):
        _, axis = plt.subplots()
        drawing.lines(axis, rows, "x", "y", "activation", marks=marks)
        drawn = {
            (mpl.colors.to_hex(line.get_color()), line.get_marker()) for line in axis.lines if len(line.get_xdata())
        }
        assert len(drawn) == len(names)
    assert mpl.colors.to_hex(axis.lines[1].get_color()).upper() == drawing.look("activation", "relu").colour


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_cells_of_a_map_lie_around_their_true_places(scale):
    depth, sigma = np.array([2.0, 4.0, 8.0, 64.0]), np.array([0.5, 1.0, 3.0])
    rows = pd.DataFrame([(d, s, d * s) for d in depth for s in sigma], columns=["depth", "sigma_w", "accuracy"])
    canvas = drawing.panels(rows, "", drawing.heat, x="sigma_w", y="depth", value="accuracy", axes={"yscale": scale})
    mesh = next(one for one in canvas.axes[0].collections if isinstance(one, QuadMesh))
    edges = mesh.get_coordinates()[:, 0, 1]
    assert ((edges[:-1] < depth) & (depth < edges[1:])).all()
    between = np.sqrt(depth[1:] * depth[:-1]) if scale == "log" else (depth[1:] + depth[:-1]) / 2
    np.testing.assert_allclose(edges[1:-1], between)
    assert mesh.get_array().reshape(4, 3)[3, 2] == 192


def test_a_map_keeps_what_is_not_finite_as_a_blank_in_its_place():
    rows = pd.DataFrame([(d, s, d * s) for d in (1.0, 2.0) for s in (1.0, 2.0, 3.0)], columns=["depth", "lr", "loss"])
    rows.loc[rows["lr"] == 2, "loss"] = np.nan  # every run of that rate
    rows.loc[rows["lr"] * rows["depth"] == 6, "loss"] = np.inf
    canvas = drawing.panels(rows, "", drawing.heat, x="lr", y="depth", value="loss")
    axis = canvas.axes[0]
    mesh = next(one for one in axis.collections if isinstance(one, QuadMesh))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "3"]
    assert np.ma.getmaskarray(mesh.get_array()).reshape(2, 3).tolist() == [[False, True, False], [False, True, True]]
    assert mesh.get_clim() == (1, 3)


def test_maps_share_one_scale_and_one_colour_bar_and_name_the_curves_over_them():
    rows = pd.DataFrame(
        [(a, d, s, d * s) for a, k in (("relu", 1), ("tanh", 9)) for d in (1, 2) for s in (k, 2 * k)],
        columns=["activation", "depth", "sigma_w", "accuracy"],
    )
    over = pd.DataFrame({"activation": ["relu", "relu"], "sigma_w": [1, 2], "depth": [1, 2], "line": "6 scales"})
    canvas = drawing.panels(rows, "activation", drawing.heat, x="sigma_w", y="depth", value="accuracy", over=over)
    assert len(canvas.axes) == 3
    meshes = [one for axis in canvas.axes[:2] for one in axis.collections if isinstance(one, QuadMesh)]
    assert [mesh.get_clim() for mesh in meshes] == [(1, 36)] * 2
    assert legend_of(canvas) == ["6 scales"]
    assert [len(axis.lines) for axis in canvas.axes[:2]] == [1, 0]


def test_a_ladder_ranks_names_and_counts_what_never_arrived():
    canvas = drawing.panels(runs(), "", drawing.ladder, at="activation")
    (axis,) = canvas.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["relu", "tanh", "gelu"]
    drawn = [line for line in axis.lines if len(line.get_xdata())]
    medians = {line.get_ydata()[0]: line.get_xdata()[0] for line in drawn if line.get_marker() == "|"}
    assert medians == {0: 20.0, 1: 50.0}  # relu: the second of 10, 20, 30, never; gelu arrives too rarely for one
    hollow = [line for line in drawn if line.get_marker() == ">"]
    assert [(line.get_xdata()[0], line.get_markerfacecolor()) for line in hollow] == [(100, "white")] * 2
    assert [text.get_text() for text in axis.texts] == ["1", "3"]
    assert sum(len(dots.get_offsets()) for dots in axis.collections) == 8
    assert legend_of(canvas) == ["a run", "median", "not within the budget (how many)"]


def test_a_forest_is_sorted_and_its_marks_are_the_answers():
    rows = estimates_of(activation=NAMES, answer=["beyond the margin", "inconclusive", "equivalent"],
                        value=[4.0, 2.0, 0.1], low_95=[3.0, -1.0, -0.5], high_95=[5.0, 5.0, 0.6])  # fmt: skip
    canvas = drawing.panels(rows, "", drawing.forest, at="activation", by="answer", margin=1.0)
    (axis,) = canvas.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["gelu", "tanh", "relu"]
    assert legend_of(canvas) == ["beyond the margin", "inconclusive", "equivalent", "margin, ±1", "95 % interval"]
    marks = {box.get_label(): box[0].get_marker() for box in axis.containers}
    assert marks == {name: drawing.look("answer", name).marker for name in rows["answer"]}
    assert axis.patches[0].get_extents().transformed(axis.transData.inverted()).intervalx.tolist() == pytest.approx(
        [-1, 1]
    )


def many(count: int = 20) -> pd.DataFrame:
    names = [f"activation_number_{i}" for i in range(count)]
    spread = np.linspace(-1, 1, count)
    rows = pd.DataFrame({"activation": names, "value": spread, "low_99": spread - 0.1, "high_99": spread + 0.2})
    rows = rows.assign(answer="different", steps_to_target=100 + 50 * spread, reached=1.0, steps=200)
    return pd.concat([rows.assign(depth=depth, predicted=spread, x=1e-3 * 4.0**depth) for depth in range(7)])


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (drawing.forest, {"at": "activation", "by": "answer", "margin": 0.1}),
        (drawing.estimates, {"at": "activation"}),
        (drawing.estimates, {"at": "x", "by": "activation", "axes": {"xscale": "log"}}),
        (drawing.ladder, {"at": "activation"}),
        (drawing.lines, {"x": "x", "y": "value", "by": "activation", "axes": {"xscale": "log"}}),
        (drawing.heat, {"x": "x", "y": "depth", "value": "value", "axes": {"xscale": "log", "yscale": "symlog"}}),
    ],
)
def test_no_form_prints_over_itself_with_many_names(form, options):
    @drawing.figure("many", "A title that is a good deal longer than one line of a page's column can ever hold", "")
    def draw(rows):
        return drawing.panels(rows, "depth" if "at" in options else "", form, **options)

    (figure,) = draw({"rows": many()})
    drawing.entitle(figure.canvas, figure.title)
    assert overprinted(figure.canvas) == []
