"""What is special to gradient_flow: closed forms of its measurements, and every verdict both ways."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import formats, stats, theory
from depthgauge.studies.gradient_flow import overflow, products, rescaling, scalars, signal, training, walk
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Status

Analysed = Callable[..., Any]  # (part, rows) -> Answers
SEEDS = 8
HERE = Context("cpu")


def measure(run: Callable[[Sequence[Case], Context], Iterable[Rows]], cases: Iterable[Case]) -> list[Rows]:
    return list(run(tuple(cases), HERE))


def changed(rows: Iterable[Rows], where: Callable[[Rows], bool], value: Callable[[Rows], Any]) -> list[Rows]:
    """The rows, with other values where a condition holds."""
    return [replace(row, value=value(row)) if where(row) else row for row in rows]


# -- scalars: N01 and N02 ----------------------------------------------------------------------------------------------


def scalar(factor: float, fmt: str, factors: int = 100) -> dict[str, np.ndarray]:
    case = Case.of({"factor": factor, "format": fmt, "factors": factors})
    return {row.metric: np.atleast_1d(row.value) for row in measure(scalars.run, [case])}


@pytest.mark.parametrize("fmt", scalars.FORMATS)
@pytest.mark.parametrize("factor", [1.5, 0.8])
def test_scalar_products_are_exact_arithmetic_rounded_each_time(factor: float, fmt: str) -> None:
    """A product of two numbers of these formats is exact in float64."""

    def rounded(x: float) -> float:
        return float(torch.tensor(x, dtype=torch.float64).to(getattr(torch, fmt)))

    products = itertools.accumulate(range(100), lambda product, _: rounded(product * rounded(factor)), initial=1.0)
    np.testing.assert_array_equal(scalar(factor, fmt)["product"], list(products)[1:])


def test_exits_count_factors_not_positions() -> None:
    """float16 ends at 65504 and at 2^-14, float32 at 2^128."""
    assert Fraction(3, 2) ** 27 < 65504 < Fraction(3, 2) ** 28
    assert [scalar(1.5, "float16", n)["exit_over"] for n in (27, 28, 100)] == [math.inf, 28, 28]
    assert Fraction(4, 5) ** 44 < Fraction(1, 2**14) < Fraction(4, 5) ** 43
    assert scalar(0.8, "float16")["exit_subnormal"] == 44
    assert scalar(1.5, "float32", 300)["exit_over"] == math.ceil(128 / math.log2(1.5)) == 219


def test_products_that_stop_shrinking_are_seen() -> None:
    """0.8 x 2 smallest subnormals = 1.6 of them, which rounds to 2 again: float16 never gets to zero."""
    found = scalar(0.8, "float16")
    assert found["exit_zero"] == math.inf
    at = int(found["exit_stuck"][0])
    assert found["product"][at - 1] == found["product"][-1] == 2 * formats.get("float16").smallest_subnormal


@pytest.mark.parametrize(
    ("change", "n01", "n02"),
    [({}, Status.FAILS, Status.HOLDS), ({1.5: math.log(4.1e14), 0.8: math.log(2.6e-10)}, Status.HOLDS, Status.FAILS)],
)
def test_n01_and_n02_are_what_the_arithmetic_says(
    analysed: Analysed, change: dict[float, float], n01: Status, n02: Status
) -> None:
    measured = [row for grid in scalars.grids(100) for row in measure(scalars.run, grid.cases())]
    rows = changed(
        measured, lambda row: row.metric == "exact_log" and row.case["factor"] in change,
        lambda row: change[row.case.number("factor")],
    )  # fmt: skip
    found = analysed(scalars.PART, rows)
    assert found.statuses == {"N01": n01, "N02": n02}
    if not change:
        assert found.verdicts["N01"].observed == pytest.approx(float(Fraction(3, 2) ** 100), rel=1e-12)
        assert found.verdicts["N02"].observed == pytest.approx(float(Fraction(4, 5) ** 100), rel=1e-12)
        assert any("float16 is infinite after 28" in sentence for sentence in found.sentences)


# -- products of random matrices ---------------------------------------------------------------------------------------

# A factor of size 2 has a standard deviation of pi / sqrt(24) = 0.64: 100 factors and 60 seeds give the mean growth to
# 0.0083, a sixth of the study's margin, and 180 products of one size its variance to 0.11 of its logarithm.
PRODUCTS = Grid({"n": (2, 5), "sigma_ratio": (0.5, 1.0, 2.0)}, {"factors": 100}, 60, ("sigma_ratio", "seed"), 1000)


@pytest.fixture(scope="module")
def product_rows() -> list[Rows]:
    return [row for chunk in PRODUCTS.chunks("gradient_flow") for row in measure(products.run, chunk.cases)]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda *at: at[2], Status.HOLDS),
        (lambda _, k, x: x + 0.5 * k, Status.FAILS),
        (lambda case, k, x: x + 0.5 * k * (case["n"] == 2), Status.DEPENDS),
        (lambda case, k, x: x + 2.0 * k * (case["seed"] % 2 * 2 - 1), Status.DEPENDS),
    ],
    ids=["as it is", "another growth", "another growth at n = 2", "right on average, far too wide"],
)
def test_growth_and_spread_of_products_may_be_newmans_or_not(
    analysed: Analysed, product_rows: list[Rows], change: Callable[..., np.ndarray], status: Status
) -> None:
    rows = changed(
        product_rows, lambda row: row.metric == "log_norm",
        lambda row: change(row.case, np.asarray(row.layer_index), np.asarray(row.value)),
    )  # fmt: skip
    found = analysed(products.PART, rows)
    assert found.verdicts["products"].status is status
    table = found.tables["products"]
    means = table[table["quantity"] == "mean growth"]
    assert means["predicted"].tolist() == pytest.approx([math.log(r) for r in (0.5, 1.0, 2.0)] * 2, abs=1e-12)
    assert table[["size", "n"]].to_numpy().tolist() == [[2, 60]] * 3 + [[5, 60]] * 3 + [[2, 180], [5, 180]]


def test_exits_of_products_lie_where_growth_puts_them(analysed: Analysed) -> None:
    """sigma = 3 sigma_c grows by ln 3 a factor; float16 ends at ln 65504: after about 10 factors."""
    grid = Grid({"n": (16,), "sigma_ratio": (3.0, 1 / 3)}, fixed={"factors": 60}, seeds=20)
    exits = analysed(products.PART, measure(products.run, grid.cases())).tables["product_exits"]
    own = exits[exits["format"] == "float16"].set_index(["sigma_over_critical", "leaves"])
    for key, logarithm in {(3.0, "over"): math.log(65504), (1 / 3, "zero"): 25 * math.log(2)}.items():
        assert own.loc[key, "predicted"] == pytest.approx(logarithm / math.log(3), rel=1e-12)
        assert own.loc[key, "left"] == 20
        # a vector of 16 numbers, of which the largest (smallest) leaves: a few factors earlier or later
        assert abs(own.loc[key, "median"] - own.loc[key, "predicted"]) <= 5
    assert own.loc[(3.0, "zero"), "median"] == math.inf


# -- signal at initialization: N04, N05, the default, the rate ---------------------------------------------------------

DEPTH = 40
LAYERS = np.array((*range(1, 21), *range(25, DEPTH + 1, 5)))
WIDE = 10**6  # what finite width adds is then out of sight


@functools.cache
def mean_field(activation: str, sigma_w: float, sigma_b: float) -> tuple[np.ndarray, np.ndarray]:
    """Second moments of the signal, and logarithms of those of its gradient, at the recorded layers."""
    q_1 = sigma_w**2 + sigma_b**2
    q = theory.variance_trajectory(activation, sigma_w, sigma_b, q_1, DEPTH - 1)
    return q[LAYERS - 1], np.log(theory.gradient_trajectory(activation, sigma_w, sigma_b, q_1, DEPTH - 1))[LAYERS - 1]


def signal_rows(
    activation: str, sigma_w: float | None, *, shift: float = 0.0, rate: float | None = None, noise: float = 1e-3,
    seeds: int = SEEDS, sigma_b: float = 0.0,
) -> Iterator[Rows]:  # fmt: skip
    """Networks as mean-field theory has them, `shift` off in ln a layer backward, or with a `rate` of one's own.

    `sigma_w` None: PyTorch's initialization. Seeds differ by `noise` in their rates.
    """
    params: dict[str, Any] = {"activation": activation, "width": WIDE, "depth": 100, "init": "torch"}
    if sigma_w is None:
        sigma_w, sigma_b = theory.default_linear(WIDE)
    else:
        params |= {"init": "gaussian", "sigma_w": sigma_w, "sigma_b": sigma_b}
    q, log_g = mean_field(activation, sigma_w, sigma_b)
    passed = DEPTH - LAYERS
    log_g = passed * rate if rate is not None else log_g + passed * shift
    for seed, z in enumerate(np.linspace(-1, 1, seeds)):
        case, ratio = Case.of({**params, "seed": seed}), np.exp(-LAYERS / 3.0) * (1 + noise * z)
        for metric, direction, value in (
            ("second_moment", "forward", q * np.exp(noise * z * LAYERS)), ("correlation", "forward", 0.5 + 0 * q),
            ("log_ratio_scaled", "forward", ratio), ("second_moment", "backward", np.exp(log_g + noise * z * passed)),
        ):  # fmt: skip
            yield case.rows(metric, value, layer_index=LAYERS, direction=direction)


def base() -> list[Rows]:
    """One configuration of each kind that the verdicts speak of."""
    return [
        *signal_rows("tanh", 1.2, sigma_b=0.1), *signal_rows("relu", 2.0), *signal_rows("sigmoid", 1.0),
        *signal_rows("relu", None),
    ]  # fmt: skip


def test_rates_are_those_that_were_put_in(analysed: Analysed) -> None:
    """ReLU multiplies by sigma_w^2 / 2 a layer, a linear layer by sigma_w^2; nn.Linear's sigma_w^2 is 1/3."""
    rates = analysed(signal.PART, [*base(), *signal_rows("linear", 0.8)]).tables["rates"]
    own = rates[rates["direction"] == "backward"].set_index(["activation", "init"])
    for key, factor in {
        ("relu", "gaussian"): 2.0, ("linear", "gaussian"): 0.64, ("relu", "torch"): 1 / 6
    }.items():  # fmt: skip
        assert own.loc[key, "value"] == pytest.approx(math.log(factor), abs=1e-9)
        assert own.loc[key, "predicted"] == pytest.approx(math.log(factor), abs=1e-5)  # 5 / (2 n), n = 10^6
        assert own.loc[key, "n"] == SEEDS
    forward = rates[rates["direction"] == "forward"].set_index(["activation", "init"])
    assert forward.loc[("linear", "gaussian"), "value"] == pytest.approx(math.log(0.64), abs=1e-9)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ([], Status.HOLDS),
        ([signal_rows("tanh", 1.5, shift=0.1), signal_rows("relu", 1.0, shift=-0.1)], Status.DEPENDS),
        ([signal_rows("tanh", 1.5, noise=0.2)], Status.INCONCLUSIVE),
        ([signal_rows("tanh", 1.5, seeds=4)], Status.INCONCLUSIVE),
        ([signal_rows("tanh", 1.5, shift=signal.MARGIN / 2)], Status.HOLDS),  # a difference, and too small to matter
    ],
    ids=["as predicted", "partly off", "noisy", "four seeds", "inside the margin"],
)
def test_the_rate_may_be_as_predicted_or_not(analysed: Analysed, more: list[Iterator[Rows]], status: Status) -> None:
    rows = [*base(), *(row for rows in more for row in rows)]
    assert analysed(signal.PART, rows).verdicts["rate"].status is status


