"""The study on data whose answer is known: every part, every verdict both ways."""

from __future__ import annotations

import functools
import itertools
import math
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import matplotlib.figure
import numpy as np
import pandas as pd
import pytest
import torch

from depthgauge import formats, running, store, theory
from depthgauge.frames import by_case
from depthgauge.parts import Answer
from depthgauge.reports import style
from depthgauge.seeding import Purpose, generator
from depthgauge.studies import gradient_flow
from depthgauge.studies.gradient_flow import limits, products, rescaling, signal, training, walk
from depthgauge.studies.gradient_flow.answers import MARGIN, coinciding
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Findings, Status, Verdict

Tidy = Callable[..., pd.DataFrame]
SEEDS = 8
HERE = Context("cpu")


def verdict(answer: Answer | Findings, claim: str) -> Verdict:
    (found,) = (verdict for verdict in answer.verdicts if verdict.id == claim)
    return found


def measure(run: Callable[[Sequence[Case], Context], Iterable[Rows]], cases: Iterable[Case]) -> list[Rows]:
    return list(run(tuple(cases), HERE))


def values(rows: Iterable[Rows]) -> dict[tuple[object, ...], np.ndarray]:
    """What was measured, by everything that names it."""
    found = {}
    for row in rows:
        index = None if row.layer_index is None else tuple(np.atleast_1d(row.layer_index).tolist())
        layer = row.layer if row.layer is None or isinstance(row.layer, str) else tuple(row.layer)
        found[row.case.id, row.metric, layer, row.direction, index] = np.atleast_1d(row.value).astype(float)
    return found


# -- scalars: N01 and N02 ----------------------------------------------------------------------------------------------


def scalar(factor: float, fmt: str, factors: int = 100) -> dict[str, np.ndarray]:
    case = Case.of({"factor": factor, "format": fmt, "factors": factors})
    return {row.metric: np.atleast_1d(row.value) for row in measure(products.run_scalars, [case])}


def nearest(x: Fraction, fmt: str) -> Fraction | None:
    """x > 0 rounded to the format, to nearest, ties to even; None for infinity. From the format's definition alone."""
    bits, least, most = {"float16": (11, -14, 15), "bfloat16": (8, -126, 127), "float32": (24, -126, 127)}[fmt]
    exponent = max(least, math.floor(math.log2(x)) if x else least)
    while exponent > least and Fraction(2) ** exponent > x:
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= x:
        exponent += 1
    unit = Fraction(2) ** (exponent - bits + 1)
    rounded = round(x / unit) * unit  # Fraction rounds ties to even
    return None if rounded >= Fraction(2) ** (most + 1) else rounded


@pytest.mark.parametrize("fmt", products.FORMATS)
@pytest.mark.parametrize("factor", [1.5, 0.8])
def test_scalar_products_are_exact_arithmetic_rounded_each_time(factor: float, fmt: str) -> None:
    rounded_factor, product = nearest(Fraction(factor), fmt), Fraction(1)
    assert rounded_factor is not None
    expected: list[float] = []
    for _ in range(100):
        step = nearest(product * rounded_factor, fmt) if math.isinf(product) is False else None
        if step is None:
            expected += [math.inf] * (100 - len(expected))
            break
        product = step
        expected.append(float(product))
    np.testing.assert_array_equal(scalar(factor, fmt)["product"], expected)


def test_exits_count_factors_not_positions() -> None:
    """1.5^27 = 56815.1 is below 65504, the largest float16, and 1.5^28 = 85222.7 above: 28 factors."""
    assert Fraction(3, 2) ** 27 < 65504 < Fraction(3, 2) ** 28
    assert scalar(1.5, "float16")["exit_over"] == 28
    assert scalar(1.5, "float16", factors=28)["exit_over"] == 28
    assert scalar(1.5, "float16", factors=27)["exit_over"] == math.inf
    # 0.8^43 = 6.8e-5 is normal in float16 (down to 2^-14 = 6.1e-5), 0.8^44 = 5.4e-5 is not
    assert Fraction(4, 5) ** 44 < Fraction(1, 2**14) < Fraction(4, 5) ** 43
    assert scalar(0.8, "float16")["exit_subnormal"] == 44
    # bfloat16 and float32 reach 2^128 = 3.4e38: 1.5^218
    assert scalar(1.5, "float32", factors=300)["exit_over"] == math.ceil(128 / math.log2(1.5)) == 219
    assert scalar(1.5, "float32")["exit_over"] == math.inf


def test_products_that_stop_shrinking_are_seen() -> None:
    """0.8 x 2 smallest subnormals = 1.6 of them, which rounds to 2 again: float16 never gets to zero."""
    found = scalar(0.8, "float16")
    assert found["exit_zero"] == math.inf
    at = int(found["exit_stuck"][0])
    assert found["product"][at - 1] == found["product"][-1] == 2 * formats.get("float16").smallest_subnormal
    assert found["product"][at - 2] > found["product"][at - 1] or found["product"][at - 3] > found["product"][at - 1]


def scalar_rows(**logs: float) -> Iterator[Rows]:
    """What `run_scalars` says, with the logarithm of a product changed."""
    for case in Grid(
        {"factor": (1.5, 0.8), "format": products.FORMATS}, fixed={"part": "scalars", "factors": 100}
    ).cases():
        changed = logs.get({1.5: "grows", 0.8: "shrinks"}[case.number("factor")])
        for row in measure(products.run_scalars, [case]):
            yield row if changed is None or row.metric != "exact_log" else replace(row, value=changed)


