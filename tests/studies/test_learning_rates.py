"""The study of learning rates: finders on known curves, laws of optimizers, and answers to made rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge.studies.learning_rate import compared, quadratics, range_test
from depthgauge.studies.learning_rate.compared import NAMED
from depthgauge.studies.learning_rate.finders import FINDERS, running, steepest_by_rate, steepest_by_step, tenth, valley
from depthgauge.studies.learning_rate.regimes import (
    DIVERGENT,
    MONOTONE,
    OSCILLATING,
    law,
    limit,
    measured,
    trajectories,
)
from depthgauge.studies.learning_rate.suggested import OURS
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

Analysed = Callable[..., Any]
RATES = np.geomspace(1e-7, 10.0, 100)


# -- finders -----------------------------------------------------------------------------------------------------------


def curve(fall: int = 60, bottom: int = 80) -> np.ndarray[Any, Any]:
    """Losses whose running mean is 2 up to step `fall`, falls evenly by step to 1 at `bottom`, and rises by little."""
    means = np.interp(np.arange(100), [0, fall, bottom, 100], [1.999, 2.0, 1.0, 1.001])
    weights = 1 - 0.98 ** np.arange(1, 101)
    sums = means * weights
    losses: np.ndarray[Any, Any] = (sums - 0.98 * np.concatenate([[0.0], sums[:-1]])) / 0.02
    return losses


def test_the_running_mean_is_that_of_all_losses_so_far() -> None:
    rates, means = running(RATES, curve(), 10, 5)
    np.testing.assert_array_equal(rates, RATES[10:95])
    np.testing.assert_allclose(means, np.interp(np.arange(10, 95), [60, 80], [2.0, 1.0]), atol=1.1e-3)


def test_a_sweep_stops_where_the_mean_is_four_times_its_least() -> None:
    losses = np.ones(100)
    losses[50:] = 1e3
    _, means = running(RATES, losses, 0, 0)
    assert len(means) < 60
    assert means[-1] > 4.0 >= means[-2]


def test_steepest_by_step_is_on_the_slope_and_by_rate_at_its_foot() -> None:
    """Over the rate itself a step counts for less the larger the rate is: the suggestion is the smallest that falls."""
    assert RATES[60] <= steepest_by_step(RATES, curve()) <= RATES[80]
    assert RATES[59] <= steepest_by_rate(RATES, curve()) <= RATES[61]


def test_steepest_by_rate_follows_the_noise_of_small_rates() -> None:
    noisy = curve() + np.random.default_rng(0).uniform(-0.1, 0.1, 100)
    assert steepest_by_rate(RATES, noisy) < RATES[15]


def test_valley_and_tenth_follow_their_formulas() -> None:
    """The longest falling subsequence is the slope, 21 points to step 80: a third and a sixth of these on."""
    place = 10 + int(np.flatnonzero(RATES[10:95] == valley(RATES, curve()))[0])
    assert place == 80 - 21 + 7 + 3
    assert 10 * tenth(RATES, curve()) == pytest.approx(RATES[80], rel=1e-9)


@pytest.mark.parametrize("name", FINDERS)
def test_a_finder_without_losses_suggests_nothing(name: str) -> None:
    assert math.isnan(FINDERS[name].suggest(RATES, np.full(100, np.nan)))


# -- optimizers on quadratics ------------------------------------------------------------------------------------------

KINDS = ("gradient descent", "heavy ball", "Nesterov", "frozen Adam")


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("gradient descent", 0.0), *itertools.product(KINDS[1:], (0.5, 0.9))]
)
def test_a_trajectory_obeys_its_recurrence(optimizer: str, momentum: float) -> None:
    """Every step of torch's optimizer from the third on, to rounding."""
    products = np.array([0.01, 0.3, 0.7, 0.9, 1.1]) * limit(optimizer, momentum)
    path = trajectories(optimizer, momentum, products, 30)
    for product, own in zip(products, path.T, strict=True):
        its = law(optimizer, momentum, float(product))
        size = np.maximum.reduce([np.abs(own[2:]), np.abs(own[1:-1]), np.abs(own[:-2])])
        assert (
            np.abs(own[2:] - its.trace * own[1:-1] + its.determinant * own[:-2]) < 1e-12 * (1 + product) * size
        ).all()


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("gradient descent", 0.0), *itertools.product(KINDS[1:], (0.5, 0.9))]
)
def test_the_limit_is_where_a_root_is_minus_one(optimizer: str, momentum: float) -> None:
    at = limit(optimizer, momentum)
    assert np.abs(law(optimizer, momentum, at).roots + 1).min() < 1e-12
    assert law(optimizer, momentum, 0.999 * at).regime == OSCILLATING
    assert law(optimizer, momentum, 1.001 * at).regime == DIVERGENT