def test_the_rate_fails_where_nothing_is_as_predicted(analysed: Analysed) -> None:
    rows = [
        *signal_rows("tanh", 1.2, shift=0.1), *signal_rows("relu", 2.0, shift=0.1),
        *signal_rows("sigmoid", 1.0, shift=-0.1), *signal_rows("relu", None),
    ]  # fmt: skip
    found = analysed(signal.PART, rows).verdicts["rate"]
    assert found.status is Status.FAILS
    assert abs(found.observed - found.predicted) == pytest.approx(0.1, abs=1e-4)


GROWS, SHRINKS, FLAT = 0.3, -0.3, 0.0
SIGNS = [  # (rates of its configurations, status of "grows", status of "shrinks")
    ((GROWS, 0.5), Status.HOLDS, Status.FAILS),
    ((SHRINKS, -0.5), Status.FAILS, Status.HOLDS),
    ((FLAT, SHRINKS), Status.FAILS, Status.DEPENDS),
    ((FLAT, GROWS), Status.DEPENDS, Status.FAILS),
    ((FLAT, FLAT), Status.FAILS, Status.FAILS),
    ((GROWS, SHRINKS), Status.DEPENDS, Status.DEPENDS),
]


@pytest.mark.parametrize(("rates", "grows", "shrinks"), SIGNS)
def test_n04_n05_and_the_default_go_with_the_gradient(
    analysed: Analysed, rates: tuple[float, float], grows: Status, shrinks: Status
) -> None:
    rows = list(signal_rows("tanh", 1.2, sigma_b=0.1))
    for activation, sigma_w, rate in zip(("tanh", "gelu"), (1.0, 2.0), rates, strict=True):
        rows += signal_rows("relu", sigma_w, rate=rate)
        rows += signal_rows("sigmoid", sigma_w, rate=rate)
        rows += signal_rows(activation, None, rate=rate)
    statuses = analysed(signal.PART, rows).statuses
    assert (statuses["N04"], statuses["N05"], statuses["default"]) == (grows, shrinks, shrinks)