def test_n01_and_n02_are_what_the_arithmetic_says(tidy: Tidy) -> None:
    answer = products.analyse_scalars(tidy(scalar_rows()))
    n01, n02 = verdict(answer, "N01"), verdict(answer, "N02")
    assert n01.status is Status.FAILS
    assert n01.observed == pytest.approx(float(Fraction(3, 2) ** 100), rel=1e-12)
    assert n01.predicted == 4e14
    assert n02.status is Status.HOLDS
    assert n02.observed == pytest.approx(float(Fraction(4, 5) ** 100), rel=1e-12)


def test_n01_and_n02_could_have_gone_the_other_way(tidy: Tidy) -> None:
    rows = scalar_rows(grows=math.log(4.1e14), shrinks=math.log(2.6e-10))
    answer = products.analyse_scalars(tidy(rows))
    assert verdict(answer, "N01").status is Status.HOLDS
    assert verdict(answer, "N02").status is Status.FAILS


# -- products of random matrices ---------------------------------------------------------------------------------------

# A factor of size 2 has a standard deviation of pi / sqrt(24) = 0.64: 100 factors and 60 seeds give the mean growth to
# 0.0083, a sixth of the study's margin. Equivalence then fails by chance once in some hundred draws of seeds.
PRODUCTS = Grid(
    {"n": (2, 5), "sigma_ratio": (0.5, 1.0, 2.0)}, fixed={"part": "products", "factors": 100}, seeds=60,
    together=("sigma_ratio", "seed"), chunk=1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def product_rows() -> list[Rows]:
    return [row for chunk in PRODUCTS.chunks("gradient_flow") for row in measure(products.run_products, chunk.cases)]


def test_a_product_is_the_product_of_its_matrices() -> None:
    """In numpy, from the same draws, all factors multiplied before the vector: |W_k ... W_1 1| / |1|."""
    (case,) = Grid({"n": (3,), "sigma_ratio": (1.2,), "factors": (25,)}, seeds=0).cases()
    found = values(measure(products.run_products, [case]))
    draws = generator(case.random_seed(), Purpose.WEIGHTS)
    product, expected = np.eye(3), []
    for _ in range(25):
        matrix = torch.randn(3, 3, generator=draws).double().numpy() * 1.2 * theory.critical_sigma(3)
        product = matrix @ product
        expected.append(math.log(np.linalg.norm(product @ np.ones(3)) / math.sqrt(3)))
    recorded = (*range(1, 11), 15, 20, 25)
    np.testing.assert_allclose(
        found[case.id, "log_norm", None, None, recorded], np.array(expected)[np.array(recorded) - 1], atol=1e-12
    )


def test_growth_of_products_agrees_with_newman(tidy: Tidy, product_rows: list[Rows]) -> None:
    """By its margin, and with the exact spread."""
    answer = products.analyse_products(tidy(product_rows))
    found = verdict(answer, "gradient_flow/products")
    assert found.status is Status.HOLDS
    assert found.n == 6 * 60
    table = answer.tables["products"]
    assert table["predicted"].tolist() == pytest.approx([math.log(r) for r in (0.5, 1.0, 2.0)] * 2, abs=1e-12)


def with_log_norm(rows: Iterable[Rows], change: Callable[[Case, np.ndarray, np.ndarray], np.ndarray]) -> Iterator[Rows]:
    for row in rows:
        if row.metric == "log_norm":
            changed = change(row.case, np.asarray(row.layer_index), np.asarray(row.value))
            yield replace(row, value=changed)
        else:
            yield row


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda _, k, x: x + 0.5 * k, Status.FAILS),
        (lambda case, k, x: x + 0.5 * k * (case["n"] == 2), Status.DEPENDS),
        # right on average, far too wide
        (lambda case, k, x: x * 1.0 + 2.0 * k * (case["seed"] % 2 * 2 - 1), Status.DEPENDS),
    ],
)
def test_growth_of_products_could_have_disagreed(
    tidy: Tidy,
    product_rows: list[Rows],
    change: Callable[[Case, np.ndarray, np.ndarray], np.ndarray],
    status: Status,
) -> None:
    answer = products.analyse_products(tidy(with_log_norm(product_rows, change)))
    assert verdict(answer, "gradient_flow/products").status is status


def test_exits_of_products_lie_where_growth_puts_them(tidy: Tidy) -> None:
    """sigma = 3 sigma_c grows by ln 3 a factor; float16 ends at ln 65504: after about 10 factors."""
    grid = Grid({"n": (16,), "sigma_ratio": (3.0, 1 / 3)}, fixed={"factors": 60}, seeds=20)
    exits = products.analyse_products(tidy(measure(products.run_products, grid.cases()))).tables["product_exits"]
    own = exits[exits["format"] == "float16"].set_index(["sigma_ratio", "leaves"])
    grows, shrinks = own.loc[(3.0, "over")], own.loc[(1 / 3, "zero")]
    assert grows["predicted"] == pytest.approx(math.log(65504) / math.log(3), rel=1e-12)
    assert shrinks["predicted"] == pytest.approx(25 * math.log(2) / math.log(3), rel=1e-12)
    assert (grows["left"], shrinks["left"]) == (20, 20)
    # a vector of 16 numbers, of which the largest (smallest) leaves: a few factors earlier or later
    assert abs(grows["median"] - grows["predicted"]) <= 3
    assert abs(shrinks["median"] - shrinks["predicted"]) <= 5
    assert own.loc[(3.0, "zero"), "median"] == math.inf


# -- signal at initialization: N04, N05, the default, the rate ---------------------------------------------------------

