"""Dropout as a penalty: against brute force over masks and differences, and verdicts on what was measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from depthgauge import theory
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization import adaptive_l2, penalty
from depthgauge.study import Case, Context
from depthgauge.verdict import Status


def test_the_minimum_over_all_masks_is_the_ridge_solution() -> None:
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    found = adaptive_l2.over_all_masks(x, y, 0.3)
    assert found.tolist() == pytest.approx(theory.dropout_ridge(x, y, 0.3).tolist(), rel=1e-10)
    assert theory.dropout_ridge(x, y, 0.0).tolist() == pytest.approx(
        torch.linalg.lstsq(x, y[:, None])[0][:, 0].tolist()
    )
    with pytest.raises(ValueError, match="below 1"):
        theory.dropout_ridge(x, y, 1.0)


def _network() -> penalty.Network:
    x, y = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 4, 9])
    return penalty.Network.draw(x, y, layers=[4, 3], curve=torch.tanh, seed=1)


def test_the_curvature_is_that_of_differences() -> None:
    network, step = _network(), 1e-3
    total = torch.zeros((), dtype=torch.float64)
    ones = [torch.ones(3, 4, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)]
    for layer, example in itertools.product(range(2), range(3)):
        for unit in range(ones[layer].shape[1]):
            moved = []
            for sign in (1, 0, -1):
                noise = [each.clone() for each in ones]
                noise[layer][example, unit] += sign * step
                moved.append(network.loss(noise))
            total = total + (moved[0] - 2 * moved[1] + moved[2]) / step**2
    wanted = torch.cat([each.flatten() for each in torch.autograd.grad(total, network.weights)])
    plain, curvature = network.gradients()
    assert torch.allclose(curvature, wanted, rtol=1e-4, atol=1e-5)
    exact = torch.autograd.grad(network.loss(ones), network.weights)
    assert torch.allclose(plain, torch.cat([each.flatten() for each in exact]))


def test_the_mean_over_drawn_masks_is_that_over_all() -> None:
    network = _network()
    total = torch.zeros((), dtype=torch.float64)
    for mask in itertools.product((0.0, 1.0), repeat=7):
        kept = torch.tensor(mask, dtype=torch.float64)
        noise = [kept[None, :4] / 0.7, kept[None, 4:] / 0.7]
        total = total + 0.7 ** sum(mask) * 0.3 ** (7 - sum(mask)) * network.loss(noise)
    exact = torch.cat([each.flatten() for each in torch.autograd.grad(total, network.weights)])
    drawn = network.noisy(0.3, 4000, generator(1, Purpose.DROPOUT))
    assert float((drawn - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize(("left", "status"), [(0.0, Status.HOLDS), (0.5, Status.FAILS)])
def test_verdicts_say_what_was_measured(analysed, left: float, status: Status) -> None:  # type: ignore[no-untyped-def]  # a fixture
    shared = {"part": "adaptive_l2", "p": 0.5}
    linear = [Case.of({**shared, "depth": 0, "steps": 2000, "seed": seed}) for seed in range(12)]
    at = {"activation": "relu", "state": "drawn", "depth": 1, "width": 4, "masks": 8}
    deep = [Case.of({**shared, **at, "seed": seed}) for seed in range(6)]
    made = [case.rows("left", left + 1e-4 * i) for i, case in enumerate(deep)]
    made += [case.rows("length", 1.0) for case in deep]
    answers = analysed(adaptive_l2.PART, [*adaptive_l2.run(linear, Context()), *made])
    assert answers.statuses == {"adaptive_l2": Status.HOLDS, "adaptive_l2_deep": status}


def test_a_network_to_which_dropout_adds_nothing_does_not_carry_the_mean(analysed) -> None:  # type: ignore[no-untyped-def]  # a fixture
    left, length = np.array([0.1, 0.1, 0.1, 0.1, 100.0]), np.array([1.0, 1.0, 1.0, 1.0, 1e-4])
    assert penalty.missed(left, length).mean() == pytest.approx(0.1 * 4.1 / 4, rel=0.05)  # the mean of left is 20
    assert penalty.missed(np.full(3, 0.5), length[:3]).tolist() == pytest.approx([0.5] * 3)
    at = {"part": "adaptive_l2", "p": 0.5, "activation": "relu", "state": "drawn", "depth": 1, "width": 4, "masks": 8}
    cases = [Case.of({**at, "seed": seed}) for seed in range(6)]
    made = [case.rows("left", 3.0 + 1e-3 * i) for i, case in enumerate(cases)]
    answers = analysed(adaptive_l2.PART, [*made, *(case.rows("length", 0.1) for case in cases)])
    assert "is 3.00 to 3.00 in relu networks" in answers.sentences[0]
    assert "in 1 of 1 settings, the penalty is further off than none" in answers.sentences[0]


def test_what_the_penalty_misses_is_measured() -> None:
    at = {"activation": "tanh", "state": "trained", "depth": 1, "width": 4, "masks": 8, "p": 0.1, "seed": 0}
    rows = list(adaptive_l2.run([Case.of({"part": "adaptive_l2", **at})], Context()))
    assert [row.metric for row in rows] == ["left", "length"]