def test_without_enough_seeds_or_certainty_nothing_is_said_of_a_sign(analysed: Analysed) -> None:
    common = [*signal_rows("tanh", 1.2, sigma_b=0.1), *signal_rows("sigmoid", 1.0), *signal_rows("relu", None)]
    for more in ({"seeds": 4}, {"noise": 2.0}):
        rows = [*common, *signal_rows("relu", 2.0, rate=0.3, **more)]
        assert analysed(signal.PART, rows).verdicts["N04"].status is Status.INCONCLUSIVE


def test_a_depth_scale_is_found_again(analysed: Analysed) -> None:
    """The scaled copy's ln-ratio decays as exp(-l / 3) in these rows: xi_q = 3."""
    rows = [*base(), *signal_rows("tanh", 1.2, noise=1e-2)]
    points = analysed(signal.PART, rows).tables["fixed_points"]
    own = points[(points["activation"] == "tanh") & (points["sigma_b"] == 0)].iloc[0]
    assert own["xi_q_fit_low_95"] <= own["xi_q_fit"] <= own["xi_q_fit_high_95"]
    assert own["xi_q_fit"] == pytest.approx(3.0, rel=1e-6)
    field = theory.mean_field("tanh", 1.2, 0.0)
    assert own["q_star"] == field.q_star
    assert own["q"] == pytest.approx(field.q_star, rel=0.05)