DEPTH = 40
LAYERS = np.array([layer for layer in range(1, DEPTH + 1) if layer <= signal.DENSE or layer % signal.STRIDE == 0])
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
    common = {"part": "signal", "activation": activation, "width": WIDE, "depth": 100}
    if sigma_w is None:
        params = {**common, "init": "torch"}
        sigma_w, sigma_b = theory.default_linear(WIDE)
    else:
        params = {**common, "init": "gaussian", "sigma_w": sigma_w, "sigma_b": sigma_b}
    q, log_g = mean_field(activation, sigma_w, sigma_b)
    passed = DEPTH - LAYERS
    log_g = passed * rate if rate is not None else log_g + passed * shift
    for seed, z in enumerate(np.linspace(-1, 1, seeds)):
        case = Case.of({**params, "seed": seed})
        told = {"second_moment": ("forward", q * np.exp(noise * z * LAYERS)), "correlation": ("forward", 0.5 + 0 * q)}
        told["log_ratio_scaled"] = ("forward", np.exp(-LAYERS / 3.0) * (1 + noise * z))
        for metric, (direction, value) in told.items():
            yield case.rows(metric, value, layer_index=LAYERS, direction=direction)
        backward = np.exp(log_g + noise * z * passed)
        yield case.rows("second_moment", backward, layer_index=LAYERS, direction="backward")


def base() -> list[Rows]:
    """One configuration of each kind that the verdicts speak of."""
    return [
        *signal_rows("tanh", 1.2, sigma_b=0.1), *signal_rows("relu", 2.0), *signal_rows("sigmoid", 1.0),
        *signal_rows("relu", None),
    ]  # fmt: skip


def test_rates_are_those_that_were_put_in(tidy: Tidy) -> None:
    """ReLU multiplies by sigma_w^2 / 2 a layer, a linear layer by sigma_w^2; nn.Linear's sigma_w^2 is 1/3."""
    rows = [*base(), *signal_rows("linear", 0.8)]
    rates = signal.analyse_signal(tidy(rows)).tables["rates"]
    own = rates[rates["direction"] == "backward"].set_index(["activation", "init"])
    for key, factor in {
        ("relu", "gaussian"): 2.0, ("linear", "gaussian"): 0.64, ("relu", "torch"): 1 / 6
    }.items():  # fmt: skip
        assert own.loc[key, "rate"] == pytest.approx(math.log(factor), abs=1e-9)
        assert own.loc[key, "predicted"] == pytest.approx(math.log(factor), abs=1e-5)  # 5 / (2 n), n = 10^6
        assert own.loc[key, "seeds"] == SEEDS
    forward = rates[rates["direction"] == "forward"].set_index(["activation", "init"])
    assert forward.loc[("linear", "gaussian"), "rate"] == pytest.approx(math.log(0.64), abs=1e-9)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ([], Status.HOLDS),
        ([signal_rows("tanh", 1.5, shift=0.1), signal_rows("relu", 1.0, shift=-0.1)], Status.DEPENDS),
        ([signal_rows("tanh", 1.5, noise=0.2)], Status.INCONCLUSIVE),
        ([signal_rows("tanh", 1.5, seeds=4)], Status.INCONCLUSIVE),
        ([signal_rows("tanh", 1.5, shift=MARGIN / 2)], Status.HOLDS),  # a difference, and too small to matter
    ],
    ids=["as predicted", "partly off", "noisy", "four seeds", "inside the margin"],
)
def test_the_rate_may_be_as_predicted_or_not(tidy: Tidy, changed: list[Iterator[Rows]], status: Status) -> None:
    rows = [*base(), *(row for rows in changed for row in rows)]
    assert verdict(signal.analyse_signal(tidy(rows)), "gradient_flow/rate").status is status


def test_the_rate_fails_where_nothing_is_as_predicted(tidy: Tidy) -> None:
    rows = [
        *signal_rows("tanh", 1.2, shift=0.1), *signal_rows("relu", 2.0, shift=0.1),
        *signal_rows("sigmoid", 1.0, shift=-0.1), *signal_rows("relu", None),
    ]  # fmt: skip
    found = verdict(signal.analyse_signal(tidy(rows)), "gradient_flow/rate")
    assert found.status is Status.FAILS
    assert found.observed is not None
    assert abs(found.observed) == pytest.approx(0.1, abs=1e-4)


def test_points_outside_the_band_are_counted_and_held_to_the_margin(tidy: Tidy) -> None:
    """Half the margin is many standard errors of these rows, and no deviation that matters; five margins is one."""
    rows = [
        *base(), *signal_rows("tanh", 1.5, shift=MARGIN / 2, noise=1e-6),
        *signal_rows("relu", 1.0, shift=5 * MARGIN, noise=1e-6),
    ]  # fmt: skip
    tables = dict(signal.analyse_signal(tidy(rows)).tables)
    own = tables["rates"]["activation"].isin(["tanh", "relu"]) & tables["rates"]["sigma_w"].isin([1.5, 1.0])
    tables["rates"] = tables["rates"][own]
    with style.drawing():
        (figure,) = signal.plot_rates(tables)
    assert "Points outside it: 2 of 2 (" in figure.caption
    assert "counts as predicted: 1 (at most 0.01 off)" in figure.caption
    assert "beyond it: relu at sigma_w = 1" in figure.caption


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
    tidy: Tidy, rates: tuple[float, float], grows: Status, shrinks: Status
) -> None:
    rows = list(signal_rows("tanh", 1.2, sigma_b=0.1))
    for activation in ("relu", "sigmoid"):
        rows += signal_rows(activation, 1.0, rate=rates[0])
        rows += signal_rows(activation, 2.0, rate=rates[1])
    for activation, rate in zip(("tanh", "gelu"), rates, strict=True):
        rows += signal_rows(activation, None, rate=rate)
    answer = signal.analyse_signal(tidy(rows))
    assert verdict(answer, "N04").status is grows
    assert verdict(answer, "N05").status is shrinks
    assert verdict(answer, "gradient_flow/default").status is shrinks