def test_gradient_descent_changes_its_regime_at_one_and_two() -> None:
    assert [law("gradient descent", 0.0, x).regime for x in (0.5, 0.99, 1.01, 1.99, 2.01)] == [
        MONOTONE, MONOTONE, OSCILLATING, OSCILLATING, DIVERGENT,
    ]  # fmt: skip


def test_heavy_ball_is_monotone_up_to_its_critical_damping() -> None:
    critical = (1 - math.sqrt(0.9)) ** 2
    assert law("heavy ball", 0.9, 0.999 * critical).regime == MONOTONE
    assert law("heavy ball", 0.9, 1.001 * critical).regime == OSCILLATING
    assert law("heavy ball", 0.9, 0.5).rate == pytest.approx(math.log(0.9) / 2)  # complex roots: |z| is sqrt(m)


@pytest.mark.parametrize(
    ("factor", "regime"), [(0.9, MONOTONE), (-0.9, OSCILLATING), (-1.1, DIVERGENT), (1.1, DIVERGENT)]
)
def test_a_geometric_trajectory_is_measured_exactly(factor: float, regime: str) -> None:
    told, slope = measured(1e-50 * factor ** np.arange(200))
    assert told == regime
    assert slope == pytest.approx(math.log(abs(factor)), abs=1e-9)


# -- answers -----------------------------------------------------------------------------------------------------------


def asked(kind: str, seed: int, noise: float, **more: Any) -> Case:
    fixed = {"net": "ReLU 2", "optimizer": "SGD", "batch": 32, "steps": 9, "part": "range_test"}
    return Case.of({**fixed, "asked": kind, "seed": seed, "noise": noise, **more})


def made(
    ours: float, others: float, *, low: float = 0.05, high: float = 2.0, conditions: int = 2, seeds: int = 24,
    undecided: int = 0,
) -> Iterator[Rows]:  # fmt: skip
    """Rows of a training whose loss is 1 at the tuned rate of 0.1, and `ours` and `others` where finders suggest."""
    draws = np.random.default_rng(0)
    for noise, seed in itertools.product(np.linspace(0, 0.3, conditions).tolist(), range(-3, seeds)):
        jitter = 0.01 * draws.standard_normal()
        for rate in (0.01, 0.1, 1.0):
            yield asked("rate", seed, noise, lr=rate).rows("score", -abs(math.log10(rate / 0.1)) - jitter)
        if seed < 0:
            continue
        case = asked("suggestion", seed, noise)
        for name in (*FINDERS, OURS):
            end = math.log(ours if name == OURS else others) + jitter + 0.01 * draws.standard_normal()
            missing = name == OURS and noise == 0 and seed < undecided
            yield case.rows("rate", math.nan if missing else 0.3, layer=name)
            yield case.rows("end", math.nan if missing else end, layer=name)
        for metric, value in (("low", low), ("high", high), ("undecided", 0.0)):
            yield case.rows(metric, value, layer=OURS)
        yield case.rows("repetition", [0.29, 0.3, 0.31, 0.3, 0.3], layer=OURS, step=range(5))


def test_a_regret_beyond_the_margin_is_told(analysed: Analysed) -> None:
    found = analysed(range_test.PART, made(1.02, 3.0))
    assert found.statuses["finders"] is Status.FAILS
    assert found.statuses["repeated"] is Status.HOLDS
    assert found.statuses["own_start"] is Status.HOLDS
    regret = found.tables["regret"].set_index("finder")["value"]
    assert regret[NAMED["valley"]].to_numpy() == pytest.approx(3.0, rel=0.02)
    assert regret[NAMED[OURS]].to_numpy() == pytest.approx(1.02, rel=0.02)
    coverage = found.tables["coverage"].set_index("interval")["value"]
    assert coverage["of the repetitions alone"] == 0.0  # 0.3 within 4 %, where 0.1 is tuned


def test_a_finder_in_use_that_does_better_is_told_too(analysed: Analysed) -> None:
    found = analysed(range_test.PART, made(3.0, 1.0, low=0.25, high=0.35))
    assert found.statuses["finders"] is Status.HOLDS
    assert found.statuses["repeated"] is Status.FAILS
    assert found.statuses["own_start"] is Status.FAILS