@pytest.mark.parametrize("rate", [-1.807, -3.0, -1.1])
def test_the_layers_to_the_end_of_float16_are_whole_ones(analysed: Analysed, rate: float) -> None:
    """After that many layers a gradient of size 1 is below the smallest number, after one less it is not."""
    rows = [*signal_rows("tanh", 1.2, sigma_b=0.1), *signal_rows("relu", None, rate=rate)]
    (told,) = [line for line in analysed(signal.PART, rows).sentences if "PyTorch" in line]
    layers = int(told.partition("after ")[2].split()[0])
    least = formats.get("float16").smallest_subnormal
    assert math.exp(rate * layers / 2) <= least < math.exp(rate * (layers - 1) / 2)


def test_a_count_of_what_is_so_says_how_many_are_undecided(analysed: Analysed) -> None:
    (few,) = analysed(signal.PART, signal_rows("tanh", 1.2, seeds=4)).sentences
    assert few.endswith(
        "Theory knew 0 of 1 growth rates of the gradient before the first step, within 2% a layer; 1 of 1 is undecided."
    )
    assert not any("undecided" in line for line in analysed(signal.PART, base()).sentences)


def test_sigma_b_is_named_where_it_decides(analysed: Analysed) -> None:
    rows = [
        *signal_rows("relu", 2.0, rate=GROWS), *signal_rows("relu", 2.0, rate=SHRINKS, sigma_b=0.3),
        *signal_rows("relu", 2.5, rate=GROWS), *signal_rows("relu", 2.5, rate=GROWS, sigma_b=0.3),
    ]  # fmt: skip
    why = analysed(signal.PART, rows).verdicts["N04"].why
    assert "grows for relu at sigma_w = 2 (sigma_b = 0), relu at sigma_w = 2.5" in why
    assert "shrinks for relu at sigma_w = 2 (sigma_b = 0.3)" in why


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_signals_that_left_float64_are_results(analysed: Analysed, value: float) -> None:
    """One seed of one configuration ends in zero, infinity or NaN: a verdict on the others, and no error."""
    rows = changed(
        base(), lambda row: (row.case["activation"], row.case["seed"], row.direction) == ("sigmoid", 0, "backward"),
        lambda row: np.where(LAYERS < 10, value, row.value),
    )  # fmt: skip
    statuses = analysed(signal.PART, rows).statuses
    assert statuses["N05"] is Status.INCONCLUSIVE
    assert statuses["N04"] is not Status.INCONCLUSIVE