def test_without_enough_seeds_or_certainty_nothing_is_said_of_a_sign(tidy: Tidy) -> None:
    common = [*signal_rows("tanh", 1.2, sigma_b=0.1), *signal_rows("sigmoid", 1.0), *signal_rows("relu", None)]
    for more in ({"seeds": 4}, {"noise": 2.0}):
        answer = signal.analyse_signal(tidy([*common, *signal_rows("relu", 2.0, rate=0.3, **more)]))
        assert verdict(answer, "N04").status is Status.INCONCLUSIVE


def test_a_depth_scale_is_found_again(tidy: Tidy) -> None:
    """The scaled copy's ln-ratio decays as exp(-l / 3) in these rows: xi_q = 3."""
    rows = [*base(), *signal_rows("tanh", 1.2, noise=1e-2)]
    points = signal.analyse_signal(tidy(rows)).tables["fixed_points"]
    own = points[(points["activation"] == "tanh") & (points["sigma_b"] == 0)].iloc[0]
    assert own["xi_q_low"] <= own["xi_q_fit"] <= own["xi_q_high"]
    assert own["xi_q_fit"] == pytest.approx(3.0, rel=1e-6)
    field = theory.mean_field("tanh", 1.2, 0.0)
    assert own["q_star"] == field.q_star
    assert own["q"] == pytest.approx(field.q_star, rel=0.05)


# -- the walk of finite width ------------------------------------------------------------------------------------------


def walk_rows(
    width: int, seeds: int, *, drift: float = 0.0, widen: float = 1.0, dead: int = 0, depth: int = 60
) -> Iterator[Rows]:
    """Log-norms with normal increments of the exact law's mean and variance, changed by `drift` and `widen`."""
    law = theory.relu_log_gain(width, 2.0)
    layers = np.array([layer for layer in range(1, depth + 1) if layer <= signal.DENSE or layer % signal.STRIDE == 0])
    generator = np.random.default_rng(width)
    for seed in range(seeds):
        case = Case.of(
            {"part": "walk", "width": width, "depth": depth, "activation": "relu", "init": "gaussian",
             "sigma_w": 2**0.5, "sigma_b": 0.0, "seed": seed}
        )  # fmt: skip
        for direction in ("forward", "backward"):
            increments = generator.normal(law.mean + drift, widen * math.sqrt(law.variance), depth - 1)
            track = np.concatenate([[0.0], increments.cumsum()])
            moment = np.exp(track if direction == "forward" else track[::-1])
            if seed < dead:
                moment = np.where(np.arange(depth) > depth / 2, 0.0, moment) if direction == "forward" else 0 * moment
            yield case.rows("second_moment", moment[layers - 1], layer_index=layers, direction=direction)


def test_a_walk_of_the_exact_law_is_recognized(tidy: Tidy) -> None:
    """2,000 nets give the share inside to 0.005, a tenth of the margin; the other tests err once in a hundred draws."""
    rows = [*walk_rows(16, 1000), *walk_rows(64, 1000)]
    answer = walk.analyse_walk(tidy(rows))
    found = verdict(answer, "gradient_flow/walk")
    assert found.status is Status.HOLDS
    assert found.n == 2000
    table = answer.tables["walk_coverage"]
    law = theory.relu_log_gain(16, 2.0)
    own = table[(table["width"] == 16) & (table["direction"] == "forward")].iloc[0]
    assert own["layers"] == 59
    assert own["predicted_mean"] == pytest.approx(59 * law.mean, rel=1e-12)
    assert own["predicted_variance"] == pytest.approx(59 * law.variance, rel=1e-12)
    assert own["mean"] == pytest.approx(59 * law.mean, abs=4 * math.sqrt(59 * law.variance / 1000))


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        (lambda: [*walk_rows(16, 200, drift=0.3), *walk_rows(64, 200, drift=0.3)], Status.FAILS),
        (lambda: [*walk_rows(16, 200, widen=3.0), *walk_rows(64, 200, widen=3.0)], Status.FAILS),
        (lambda: walk_rows(16, 4), Status.INCONCLUSIVE),
        (lambda: walk_rows(16, 20), Status.INCONCLUSIVE),
    ],
    ids=["another drift", "another spread", "four seeds", "too few to tell"],
)
def test_another_walk_is_not_taken_for_it(tidy: Tidy, rows: Callable[[], Iterable[Rows]], status: Status) -> None:
    assert verdict(walk.analyse_walk(tidy(rows())), "gradient_flow/walk").status is status


def test_nets_whose_units_all_died_are_told_apart(tidy: Tidy) -> None:
    """At width 8 a fifth of 60-layer nets has a layer without an active unit: the exact law is that of the others."""
    died = round(1000 * theory.relu_dying_probability(8, 60))
    assert 180 <= died <= 240
    answer = walk.analyse_walk(tidy(walk_rows(8, 1000, dead=died)))
    assert verdict(answer, "gradient_flow/walk").status is Status.HOLDS
    drawn(Findings(answer.verdicts, answer.tables))


# -- overflow ----------------------------------------------------------------------------------------------------------


def overflow_rows(
    activation: str, *, under_from: int | None, over_at: int | None, log2_scale: Sequence[float], init: str = "default"
) -> Iterator[Rows]:
    """Ten layers; gradients underflow in layers up to `under_from`, activations overflow from `over_at` on."""
    layers = np.arange(1, 11)
    for seed, scale in enumerate(log2_scale):
        case = Case.of(
            {
                "part": "overflow",
                "activation": activation,
                "init": init,
                "depth": 10,
                "width": 16,
                "batch": 4,
                "seed": seed,
            }
        )
        for fmt in limits.FORMATS:
            half = fmt == "float16"
            for direction in ("forward", "backward"):
                under = (layers <= (under_from or 0)) * (0.5 if half and direction == "backward" else 0.0)
                over = (layers >= (over_at or 11)) * (0.25 if half and direction == "forward" else 0.0)
                yield case.rows(f"{fmt}_under", under, layer_index=layers, direction=direction)
                yield case.rows(f"{fmt}_over", over, layer_index=layers, direction=direction)
        yield case.rows("log2_loss_scale", scale)


