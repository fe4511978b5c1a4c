"""The band that rounding predicts, against roundings and sums that are really made."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from depthgauge.precision.band import (
    MARGIN,
    ROUNDING,
    Spread,
    Work,
    amplified,
    judge,
    judge_sizes,
    predicted_variance,
    sizes,
)

U = 2.0**-24
EPSILON = 2.0**-23


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_variance_of_a_rounding() -> None:
    """Significands distributed as 1/s: of 200,000 the mean square has a standard error of 0.2 %."""
    exact = 2 ** torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = (exact.float().double() - exact) / exact / U
    assert float(errors.square().mean()) == pytest.approx(ROUNDING, rel=0.01)


@pytest.mark.parametrize("terms", [16, 256])
def test_the_variance_of_a_sum_one_term_after_another(terms: int) -> None:
    """S counts changes of both factors, so that the bridge's part is counted twice: by a third too much, no more."""
    x, w = draws(terms, 4000), draws(terms, 4000, seed=1)
    x, w = x.float().double(), w.float().double()
    total = torch.zeros(4000)
    for a, b in zip(x, w, strict=True):
        total = (total.double() + a * b).float()  # one rounding a term, as of a fused multiply-add
    exact, sensitivity = (x * w).sum(0), 2 * (x * w).square().sum(0)
    bridge = predicted_variance(exact, sensitivity, [(U, Work(0, 0, terms * 4000))]).mean()
    bridge -= ROUNDING * U**2 * (exact.square() + sensitivity).mean()  # the result's own rounding is among the terms'
    ratio = float((total.double() - exact).square().mean() / bridge)
    assert 0.6 < ratio < 1.05


def test_two_sides_and_their_formats() -> None:
    values, work = torch.ones(10), Work(1)
    one, two = (float(predicted_variance(values, 0.0, [(U, work)] * sides).mean()) for sides in (1, 2))
    assert two == pytest.approx(2 * one)
    low = float(predicted_variance(values, 0.0, [(2.0**-9, Work(1, 0, 10 * 1000))]).mean())
    assert low == pytest.approx(ROUNDING * 2.0**-18, rel=1e-3)  # sums of low precision are those of float32
    inside = float(predicted_variance(values, 0.0, [(2.0**-9, Work(1, 0, 10 * 1000))], rounded=100).mean())
    assert inside == pytest.approx(ROUNDING * 2.0**-18 * (1 + 100 / 3), rel=1e-3)


def test_a_spread_is_known_by_slices() -> None:
    scales = torch.tensor([1.0, 10.0])[:, None] * torch.tensor([1.0, 2.0, 4.0])
    spread = Spread()
    for seed in range(400):
        spread.add(scales * draws(2, 3, seed=seed))
    variance = spread.variance(torch.Size((2, 3)))
    assert isinstance(variance, Tensor)
    assert (variance / scales.square() - 1).abs().max() < 0.4
    assert Spread().variance(torch.Size((2, 3))) == 0.0


def test_normal_errors_stay_inside_and_larger_ones_do_not() -> None:
    zeros, variance = torch.zeros(32, 64), torch.ones(32, 64, dtype=torch.float64)
    sizes = [judge(draws(32, 64, seed=seed), zeros, variance, 1e-3, EPSILON).size for seed in range(200)]
    assert max(sizes) < 1.1 / MARGIN * 1.1
    assert judge(2.5 * MARGIN * draws(32, 64), zeros, variance, 1e-3, EPSILON).size > 1
    row = draws(32, 64)
    row[:, 5] *= 3.0 * MARGIN  # no value of it needs to be far out
    assert judge(row, zeros, variance, 1e-3, EPSILON).size > 1
    one = draws(32, 64)
    one[3, 4] = 7.0 * MARGIN
    assert judge(one, zeros, variance, 1e-3, EPSILON).size > 1
    few = judge(one, zeros, variance, 1e-3, EPSILON, freedom=7)
    assert few.size < 1  # a variance from few draws may be that far off


def test_what_is_not_finite_and_what_is_equal() -> None:
    values, variance = torch.tensor([1.0, math.nan, math.inf]), torch.full((3,), 1e-14, dtype=torch.float64)
    assert judge(values, values.clone(), variance, 1e-3, EPSILON).size == 0
    other = torch.tensor([1.0, math.nan, -math.inf])
    assert judge(values, other, variance, 1e-3, EPSILON).size == math.inf
    empty = torch.zeros(0)
    assert judge(empty, empty, torch.zeros(0, dtype=torch.float64), 1e-3, EPSILON).size == 0


def test_ulps_are_counted_at_the_value_or_at_the_mean_square() -> None:
    a = torch.tensor([1.0, 1.0, 4.0, 1e-9])
    b = a + torch.tensor([0.0, 3 * EPSILON, 4 * 3 * EPSILON, 0.0])
    found = judge(b, a, torch.full((4,), 1e-14, dtype=torch.float64), 1e-3, EPSILON)
    assert found.ulps == 3


def test_few_values_may_differ_as_far_as_rounding_has_moved_as_many() -> None:
    zeros, variance = torch.zeros(1000), torch.full((1000,), 1e-14, dtype=torch.float64)
    moves = torch.zeros(1000, dtype=torch.float64)
    moves[17] = 1.0  # one value was moved over a kink
    assert amplified(variance, sizes(moves), 1e-3)
    flipped = draws(1000) * 1e-7
    flipped[[3, 500]] = 1.0
    assert judge_sizes(flipped, zeros, variance, sizes(moves), 1e-3).size < 1
    flipped[700] = 1.0
    assert judge_sizes(flipped, zeros, variance, sizes(moves), 1e-3).size > 1e5
    assert judge_sizes(zeros, zeros, variance, sizes(moves), 1e-3).band > 0.01  # it says how wide it is
    assert not amplified(variance, sizes(1e-7 * draws(1000)), 1e-3)


def test_a_value_that_rounding_decides_to_be_finite() -> None:
    zeros, variance = torch.zeros(1000), torch.full((1000,), 1e-14, dtype=torch.float64)
    lost, moves = torch.zeros(1000), torch.zeros(1000)
    lost[17] = math.inf
    for value in (math.nan, math.inf):
        one = zeros.clone()
        one[5] = value
        assert judge_sizes(one, zeros, variance, sizes(lost), 1e-3).size == 0
        assert judge_sizes(one, zeros, variance, sizes(moves), 1e-3).size == math.inf


def test_slices_that_move_together() -> None:
    """Roundings of a mean move a row by one amount: so may the difference, and in no other row than as many."""
    zeros, variance = torch.zeros(40, 50), torch.full((40, 50), 1e-14, dtype=torch.float64)
    rows = 1.5e-7 * draws(40)[:, None].expand(40, 50)
    assert judge(rows, zeros, variance, 1e-3, EPSILON).size > 1
    moves = sizes(4e-7 * draws(40, seed=1)[:, None].expand(40, 50))
    assert judge_sizes(rows, zeros, variance, moves, 1e-3).size < 1
    assert judge_sizes(20 * rows, zeros, variance, moves, 1e-3).size > 1
    alone = sizes(4e-7 * draws(40, 50, seed=1))
    assert judge_sizes(2 * rows, zeros, variance, alone, 1e-3, slices=False).size < 1
    assert judge_sizes(12 * rows, zeros, variance, alone, 1e-3).size > 1
