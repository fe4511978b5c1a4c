"""Two trainings that differ by one unit in the last place of one weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import precision
from depthgauge.precision.divergence import Divergence


def test_the_exponent_of_exponential_growth() -> None:
    steps, rates = np.arange(201), np.array([0.08, 0.1, 0.12, 0.09, 0.11])
    distance = np.minimum(1e-8 * np.exp(rates[:, None] * steps), 0.5)
    parted = Divergence(distance)
    assert parted.slopes().slope == pytest.approx(rates)
    exponent = parted.exponent()
    assert exponent.value == pytest.approx(0.1)
    assert exponent.low < 0.1 < exponent.high
    assert exponent.n == 5
    at, largest = np.arange(5), distance.max(axis=1)
    assert (distance[at, parted.saturation] >= 0.1 * largest).all()
    assert (distance[at, parted.saturation - 1] < 0.1 * largest).all()


def test_growth_in_proportion_to_the_steps_is_told_from_exponential_growth() -> None:
    steps = np.arange(201)
    linear, exponential = 1e-8 * np.maximum(steps, 0.5), 1e-8 * np.exp(0.05 * steps)
    parted = Divergence(np.stack([linear, exponential]))
    excess = parted.slopes().slope - parted.proportional().slope
    assert excess[0] == pytest.approx(0, abs=1e-9)
    assert excess[1] > 0.02
    assert parted.saturation.tolist() == [200, 200]  # neither is anything but small


def test_pairs_that_merge_have_no_exponent() -> None:
    distance = np.zeros((5, 50))
    distance[:, 0] = 1e-8
    parted = Divergence(distance)
    assert parted.merged == 5
    assert math.isnan(parted.exponent().value)


def regression(factor: float) -> Callable[[int], tuple[nn.Module, Callable[[], object]]]:
    """Weights that are multiplied by a factor at each step: a difference stays the same share of them."""

    def make(seed: int) -> tuple[nn.Module, Callable[[], object]]:
        model = nn.Linear(4, 4, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.eye(4) * 2.0**seed)

        def step() -> None:
            with torch.no_grad():
                model.weight.mul_(factor)

        return model, step

    return make


def test_a_difference_that_stays() -> None:
    parted = precision.twins(regression(0.5), range(5), 30)
    assert parted.distance.shape == (5, 31)
    assert parted.distance == pytest.approx(parted.distance[:, :1].repeat(31, axis=1), rel=1e-6)  # halving is exact
    assert (parted.distance > 0).all()
    assert parted.merged == 0
    frame = parted.to_frame()
    assert len(frame) == 5 * 31
    assert frame.query("pair == 3 and step == 7")["distance"].item() == parted.distance[3, 7]


def test_the_distance_of_one_ulp() -> None:
    """2^-23 of one weight of 1 among four: the norm is 2."""
    assert precision.twins(regression(1.0), [0], 0).distance.tolist() == [[2.0**-24]]


def dropping(seed: int) -> tuple[nn.Module, Callable[[], object]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(16, 8)
    y = x[:, 0].gt(0).long()

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return model, step


def test_the_same_training_twice_is_the_same_and_one_ulp_is_not() -> None:
    state = torch.get_rng_state()
    assert (precision.twins(dropping, range(2), 12, ulps=0).distance == 0).all()  # dropout draws the same for both
    parted = precision.twins(dropping, range(2), 12)
    assert (parted.distance[:, 1:] > 0).all()
    assert (parted.distance < 1e-4).all()
    assert torch.equal(torch.get_rng_state(), state)


def test_nudge_moves_one_weight_to_its_neighbour() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).bfloat16()
    before = {name: each.detach().clone() for name, each in module.named_parameters()}
    name, place = precision.nudge(module, 5, ulps=3)
    for key, each in module.named_parameters():
        moved = (each != before[key]).flatten().nonzero().flatten().tolist()
        assert moved == ([place] if key == name else [])
    assert name == "1.weight"
    at = module.get_parameter(name).flatten()[place], before[name].flatten()[place]
    assert float(precision.ulp_distance(*(x.detach() for x in at))) == 3
    with pytest.raises(ValueError, match="no floating-point parameters"):
        precision.nudge(nn.Tanh(), 0)