def test_exits_are_counted_from_where_a_signal_enters(tidy: Tidy) -> None:
    """Gradients lost in layers 3 and below of 10 have passed 8 layers there; activations lost from layer 7 on, 7."""
    rows = overflow_rows("relu", under_from=3, over_at=7, log2_scale=[4.0, 6.0, 5.0, 4.0, 4.0])
    (row,) = limits.analyse_overflow(tidy(rows)).tables["loss_scales"].itertuples()
    assert (row.float16_backward, row.float16_forward) == (8, 7)
    assert (row.float32_backward, row.float32_forward) == (math.inf, math.inf)
    assert (row.loss_scale, row.saved, row.seeds) == (64, 5, 5)


@pytest.mark.parametrize(("relu", "alike"), [(3, True), (5, False)])
def test_curves_that_hide_each_other_are_named(tidy: Tidy, relu: int, alike: bool) -> None:
    """GELU is measured at the default alone; tanh loses gradients in its first three layers."""
    rows = [
        *overflow_rows("gelu", under_from=9, over_at=None, log2_scale=[4.0]),
        *overflow_rows("tanh", under_from=3, over_at=None, log2_scale=[4.0], init="critical"),
        *overflow_rows("relu", under_from=relu, over_at=None, log2_scale=[4.0], init="critical"),
    ]
    with style.drawing():
        (figure,) = limits.plot_overflow(limits.analyse_overflow(tidy(rows)).tables)
    assert ("curves of relu, tanh lie on each other" in figure.caption) is alike
    assert "Critical sigma_w: without gelu" in figure.caption


def test_curves_coincide_within_what_is_asked() -> None:
    lines = pd.DataFrame({"a": [0.0, 1.0], "b": [0.25, 1.0], "c": [0.0, 2.0], "d": [0.0, 0.5]})
    assert coinciding(lines, within=0.25) == [["a", "b"], ["c"], ["d"]]
    assert coinciding(lines, within=1.0) == [["a", "b", "c", "d"]]


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
def test_a_loss_scale_may_save_or_not(tidy: Tidy, scales: tuple[list[float], list[float]], status: Status) -> None:
    rows = [
        row
        for activation, own in zip(("relu", "tanh"), scales, strict=True)
        for row in overflow_rows(activation, under_from=2, over_at=None, log2_scale=own)
    ]
    found = verdict(limits.analyse_overflow(tidy(rows)), "gradient_flow/loss_scale")
    assert found.status is status
    assert found.observed == pytest.approx(np.isfinite(scales).mean())


def test_shares_lost_are_those_of_the_format() -> None:
    """The first layers of deep sigmoid networks get gradients far below float16: all lost, and saved by a scale."""
    cases = [
        Case.of({"activation": "sigmoid", "init": "default", "depth": depth, "width": 16, "batch": 8, "seed": 0})
        for depth in (2, 30)
    ]
    found = values(measure(limits.run_overflow, cases))
    deep = found[cases[1].id, "float16_under", None, "backward", tuple(range(1, 31))]
    assert deep[0] == 1.0
    assert np.all(np.diff(deep) <= 0.2)  # less is lost the nearer to the loss
    shallow = found[cases[0].id, "float16_under", None, "backward", (1, 2)]
    assert shallow.max() < 0.5
    assert math.isfinite(found[cases[0].id, "log2_loss_scale", None, None, None][0])


# -- rescaling: N08 ----------------------------------------------------------------------------------------------------