# -- the walk of finite width ------------------------------------------------------------------------------------------


def walk_rows(
    width: int, seeds: int, *, drift: float = 0.0, widen: float = 1.0, dead: int = 0, depth: int = 60
) -> Iterator[Rows]:
    """Log-norms with normal increments of the exact law's mean and variance, changed by `drift` and `widen`."""
    law = theory.relu_log_gain(width, 2.0)
    layers = np.array((*range(1, 21), *range(25, depth + 1, 5)))
    generator = np.random.default_rng(width)
    for seed in range(seeds):
        case = Case.of({"width": width, "depth": depth, "activation": "relu", "sigma_w": 2**0.5, "seed": seed})
        for direction in ("forward", "backward"):
            increments = generator.normal(law.mean + drift, widen * math.sqrt(law.variance), depth - 1)
            track = np.concatenate([[0.0], increments.cumsum()])
            moment = np.exp(track if direction == "forward" else track[::-1])
            if seed < dead:
                moment = np.where(np.arange(depth) > depth / 2, 0.0, moment) if direction == "forward" else 0 * moment
            yield case.rows("second_moment", moment[layers - 1], layer_index=layers, direction=direction)


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (lambda: [*walk_rows(16, 1000), *walk_rows(64, 1000)], Status.HOLDS),
        (lambda: [*walk_rows(16, 200, drift=0.3), *walk_rows(64, 200, drift=0.3)], Status.FAILS),
        (lambda: [*walk_rows(16, 400, widen=3.0), *walk_rows(64, 400, widen=3.0)], Status.DEPENDS),
        (lambda: walk_rows(16, 4), Status.INCONCLUSIVE),
        (lambda: walk_rows(16, 20), Status.INCONCLUSIVE),
        (lambda: walk_rows(8, 1000, dead=round(1000 * theory.relu_dying_probability(8, 60))), Status.HOLDS),
    ],
    ids=["the exact law", "another drift", "another spread", "four seeds", "too few to tell", "a fifth died"],
)
def test_a_walk_of_the_exact_law_is_told_from_another(
    analysed: Analysed, rows: Callable[[], Iterable[Rows]], status: Status
) -> None:
    assert analysed(walk.PART, rows()).verdicts["walk"].status is status


def test_forward_and_backward_of_a_network_are_one_draw(analysed: Analysed) -> None:
    """A network that died backward alone is out of both; n counts networks, not directions."""
    rows = changed(
        walk_rows(16, 100), lambda row: row.case["seed"] < 30 and row.direction == "backward",
        lambda row: 0 * np.asarray(row.value),
    )  # fmt: skip
    tables = analysed(walk.PART, rows).tables
    assert tables["walk"]["n"].tolist() == [70] * 4
    (row,) = tables["walk_networks"].itertuples()
    assert (row.networks, row.living) == (100, 70)


# -- overflow ----------------------------------------------------------------------------------------------------------


def overflow_rows(
    activation: str, *, under_from: int | None, over_at: int | None, log2_scale: Sequence[float], init: str = "default"
) -> Iterator[Rows]:
    """Ten layers; gradients underflow in layers up to `under_from`, activations overflow from `over_at` on."""
    layers = np.arange(1, 11)
    for seed, scale in enumerate(log2_scale):
        shape = {"depth": 10, "width": 16, "batch": 4, "seed": seed}
        case = Case.of({"activation": activation, "init": init, **shape})
        for fmt in overflow.FORMATS:
            half = fmt == "float16"
            for direction in ("forward", "backward"):
                under = (layers <= (under_from or 0)) * (0.5 if half and direction == "backward" else 0.0)
                over = (layers >= (over_at or 11)) * (0.25 if half and direction == "forward" else 0.0)
                yield case.rows(f"{fmt}_under", under, layer_index=layers, direction=direction)
                yield case.rows(f"{fmt}_over", over, layer_index=layers, direction=direction)
        yield case.rows("log2_loss_scale", scale)