@pytest.mark.parametrize(
    ("conditions", "low", "status"),
    [(30, 0.05, Status.HOLDS), (30, 0.25, Status.FAILS), (18, 0.05, Status.INCONCLUSIVE)],
)
def test_an_interval_is_asked_of_conditions_however_many_trainings_they_have(
    analysed: Analysed, conditions: int, low: float, status: Status
) -> None:
    """All trainings of one condition are held against its one tuned rate: (0.05 / 3)^(1 / 18) is below 0.85."""
    found = analysed(range_test.PART, made(1.02, 3.0, low=low, high=2.0, conditions=conditions, seeds=8, undecided=2))
    assert found.statuses["interval"] is status
    row = found.tables["coverage"].set_index("interval").loc["of the answer"]
    assert (row["n"], row["trainings"], row["held"]) == (
        conditions,
        8 * conditions - 2,
        row["value"] * row["trainings"],
    )


def test_trainings_without_a_suggestion_are_told(analysed: Analysed) -> None:
    found = analysed(range_test.PART, made(1.02, 3.0, seeds=8, undecided=7))
    assert any("in the 9 of 16 trainings in which it suggests one." in text for text in found.sentences)
    assert compared.spanned(found.tables["regret"]["n"]) == "1 to 8"
    assert not any("suggests one" in text for text in analysed(range_test.PART, made(1.02, 3.0, seeds=8)).sentences)


def test_another_law_of_an_optimizer_would_be_refuted(analysed: Analysed) -> None:
    case = next(iter(quadratics.PART.at("tiny")[0].cases()))
    wrong = [case.rows("rate", -0.1), case.rows("predicted_rate", -0.2), case.rows("regime", 1.0),
             case.rows("predicted_regime", 0.0)]  # fmt: skip
    found = analysed(quadratics.PART, wrong)
    assert found.statuses["regimes"] is Status.FAILS
    assert found.statuses["speed"] is Status.FAILS


@pytest.mark.parametrize(("below", "above", "status"), [(0.0, 0.5, Status.HOLDS), (0.3, 0.5, Status.DEPENDS)])
def test_rises_below_two_refute_the_rule(analysed: Analysed, below: float, above: float, status: Status) -> None:
    """Made rows of networks whose loss rises in these shares of the steps, each side of 2."""
    found = analysed(quadratics.PART, nets(below, above))
    assert found.statuses["rises"] is status
    assert found.statuses["N22"] is Status.HOLDS


def nets(below: float, above: float) -> Iterator[Rows]:
    shared = {"width": 4, "examples": 9, "steps": 10, "part": "quadratics"}
    draws = np.random.default_rng(0)
    for product, seed in itertools.product((0.001, 1.5, 3.0), range(6)):
        case = Case.of({**shared, "product": product, "seed": seed})
        share = above if product > 2 else below
        yield case.rows("reached", np.full(3, product), step=np.array([0, 5, 10]))
        yield case.rows("rises", share + 0.01 * share * draws.standard_normal(2), step=np.array([0, 5]))
        yield case.rows("fall", product * (1 + 0.01 * draws.standard_normal()))


def test_a_network_begins_at_the_product_asked_for() -> None:
    cases = [case for grid in quadratics.PART.at("tiny")[-1:] for case in grid.cases()][:3]
    torch.manual_seed(0)
    rows = {(row.case.id, row.metric): row.value for row in quadratics.PART.run(cases, Context())}
    for case in cases:
        assert rows[case.id, "reached"][0] == pytest.approx(case.number("product"), rel=1e-6)


def test_a_best_rate_at_the_edge_extends_its_grid(tidy: Analysed) -> None:
    rates = (0.1, 0.3, 1.0)
    rows = [
        asked("rate", seed, noise, lr=rate).rows("score", rate if noise else -abs(rate - 0.3))
        for noise, seed, rate in itertools.product((0.0, 0.3), range(-3, 5), rates)
    ]
    cases = [case for grid in range_test.PART.after("tiny", tidy(rows)) for case in grid.cases()]
    assert {(case.number("noise"), case.number("lr"), case.text("asked")) for case in cases} == {(0.3, 3.0, "rate")}
    assert {case.integer("seed") for case in cases} == set(range(-3, 5))
    assert not {case.id for case in cases} & {row.case.id for row in rows}
