"""Steps to a target, against closed forms and against trainings of one replica."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import arrival, data, replicas
from depthgauge.seeding import Purpose, generator

RATES = (0.05, 0.5, 1.5, 0.001)


def quadratic() -> tuple[nn.Module, data.Examples]:
    """One weight, of loss (w - 3)^2 on inputs 1: each step of gradient descent multiplies the distance by 1 - 2 lr."""
    return nn.Linear(1, 1, bias=False), data.Examples(torch.ones(4, 1), torch.full((4, 1), 3.0))


def zero(module: Any, _generator: torch.Generator) -> None:
    module.weight.zero_()


def found(rates: tuple[float, ...], **settings: Any) -> arrival.Arrival:
    model, examples = quadratic()
    stack = replicas.stack(model, range(len(rates)), zero)
    given: dict[str, Any] = {"target": 0.09, "batch": 4, "steps": 200, "loss": "mse"} | settings
    return arrival.steps_to(stack, examples, replicas.SGD(rates), **given)


def test_gradient_descent_on_a_quadratic_arrives_when_the_closed_form_does() -> None:
    here = found(RATES, at=range(201))
    assert here.reached.tolist() == [True, True, False, False]
    assert here.diverged.tolist() == [False, False, True, False]
    # |1 - 2 lr|^n = 0.1: between the whole numbers on either side
    exact = np.log(0.1) / np.log(1 - 2 * RATES[0])
    assert np.floor(exact) <= here.steps[0] <= np.ceil(exact)
    assert 0 < here.steps[1] <= 1
    assert here.steps[3] == 200


def test_sparse_checkpoints_agree_with_all_of_them_to_a_fraction_of_their_ratio() -> None:
    rates = (0.05, 0.02, 0.01)
    every, few = found(rates, at=range(201)), found(rates)
    assert len(few.checkpoints) < 50
    np.testing.assert_allclose(few.steps, every.steps, rtol=arrival.RATIO - 1)


@pytest.mark.parametrize("measured", ["loss", "accuracy"])
def test_an_arrival_does_not_depend_on_the_other_replicas(measured: Any) -> None:
    x = torch.randn(60, 5, generator=generator(1, Purpose.INPUTS))
    examples = data.Examples(x, (x.sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    settings: dict[str, Any] = {"measured": measured, "batch": 4, "steps": 60}
    settings["target"] = 0.4 if measured == "loss" else 0.9
    rates = (0.3, 0.01, 0.1, float("nan"))
    together = arrival.steps_to(replicas.stack(model, range(4)), examples, replicas.SGD(rates), **settings)
    assert together.reached.tolist() == [True, False, True, False]
    assert together.diverged.tolist() == [False, False, False, True]
    for i, rate in enumerate(rates):
        alone = arrival.steps_to(replicas.stack(model, [i]), examples, replicas.SGD([rate]), **settings)
        assert alone.steps[0] == pytest.approx(together.steps[i], rel=1e-4)
        np.testing.assert_allclose(alone.curve[:, 0], together.curve[:, i], rtol=1e-4)


def test_a_target_that_is_met_before_the_first_step_takes_none() -> None:
    here = found((0.1,), target=9.5)
    assert here.reached.all()
    assert here.steps[0] == 0


def test_crossings_are_on_straight_lines_over_logarithms() -> None:
    places = np.array([0, 3, 8])
    curve = np.array([[4.0, 1.0], [2.0, np.nan], [0.0, 5.0]])
    steps, reached = arrival.first_crossing(places, curve, 1.0)
    assert reached.tolist() == [True, True]
    assert steps[0] == pytest.approx(5.0)  # half way between ln 4 and ln 9: 6 - 1
    assert steps[1] == 0


def test_checkpoints_begin_with_every_step_and_end_with_the_last() -> None:
    places = arrival.checkpoints(1000)
    assert places[:6] == (0, 1, 2, 3, 4, 5)
    assert places[-1] == 1000
    assert len(places) < 70
    with pytest.raises(ValueError, match="ratio above 1"):
        arrival.checkpoints(10, 1.0)


def test_a_run_that_did_not_arrive_is_later_than_all_that_did() -> None:
    steps = np.array([10.0, 20.0, 40.0, 80.0, 100.0])
    there = np.array([True, True, True, True, False])
    assert arrival.usual(steps, np.ones(5, dtype=bool)).value == pytest.approx(np.exp(np.log(steps).mean()))
    assert arrival.usual(steps, there).value == 40.0
    assert arrival.usual(steps, there).high == np.inf
    assert arrival.usual(steps, ~there).value == np.inf