def test_exits_are_counted_from_where_a_signal_enters(analysed: Analysed) -> None:
    """Gradients lost in layers 3 and below of 10 have passed 8 layers there; activations lost from layer 7 on, 7."""
    rows = overflow_rows("relu", under_from=3, over_at=7, log2_scale=[4.0, 6.0, 5.0, 4.0, 4.0])
    (row,) = analysed(overflow.PART, rows).tables["loss_scales"].itertuples()
    assert (row.float16_backward, row.float16_forward) == (8, 7)
    assert (row.float32_backward, row.float32_forward) == (math.inf, math.inf)
    assert (row.loss_scale, row.saved, row.networks) == (64, 5, 5)


SAVED, LOST = [4.0] * 5, [math.inf] * 5


@pytest.mark.parametrize(
    ("scales", "status"),
    [
        ((SAVED, SAVED), Status.HOLDS),
        ((LOST, LOST), Status.FAILS),
        ((SAVED, LOST), Status.DEPENDS),
        ((SAVED, [4.0, 4.0, math.inf, 4.0, 4.0]), Status.INCONCLUSIVE),
        ((SAVED[:4], LOST[:4]), Status.INCONCLUSIVE),
    ],
)
def test_a_loss_scale_may_save_or_not(
    analysed: Analysed, scales: tuple[list[float], list[float]], status: Status
) -> None:
    both = zip(("relu", "tanh"), scales, strict=True)
    rows = (overflow_rows(activation, under_from=2, over_at=None, log2_scale=own) for activation, own in both)
    found = analysed(overflow.PART, itertools.chain(*rows)).verdicts["loss_scale"]
    assert found.status is status
    assert (found.n, found.counted) == (len(scales[0]), "networks")  # 2 configurations are too few to count
    assert found.observed in [np.isfinite(own).mean() for own in scales]


def test_shares_lost_are_those_of_the_format() -> None:
    """The first layers of deep sigmoid networks get gradients far below float16: all lost, and saved by a scale."""

    def lost(depth: int) -> dict[tuple[str, Any], Any]:
        shape = {"depth": depth, "width": 16, "batch": 8, "seed": 0}
        case = Case.of({"activation": "sigmoid", "init": "default", **shape})
        return {(row.metric, row.direction): row.value for row in measure(overflow.run, [case])}

    shallow, deep = lost(2), lost(30)
    assert deep["float16_under", "backward"][0] == 1.0
    assert np.all(np.diff(deep["float16_under", "backward"]) <= 0.2)  # less is lost the nearer to the loss
    assert shallow["float16_under", "backward"].max() < 0.5
    assert math.isfinite(shallow["log2_loss_scale", None])


def test_what_float32_loses_is_counted_too() -> None:
    """A pass in float32 would have lost it before: its shares are 0, or 1 where nothing is left of a layer."""
    case = Case.of({"activation": "sigmoid", "init": "default", "depth": 60, "width": 16, "batch": 8, "seed": 0})
    under = {(row.metric, row.direction): np.asarray(row.value) for row in measure(overflow.run, [case])}
    lost = under["float32_under", "backward"]
    assert lost[0] == 1.0
    assert lost[-1] == 0.0
    assert ((lost > 0.0) & (lost < 1.0)).any()  # e^-1.96 a layer: several have gradients on both sides of 2^-150


# -- rescaling: N08 ----------------------------------------------------------------------------------------------------

