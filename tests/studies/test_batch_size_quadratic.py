"""SGD on quadratics: the simulations against closed forms, the search against all steps, and what verdicts follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from depthgauge import theory
from depthgauge.studies.batch_size import quadratic
from depthgauge.studies.batch_size.descents import additive as additive_noise
from depthgauge.studies.batch_size.descents import growth, largest_stable, regression
from depthgauge.studies.batch_size.quadratic_runs import OPTIMIZERS, best, limit_of, risk_of
from depthgauge.studies.batch_size.tuned_quadratic import DECAYS, Quadratic, arrival, rates, tuned
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

ONE = np.array([1.0])
SMALL = Quadratic(dimensions=4, noise=0.1, target=0.05)


def draws(n: int = 8) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(n)]


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.7])
def test_growth_of_the_mean_square_and_of_a_typical_run_in_one_dimension(rate: float) -> None:
    """theta' = (1 - a x^2) theta: E(1 - a x^2)^2 = 1 - 2 a + 3 a^2, and E ln|1 - a x^2|^2 by quadrature."""
    found = growth(ONE, regression(ONE, 0.0, 1), draws(), rate, momentum=0.0, walkers=500, steps=200)
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert found.mean() == pytest.approx(
        math.log(1 - 2 * rate + 3 * rate**2), abs=5 * error + 0.003
    )  # ln has a bias 1/n
    x = np.linspace(-12, 12, 2_000_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    exact = float((np.log(np.maximum((1 - rate * x**2) ** 2, 1e-300)) * density).sum())
    typical = growth(ONE, regression(ONE, 0.0, 1), draws(), rate, momentum=0.0, walkers=500, steps=200, typical=True)
    assert typical.mean() == pytest.approx(exact, abs=5 * typical.std(ddof=1) / math.sqrt(len(typical)) + 1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_first_rate_that_diverges_is_found(momentum: float) -> None:
    h, tried = np.array([1.0, 0.3]), np.arange(0.8, 1.2, 0.01)
    limit = theory.stable_learning_rate(h, momentum=momentum)
    gradient = additive_noise(h, 1.0, 4, shared=True)
    found = largest_stable(h, gradient, draws(4), limit * tried, momentum=momentum, steps=2000)
    np.testing.assert_allclose(found, limit, rtol=0.011)


@pytest.mark.parametrize("decay", [("momentum", 0.0), ("momentum", 0.9), ("averaging", 0.8)])
def test_arrival_is_the_first_step_at_the_goal(decay: tuple[str, float]) -> None:
    every = SMALL.loss(0.2, 8, np.arange(400), **dict([decay]))
    first = int(np.argmax(every <= SMALL.goal))
    assert arrival(SMALL, 0.2, 8, 399, decay) == first > 0
    assert arrival(SMALL, 0.2, 8, first - 1, decay) is None


@pytest.mark.parametrize("optimizer", DECAYS)
def test_tuning_leaves_no_better_rate_of_its_grid(optimizer: str) -> None:
    chosen = tuned(SMALL, optimizer, 4, 3000)
    assert chosen is not None
    found = [arrival(SMALL, rate, 4, 3000, decay) for decay in DECAYS[optimizer] for rate in rates(SMALL, decay)]
    assert chosen.steps == min(steps for steps in found if steps is not None)
    assert tuned(SMALL, optimizer, 4, chosen.steps - 1) is None


# -- verdicts ----------------------------------------------------------------------------------------------------------


def measured_risks(factor: float) -> Iterator[Rows]:
    for optimizer in ("SGD", "momentum"):
        for seed in range(12):
            params = {"problem": "linear regression", "optimizer": optimizer, "batch": 2, "dimensions": 3}
            case, noise = Case.of({**params, "seed": seed}), 1 + 1e-3 * math.sin(seed)
            for step in (1, 9):
                risk = float(risk_of("linear regression", optimizer, 2, 3, np.array(step)))
                yield case.rows("risk", risk * noise * (factor if optimizer == "momentum" else 1), step=step)


@pytest.mark.parametrize(("factor", "status"), [(1.0, Status.HOLDS), (1.2, Status.DEPENDS)])
def test_a_risk_off_the_closed_form_is_seen(analysed: Callable[..., Any], factor: float, status: Status) -> None:
    assert analysed(quadratic.PART, measured_risks(factor)).statuses["quadratic_risk"] is status


def measured_limits(factor: float, typical: float) -> Iterator[Rows]:
    for momentum in (0.0, 0.9):
        for seed in range(12):
            params = {"noise": "growing", "momentum": momentum, "batch": 1, "dimensions": 3, "seed": seed}
            case, noise = Case.of(params), 1e-3 * math.sin(seed)
            yield case.rows("limit", factor * (1 + noise))
            yield case.rows("typical", typical + noise)


ABOVE = 4 / limit_of("growing", 0.0, 1, 3)  # far beyond the limit of independent noise, without momentum


@pytest.mark.parametrize(
    ("factor", "typical", "statuses"),
    [
        (1.0, -0.1, ("holds", "holds", "holds")),
        (1.2, 0.1, ("fails", "holds", "fails")),
        (ABOVE, -0.1, ("fails", "depends", "holds")),
    ],
)
def test_verdicts_on_stability(
    analysed: Callable[..., Any], factor: float, typical: float, statuses: tuple[str, ...]
) -> None:
    said = analysed(quadratic.PART, measured_limits(factor, typical)).statuses
    assert tuple(map(str, (said["stable_rate"], said["noise_lowers_the_limit"], said["typical_run"]))) == statuses


def measured_steps(at_one: dict[str, float], at_many: dict[str, float]) -> Iterator[Rows]:
    for batch, factors in ((1, at_one), (4096, at_many)):
        for optimizer in OPTIMIZERS:
            for seed in range(12):
                case = Case.of({"tuned": optimizer, "batch": batch, "seed": seed})
                yield case.rows("steps", 1000 * factors.get(optimizer, 1.0) * (1 + 1e-3 * math.sin(seed + batch)))


@pytest.mark.parametrize(
    ("at_one", "at_many", "small", "critical"),
    [
        ({}, {"momentum": 0.2}, Status.HOLDS, Status.HOLDS),
        ({"momentum": 0.5}, {"momentum": 0.5}, Status.FAILS, Status.FAILS),
        ({"momentum": 1.3}, {}, Status.FAILS, Status.FAILS),
        ({}, {}, Status.HOLDS, Status.FAILS),
    ],
)
def test_verdicts_on_momentum(
    analysed: Callable[..., Any], at_one: dict[str, float], at_many: dict[str, float], small: Status, critical: Status
) -> None:
    answers = analysed(quadratic.PART, measured_steps(at_one, at_many))
    said = answers.statuses
    assert (said["momentum_small_batch"], said["momentum_critical_batch"]) == (small, critical)
    assert (said["averaging_small_batch"], said["averaging_critical_batch"]) == (Status.HOLDS, Status.FAILS)
    assert said["quadratic_steps"] in {Status.FAILS, Status.DEPENDS}  # 1,000 steps are not those of theory
    table = answers.tables["scaling"]
    assert table["predicted"].tolist() == [
        best(*key).steps for key in zip(table["optimizer"], table["batch"], strict=True)
    ]