RESCALING = Grid(
    {"activation": ("relu", "linear", "tanh"), "format": ("float16", "float32"), "log10_alpha": (1, 6)},
    fixed={"part": "rescaling", "width": 16}, seeds=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def rescaled() -> list[Rows]:
    return measure(rescaling.run_rescaling, RESCALING.cases())


def test_rescaling_keeps_the_function_of_homogeneous_networks_alone(tidy: Tidy, rescaled: list[Rows]) -> None:
    table = rescaling.analyse_rescaling(tidy(rescaled)).tables["rescaling"]
    own = table[table["format"] == "float32"].set_index(["activation", "log10_alpha"])
    for activation in ("relu", "linear"):
        assert own.loc[(activation, 1), "same"]
        # the next layer is divided by alpha, so that what comes back to the first is alpha times smaller
        assert own.loc[(activation, 1), "log_gradient_ratio"] == pytest.approx(-math.log(10), abs=1e-4)
    assert not own.loc[("tanh", 1), "same"]
    half = table[table["format"] == "float16"].set_index(["activation", "log10_alpha"])
    assert not half.loc[("relu", 6), "same"]  # 10^6 is more than float16 holds


def test_n08_goes_with_the_functions(tidy: Tidy, rescaled: list[Rows]) -> None:
    def status(keep: Callable[[Case], bool], change: float | None = None) -> Status:
        rows = [
            replace(row, value=change) if change is not None and row.metric == "function_change" else row
            for row in rescaled
            if keep(row.case)
        ]
        return verdict(rescaling.analyse_rescaling(tidy(rows)), "N08").status

    assert status(lambda _: True) is Status.DEPENDS
    assert status(lambda case: case["activation"] == "linear" and case["format"] == "float32") is Status.HOLDS
    assert status(lambda case: case["activation"] == "tanh") is Status.FAILS
    assert status(lambda _: True, 0.0) is Status.HOLDS
    assert status(lambda _: True, math.inf) is Status.FAILS


# -- training: N03, the depth scale, the critical point ----------------------------------------------------------------

DEPTHS = (2, 4, 8, 16, 32)
SIGMAS = {"tanh": (0.5, 0.7, 0.85, 1.0, 1.3, 1.6, 2.0, 2.6), "relu": (0.7, 0.9, 1.1, 1.25, 2**0.5, 1.6, 1.8, 2.2)}


def training_rows(
    reach: Callable[[str, float], float],
    *,
    seeds: int = 6,
    jitter: float = 0.02,
    activations: Sequence[str] = ("tanh", "relu"),
) -> Iterator[Rows]:
    """Networks that train down to `reach(activation, sigma_w)` layers: there accuracy falls through 0.5."""
    for activation in activations:
        grid = Grid(
            {"depth": DEPTHS, "sigma_w": SIGMAS[activation]},
            fixed={"part": "training", "activation": activation, "width": 8, "steps": 10}, seeds=seeds,
        )  # fmt: skip
        for case in grid.cases():
            own = reach(activation, case.number("sigma_w")) * (1 + jitter * math.sin(7 * case.integer("seed") + 1))
            accuracy = 0.5 + 0.2 * math.log(own / case.integer("depth"))
            yield case.rows("train_accuracy", min(1.0, max(0.1, accuracy)))
            yield case.rows("train_loss", 1.0)
            yield case.rows("diverged", 0.0)


def scale_of(activation: str, sigma_w: float) -> float:
    """1/|ln chi_1| by the closed form of ReLU, and by the field's own definition elsewhere."""
    chi = sigma_w**2 / 2 if activation == "relu" else theory.mean_field(activation, sigma_w, 0.0).chi_1
    return 1e9 if abs(chi - 1) < 1e-9 else 1 / abs(math.log(chi))


def statuses(answer: Answer) -> dict[str, Status]:
    return {one.id.removeprefix("gradient_flow/"): one.status for one in answer.verdicts}


def test_reach_is_where_accuracy_falls_through_the_threshold(tidy: Tidy) -> None:
    rows = training_rows(lambda _, sigma_w: 5.0 if sigma_w < 1 else 100.0 if sigma_w < 1.5 else 1.0, jitter=0.0)
    reach = training.analyse_training(tidy(rows)).tables["reach"]
    inside = reach[reach["sigma_w"] < 1]
    assert np.allclose(inside["reach"], 5.0)  # accuracy is linear in log-depth between 4 and 8
    assert not inside["censored"].any()
    beyond, never = reach[reach["sigma_w"].between(1, 1.5)], reach[reach["sigma_w"] > 1.5]
    assert beyond["censored"].all()
    assert (beyond["reach"] == DEPTHS[-1]).all()
    assert never["censored"].all()
    assert (never["reach"] == DEPTHS[0]).all()


def test_training_as_theory_says(tidy: Tidy) -> None:
    rows = training_rows(lambda activation, sigma_w: max(2.5, 3 * scale_of(activation, sigma_w)))
    found = statuses(training.analyse_training(tidy(rows)))
    assert found == {"N03": Status.HOLDS, "depth_scale": Status.HOLDS, "critical": Status.HOLDS}


def test_training_that_knows_nothing_of_theory(tidy: Tidy) -> None:
    """Twice as deep at the chaotic end, with a reach that falls as the predicted depth scale grows."""
    rows = training_rows(lambda activation, sigma_w: min(28.0, 12 / math.sqrt(scale_of(activation, sigma_w)) + sigma_w))
    found = statuses(training.analyse_training(tidy(rows)))
    assert found["depth_scale"] is Status.FAILS
    assert found["critical"] in {Status.FAILS, Status.DEPENDS}


def test_what_the_depth_scale_depends_on_is_named(tidy: Tidy) -> None:
    """Reach 3 xi is proportional, slope 1; reach 12 xi^(-1/2) is not, slope -1/2."""

    def reach(activation: str, sigma_w: float) -> float:
        scale = scale_of(activation, sigma_w)
        return max(2.5, 3 * scale) if activation == "relu" else min(28.0, 12 / math.sqrt(scale) + sigma_w)

    found = verdict(training.analyse_training(tidy(training_rows(reach))), "gradient_flow/depth_scale")
    assert found.status is Status.DEPENDS
    yes, no = found.why.split(", not for ")
    assert "proportional within a factor of 1.5 for relu (" in yes
    assert no.startswith("tanh (")


def test_the_critical_point_may_be_elsewhere(tidy: Tidy) -> None:
    answer = training.analyse_training(tidy(training_rows(lambda _, sigma_w: 3 * sigma_w**2)))
    assert statuses(answer)["critical"] is Status.FAILS


@pytest.mark.parametrize(
    ("reach", "status"),
    [
        (lambda *_: 10.0, Status.HOLDS),
        (lambda *_: 1000.0, Status.FAILS),  # depth costs nothing
        (lambda _, sigma_w: 10.0 if sigma_w > 1 else 1.0, Status.DEPENDS),  # shallow ones fail too
    ],
    ids=["depth costs", "depth costs nothing", "shallow fails"],
)
def test_n03_goes_with_what_depth_costs(tidy: Tidy, reach: Callable[[str, float], float], status: Status) -> None:
    assert statuses(training.analyse_training(tidy(training_rows(reach))))["N03"] is status


def test_four_seeds_decide_nothing(tidy: Tidy) -> None:
    rows = training_rows(lambda activation, sigma_w: max(2.5, 3 * scale_of(activation, sigma_w)), seeds=4)
    assert set(statuses(training.analyse_training(tidy(rows))).values()) == {Status.INCONCLUSIVE}


def test_the_lines_of_the_map_are_the_predicted_depth_scale(tidy: Tidy) -> None:
    rows = training_rows(lambda *_: 5.0, activations=("relu",))
    scales = training.analyse_training(tidy(rows)).tables["depth_scales"]
    finite = scales[np.isfinite(scales["scale"])]
    np.testing.assert_allclose(finite["scale"], 1 / np.abs(np.log(finite["sigma_w"] ** 2 / 2)), rtol=1e-6)
    assert finite["scale"].max() > 100  # dense where it diverges


# -- the whole study ---------------------------------------------------------------------------------------------------

TINY: Mapping[str, Grid] = {
    "training": Grid(
        {"depth": (1, 3), "sigma_w": (1.0, 1.4)},
        fixed={
            "part": "training", "activation": "tanh", "width": 6, "steps": 3, "batch": 8, "lr": 0.1, "momentum": 0.9
        },
        seeds=2, together=("sigma_w", "seed"), chunk=training.most_replicas,
    ),
    "signal": Grid(
        {"activation": ("tanh", "relu"), "sigma_w": (1.0, 1.5), "sigma_b": (0.0, 0.2)},
        fixed={"part": "signal", "width": 12, "depth": 30, "init": "gaussian"},
        seeds=5, together=("activation", "sigma_w", "sigma_b", "seed"),
    ),
    "default": Grid(
        {"activation": ("sigmoid", "relu", "tanh")},
        fixed={"part": "signal", "width": 12, "depth": 30, "init": "torch"},
        seeds=5, together=("activation", "seed"),
    ),
    "walk": Grid(
        {"width": (12,)},
        fixed={
            "part": "walk", "depth": 30, "activation": "relu", "init": "gaussian", "sigma_w": 2**0.5, "sigma_b": 0.0
        },
        seeds=5,
    ),
    "overflow": Grid(
        {"init": ("default", "critical")},
        fixed={"part": "overflow", "activation": "tanh", "depth": 4, "width": 8, "batch": 4}, seeds=5,
    ),
    "rescaling": Grid(
        {"activation": ("relu", "tanh"), "format": ("float16", "float32"), "log10_alpha": (1,)},
        fixed={"part": "rescaling", "width": 8}, seeds=5, together=("activation", "format", "seed"),
    ),
    "architectures": Grid(
        {"model": ("mlp",), "norm": ("none", "batch"), "residual": (False, True)},
        fixed={"part": "architectures", "batch": 8}, seeds=5, architecture=("norm", "residual"),
    ),
    "products": Grid(
        {"n": (2,), "sigma_ratio": (0.7, 1.5)}, fixed={"part": "products", "factors": 30}, seeds=5,
        together=("sigma_ratio", "seed"),
    ),
    "scalars": Grid(
        {"factor": (1.5, 0.8), "format": products.FORMATS}, fixed={"part": "scalars", "factors": 100},
        together=("factor", "format"),
    ),
}  # fmt: skip


def run_grid(grid: Grid) -> list[Rows]:
    return [row for chunk in grid.chunks("gradient_flow") for row in gradient_flow.run(chunk.cases, HERE)]


@pytest.fixture(scope="module")
def tiny() -> dict[str, list[Rows]]:
    return {part: run_grid(grid) for part, grid in TINY.items()}


@pytest.mark.parametrize("part", TINY)
def test_running_twice_gives_the_same_rows(tiny: dict[str, list[Rows]], part: str) -> None:
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - the global state that a run must not look at
    again = values(run_grid(TINY[part]))
    first = values(tiny[part])
    assert list(again) == list(first)
    for key, value in first.items():
        np.testing.assert_array_equal(again[key], value)


@pytest.mark.parametrize("part", TINY)
def test_a_case_does_not_depend_on_its_neighbours(tiny: dict[str, list[Rows]], part: str) -> None:
    """Alone it is what it was among others, up to the order in which a batched product sums."""
    together = values(tiny[part])
    for case in list(TINY[part].cases())[::3]:
        alone = values(gradient_flow.run((case,), HERE))
        assert alone
        for key, value in alone.items():
            # Training is in float32, where a step multiplies a rounding's reach; all else is exact or in float64.
            tolerance = 1e-4 if part == "training" else 1e-9
            np.testing.assert_allclose(value, together[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("part", TINY)
def test_every_row_belongs_to_its_case_and_is_no_nan(tiny: dict[str, list[Rows]], part: str) -> None:
    """But where a ReLU network without biases has died (2^-12 a layer): a signal of zero has no angle and no ratio."""
    assert {row.case for row in tiny[part]} == set(TINY[part].cases())
    for row in tiny[part]:
        undefined = np.isnan(np.atleast_1d(row.value))
        if undefined.any():
            assert row.metric in {"correlation", "log_ratio_scaled"}
            assert (row.case["activation"], row.case["sigma_b"]) == ("relu", 0.0)
            assert undefined.tolist() == sorted(undefined.tolist()), "from some layer on"
        if row.layer_index is not None:
            assert np.size(row.layer_index) == np.size(row.value)
            assert np.min(row.layer_index) == 1
    pickle.dumps(tiny[part])


def everything(tidy: Tidy, tiny: dict[str, list[Rows]], failed: Mapping[Case, str] | None = None) -> pd.DataFrame:
    lost = set(failed or ())
    return tidy([row for rows in tiny.values() for row in rows if row.case not in lost], failed)


@pytest.fixture(scope="module")
def findings(tidy: Tidy, tiny: dict[str, list[Rows]]) -> Findings:
    return gradient_flow.analyse(everything(tidy, tiny))


def test_a_frame_of_these_tests_is_what_the_store_gives_back(
    tidy: Tidy, tiny: dict[str, list[Rows]], tmp_path: Path
) -> None:
    names = ("walk", "overflow", "scalars", "products")
    study = replace(gradient_flow.STUDY, presets={"quick": tuple(TINY[name] for name in names)})
    running.run(study, out=tmp_path, workers=0)
    stored = store.read(tmp_path).frame("gradient_flow")
    ours = tidy([row for name in names for row in tiny[name]])
    pd.testing.assert_frame_equal(ours, stored, check_dtype=False, check_column_type=False)
    assert gradient_flow.analyse(stored).verdicts == gradient_flow.analyse(ours).verdicts


def test_every_claim_gets_one_verdict_in_order(findings: Findings) -> None:
    claims = gradient_flow.STUDY.claims
    assert [(one.id, one.claim) for one in findings.verdicts] == [(claim.id, claim.text) for claim in claims]
    for one in findings.verdicts:
        assert one.why
        assert one.method
        if one.status not in {Status.INCONCLUSIVE, Status.NOT_APPLICABLE}:
            assert one.observed is not None
            assert one.n >= 1
    assert set(findings.shown) <= set(findings.tables)
    assert len(set(findings.answers)) == len(findings.answers) > 0


def test_analysis_is_a_pure_function_of_its_frame(tidy: Tidy, tiny: dict[str, list[Rows]], findings: Findings) -> None:
    frame = everything(tidy, tiny)
    before = frame.copy(deep=True)
    again = gradient_flow.analyse(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert repr(again.verdicts) == repr(findings.verdicts)  # by their spelling: NaN is not itself
    assert again.answers == findings.answers
    assert list(again.tables) == list(findings.tables)
    for name, table in findings.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)


def drawn(findings: Findings) -> list[str]:
    """Names of the figures; each is drawn to its file's bytes, warnings as errors."""
    names = []
    with style.drawing():
        for figure in gradient_flow.plot(findings):
            assert isinstance(figure.canvas, matplotlib.figure.Figure)
            assert style.png(figure.canvas).startswith(b"\x89PNG")
            assert figure.title
            assert figure.caption
            names.append(figure.name)
    return names


def test_every_figure_is_drawn(findings: Findings) -> None:
    names = drawn(findings)
    assert len(set(names)) == len(names) == sum(len(part.plots) for part in gradient_flow.PARTS.values())


@pytest.mark.parametrize("part", TINY)
def test_one_part_alone_is_analysed_and_drawn(tidy: Tidy, tiny: dict[str, list[Rows]], part: str) -> None:
    found = gradient_flow.analyse(tidy(tiny[part]))
    assert {one.status for one in found.verdicts} >= {Status.NOT_MEASURED}
    drawn(found)


def nothing() -> pd.DataFrame:
    """What the store gives where no chunk is finished: no rows, and no parameters."""
    columns = ("case", "layer", "layer_index", "direction", "step", "metric", "value", "status", "message")
    return pd.DataFrame({name: pd.Series(dtype="float64" if name == "value" else "object") for name in columns})


def test_of_nothing_nothing_is_said() -> None:
    found = gradient_flow.analyse(nothing())
    assert [one.status for one in found.verdicts] == [Status.NOT_MEASURED] * len(gradient_flow.CLAIMS)
    assert drawn(found) == []


@pytest.mark.parametrize("part", TINY)
def test_cases_that_failed_spoil_no_other(tidy: Tidy, tiny: dict[str, list[Rows]], part: str) -> None:
    """The first case of the part failed, then half of them, then all."""
    cases = tuple(TINY[part].cases())
    for gone in (cases[:1], cases[: len(cases) // 2], cases):
        kept = [row for row in tiny[part] if row.case not in gone]
        failed = dict(zip(gone, itertools.cycle(("error", "timeout", "lost")), strict=False))
        found = gradient_flow.analyse(tidy(kept, failed))
        assert len(found.verdicts) == len(gradient_flow.CLAIMS)
    assert {one.status for one in found.verdicts} == {Status.NOT_MEASURED}


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("init", ["gaussian", "torch"])
def test_no_activation_is_needed_for_the_others(tidy: Tidy, activation: str, init: str) -> None:
    """All cases but those of one activation failed, or a study of one's own asks for one alone."""
    rows = signal_rows(activation, 1.2 if init == "gaussian" else None)
    found = gradient_flow.analyse(tidy(rows))
    assert len(found.verdicts) == len(gradient_flow.CLAIMS)
    drawn(found)


@pytest.mark.parametrize("value", [0.0, math.inf, math.nan])
def test_signals_that_left_float64_are_results(tidy: Tidy, value: float) -> None:
    """One seed of one configuration ends in zero, infinity or NaN: a verdict on the others, and no error."""
    rows = [
        replace(row, value=np.where(LAYERS < 10, value, row.value))
        if (row.case["activation"], row.case["seed"], row.direction) == ("sigmoid", 0, "backward")
        else row
        for row in base()
    ]
    answer = signal.analyse_signal(tidy(rows))
    assert verdict(answer, "N05").status is Status.INCONCLUSIVE
    assert verdict(answer, "N04").status is not Status.INCONCLUSIVE


def test_accuracies_of_networks_that_diverged_count(tidy: Tidy) -> None:
    """Accuracy of a network full of NaN is chance; its loss is NaN; the denominator stays."""
    rows = [
        replace(row, value={"train_accuracy": 0.1, "train_loss": math.nan, "diverged": 1.0}[row.metric])
        if row.case["sigma_w"] == max(SIGMAS["relu"])
        else row
        for row in training_rows(lambda *_: 5.0, activations=("relu",))
    ]
    cells = training.analyse_training(tidy(rows)).tables["training"]
    own = cells[cells["sigma_w"] == max(SIGMAS["relu"])]
    assert (own["n"] == 6).all()
    assert (own["diverged"] == 6).all()
    assert (own["trained"] == 0).all()


def test_views_by_case_keep_what_is_not_finite(tidy: Tidy) -> None:
    case = Case.of({"seed": 0})
    frame = tidy([case.rows("x", [1.0, math.inf, math.nan], layer_index=[3, 1, 2])])
    view = by_case(frame, "x")
    assert view.columns.tolist() == [3, 1, 2]
    np.testing.assert_array_equal(view.to_numpy(), [[1.0, math.inf, math.nan]])