RESCALING = Grid(
    {"activation": ("relu", "linear", "tanh"), "format": ("float16", "float32"), "log10_alpha": (1, 6)},
    fixed={"width": 16}, seeds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def rescaled() -> list[Rows]:
    return measure(rescaling.run, RESCALING.cases())


def test_rescaling_keeps_the_function_of_homogeneous_networks_alone(analysed: Analysed, rescaled: list[Rows]) -> None:
    table = analysed(rescaling.PART, rescaled).tables["rescaling"]
    own = table[table["format"] == "float32"].set_index(["activation", "log10_alpha"])
    for activation in ("relu", "linear"):
        assert own.loc[(activation, 1), "answer"] == "the same function"
        # the next layer is divided by alpha, so that what comes back to the first is alpha times smaller
        assert own.loc[(activation, 1), "log_gradient_ratio"] == pytest.approx(-math.log(10), abs=1e-4)
    assert own.loc[("tanh", 1), "answer"] == "another function"
    half = table[table["format"] == "float16"].set_index(["activation", "log10_alpha"])
    assert half.loc[("relu", 6), "answer"] == "another function"  # 10^6 is more than float16 holds


def test_n08_goes_with_the_functions(analysed: Analysed, rescaled: list[Rows]) -> None:
    def status(keep: Callable[[Case], bool], change: float | None = None) -> Status:
        own = [row for row in rescaled if keep(row.case)]
        rows = changed(own, lambda row: change is not None and row.metric == "function_change", lambda _: change)
        return analysed(rescaling.PART, rows).verdicts["N08"].status

    assert status(lambda _: True) is Status.DEPENDS
    assert status(lambda case: case["activation"] == "linear" and case["format"] == "float32") is Status.HOLDS
    assert status(lambda case: case["activation"] == "tanh") is Status.FAILS
    assert status(lambda _: True, 0.0) is Status.HOLDS
    assert status(lambda _: True, math.inf) is Status.FAILS


# -- training: N03, the depth scale, the critical point ----------------------------------------------------------------

DEPTHS = (2, 4, 8, 16, 32)
SIGMAS = {"tanh": (0.5, 0.7, 0.85, 1.0, 1.3, 1.6, 2.0, 2.6), "relu": (0.7, 0.9, 1.1, 1.25, 2**0.5, 1.6, 1.8, 2.2)}
SIGMAS |= {"linear": SIGMAS["tanh"], "hardtanh": SIGMAS["tanh"]}


def training_rows(
    reach: Callable[[str, float], float], *, seeds: int = 6, jitter: float = 0.02,
    activations: Sequence[str] = ("tanh", "relu"),
) -> Iterator[Rows]:  # fmt: skip
    """Networks that train down to `reach(activation, sigma_w)` layers: there accuracy falls through 0.5."""
    for activation in activations:
        grid = Grid(
            {"depth": DEPTHS, "sigma_w": SIGMAS[activation]},
            fixed={"activation": activation, "width": 8, "steps": 10}, seeds=seeds,
        )  # fmt: skip
        for case in grid.cases():
            own = reach(activation, case.number("sigma_w")) * (1 + jitter * math.sin(7 * case.integer("seed") + 1))
            accuracy = 0.5 + 0.2 * math.log(own / case.integer("depth"))
            yield case.rows("train_accuracy", min(1.0, max(0.1, accuracy)))
            yield case.rows("train_loss", 1.0)
            yield case.rows("diverged", 0.0)


def as_predicted(activation: str, sigma_w: float) -> float:
    """6 xi_c layers; below the critical sigma_w the closed form of ReLU, and as deep beyond it."""
    if activation == "relu":
        return 6 / abs(math.log(min(sigma_w, 4 / sigma_w) ** 2 / 2)) if abs(sigma_w**2 - 2) > 1e-9 else 1e9
    return 6 * theory.mean_field("tanh", min(sigma_w, 1 / sigma_w), 0.0).xi_c if sigma_w != 1 else 1e9


@pytest.fixture
def trained(analysed: Analysed) -> Callable[..., Any]:
    return lambda reach, **how: analysed(training.PART, training_rows(reach, **how))


def test_reach_is_where_accuracy_falls_through_the_threshold(trained: Callable[..., Any]) -> None:
    found = trained(lambda _, sigma_w: 5.0 if sigma_w < 1 else 100.0 if sigma_w < 1.5 else 1.0, jitter=0.0)
    reach = found.tables["reach"].set_index("sigma_w").sort_index()[["reach", "censored"]]
    for of, wanted in ((slice(0.99), (5.0, 0)), (slice(1, 1.5), (DEPTHS[-1], 1)), (slice(1.51, None), (DEPTHS[0], -1))):
        np.testing.assert_allclose(reach.loc[of], [wanted] * len(reach.loc[of]))  # 5: linear in log-depth from 4 to 8


def test_training_as_theory_says(trained: Callable[..., Any]) -> None:
    found = trained(as_predicted)
    assert found.statuses["N03"] is Status.HOLDS
    assert found.statuses["critical"] is Status.HOLDS
    slopes = found.tables["depth_scale"].set_index("activation")
    assert slopes.loc["relu", "value"] == pytest.approx(1.0, abs=0.02)
    assert slopes.loc["relu", "answer"] in {stats.Answer.EQUIVALENT, stats.Answer.NEGLIGIBLE}


def test_depth_may_be_proportional_to_the_depth_scale_or_not(trained: Callable[..., Any]) -> None:
    """Reach 5 xi_c has a log-log slope of 1, reach 20 xi_c^(-1/2) one of -1/2."""

    def scale(activation: str, sigma_w: float) -> float:
        known = theory.depth_scales(activation, sigma_w, 0.0)[0]
        return 3.0 if math.isnan(known) or known > 50 else known

    yes = trained(lambda *at: 5 * scale(*at))
    assert yes.statuses["depth_scale"] is Status.HOLDS
    no = trained(lambda *at: 20 / math.sqrt(scale(*at)))
    assert no.statuses["depth_scale"] is Status.FAILS
    assert no.verdicts["depth_scale"].observed == pytest.approx(-0.5, abs=0.02)
    mixed = trained(lambda name, s: 5 * scale(name, s) if name == "tanh" else 20 / math.sqrt(scale(name, s)))
    assert mixed.statuses["depth_scale"] is Status.DEPENDS
    assert "proportional for tanh; not proportional for relu" in mixed.verdicts["depth_scale"].why


def test_which_sigmas_tell_of_the_depth_scale_follows_from_theory_alone(trained: Callable[..., Any]) -> None:
    """Networks that train nowhere, or everywhere, leave as many in, as censored."""
    used = [trained(lambda *_: reach).tables["reach"] for reach in (0.1, 5.0, 1000.0)]  # noqa: B023 - called at once
    chosen = [reach[(6 * reach["xi_c"]).between(DEPTHS[0], DEPTHS[-1])]["sigma_w"].tolist() for reach in used]
    assert chosen[0] == chosen[1] == chosen[2] != []
    table = trained(as_predicted).tables["depth_scale"].set_index("activation")
    assert table["sigmas"].to_dict() == {"tanh": 3, "relu": 4}  # tanh up to 0.85, relu up to 1.25


def test_the_critical_point_may_be_elsewhere(trained: Callable[..., Any]) -> None:
    assert trained(lambda _, sigma_w: 3 * sigma_w**2, seeds=8).statuses["critical"] is Status.FAILS


@pytest.mark.parametrize(
    ("reach", "status"),
    [
        (lambda *_: 10.0, Status.HOLDS),
        (lambda *_: 1000.0, Status.FAILS),  # depth costs nothing
        (lambda _, sigma_w: 10.0 if sigma_w > 1.2 else 1.0, Status.DEPENDS),  # shallow ones fail too
    ],
    ids=["depth costs", "depth costs nothing", "shallow fails"],
)
def test_n03_goes_with_what_depth_costs(
    trained: Callable[..., Any], reach: Callable[[str, float], float], status: Status
) -> None:
    found = trained(reach, activations=tuple(SIGMAS)).verdicts["N03"]
    assert found.status is status
    assert (found.n, found.counted) == (32, "initializations")
    assert 0 <= found.low <= found.high <= 1


def test_four_seeds_decide_nothing_of_a_sigma_or_a_slope(trained: Callable[..., Any]) -> None:
    statuses = trained(as_predicted, seeds=4).statuses
    assert {statuses["critical"], statuses["depth_scale"]} == {Status.INCONCLUSIVE}


def test_accuracies_of_networks_that_diverged_count(analysed: Analysed) -> None:
    """Accuracy of a network full of NaN is chance; its loss is NaN; the denominator stays."""
    rows = changed(
        training_rows(lambda *_: 5.0, activations=("relu",)), lambda row: row.case["sigma_w"] == max(SIGMAS["relu"]),
        lambda row: {"train_accuracy": 0.1, "train_loss": math.nan, "diverged": 1.0}[row.metric],
    )  # fmt: skip
    cells = analysed(training.PART, rows).tables["training"]
    own = cells[cells["sigma_w"] == max(SIGMAS["relu"])]
    assert set(own["n"]) == set(own["diverged"]) == {6}
    assert set(own["trained"]) == {0}
