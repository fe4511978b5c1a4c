"""Parametrizations by multipliers against rates by layer, and the best rate of a curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from depthgauge import replicas
from depthgauge.studies.learning_rate import parametrization, width
from depthgauge.studies.learning_rate.parametrization import LAYERS, Net
from depthgauge.verdict import Status

METHODS = {
    "SGD": (replicas.SGD([0.1]), torch.optim.SGD),
    "Adam": (replicas.Adam([0.01], eps=1e-12), lambda groups: torch.optim.Adam(groups, eps=1e-12)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["standard", "mu"])
def test_multipliers_under_one_rate_train_as_rates_by_layer(method: parametrization.Method, name: str) -> None:
    net = Net(6, 16, 3, 4, name, method)  # type: ignore[arg-type]  # one of the two
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator).double(), torch.randint(3, (40,), generator=generator)
    stack = replicas.stack(net.template().double(), [5], net.draw)
    optimizer, make = METHODS[method]
    run = replicas.train(stack, x, y, optimizer, batch=8, steps=6, loss=net.loss)

    plain = [m * weight[0] for m, weight in zip(net.multipliers, stack.parameters.values(), strict=True)]
    weights = [weight.clone().requires_grad_() for weight in plain]
    rate = float(optimizer.lr[0])  # type: ignore[index]  # a list of one
    by_layer = make([{"params": [w], "lr": rate * f} for w, f in zip(weights, net.rates, strict=True)])
    for indices in replicas.order(5, len(x), 8, 6):
        h = x[indices]
        for weight in weights[:-1]:
            h = functional.relu(h @ weight.T)
        loss = functional.cross_entropy(h @ weights[-1].T, y[indices])
        by_layer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        by_layer.step()
    for m, trained, wanted in zip(net.multipliers, run.stack.parameters.values(), weights, strict=True):
        assert torch.linalg.norm(m * trained[0] - wanted) <= 1e-7 * torch.linalg.norm(wanted)
    module = net.module().double()
    module.load_state_dict({f"{layer}.weight": value[0] for layer, value in zip(
        LAYERS, run.stack.parameters.values(), strict=True)})  # fmt: skip
    assert functional.cross_entropy(module(x), y).item() == pytest.approx(
        float(replicas.evaluate(run.stack, x, y, loss=net.loss).loss[0])
    )


def test_both_parametrizations_are_one_at_the_base_width() -> None:
    for method in METHODS:
        standard, mu = (Net(6, 8, 3, 8, name, method) for name in ("standard", "mu"))  # type: ignore[arg-type]  # as above
        assert (standard.rates, standard.multipliers) == (mu.rates, mu.multipliers)
        assert standard.deviations == pytest.approx(mu.deviations)


def test_the_best_rate_is_the_vertex_of_a_parabola() -> None:
    rates = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
    scores = -((np.log(rates) - math.log(0.07)) ** 2)
    assert width.best(rates, scores) == pytest.approx(math.log(0.07))
    assert width.best(rates, rates) == 0.0  # an end


def test_no_score_is_had_outside_of_the_rates_tried() -> None:
    at, scores = np.array([0.0, 1.0]), np.array([2.0, 4.0])
    assert width.between(0.5, at, scores) == 3.0
    assert math.isnan(width.between(1.5, at, scores))
    assert math.isnan(width.between(-0.5, at, scores))


@pytest.mark.parametrize(("peak", "status"), [(0.35, Status.HOLDS), (10.0, Status.INCONCLUSIVE)])
def test_a_best_rate_at_the_edge_of_its_grid_moves_nowhere_that_is_known(
    analysed: Callable[..., Any], peak: float, status: Status
) -> None:
    """Every width has the same best rate, inside the rates tried or beyond them."""
    cases = [case for grid in width.PART.at("tiny") for case in grid.cases() if case.get("lr")]
    scores = (-(math.log(case.number("lr") / peak) ** 2) / 10 + 1e-3 * math.sin(case.random_seed()) for case in cases)
    found = analysed(width.PART, [case.rows("score", score) for case, score in zip(cases, scores, strict=True)])
    assert found.statuses["width_transfer"] is status
