"""Monte Carlo arithmetic: what rounding inside of a computation makes of its results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from depthgauge.precision.band import ROUNDING, STEP
from depthgauge.precision.noise import noisy

EPSILON = 2.0**-23


def moved(compute: Callable[[], Tensor], runs: int = 50) -> Tensor:
    """Root mean square of the moves, in units of the spacing at 1; compute begins with float64."""
    generator = torch.Generator().manual_seed(0)
    exact, squares = compute(), []
    for _ in range(runs):
        with noisy(EPSILON, generator):
            squares.append(((compute() - exact) / EPSILON).square())
    return torch.stack(squares).mean(0).sqrt()


def test_an_operator_moves_its_result_by_a_relative_amount() -> None:
    x = torch.tensor([1.0, -3.0, 0.0, 2.0**40], dtype=torch.float64)
    torch.testing.assert_close(moved(lambda: x * 1.0), x.abs(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(moved(lambda: torch.erf(x)), STEP**0.5 * torch.erf(x).abs(), rtol=1e-6, atol=0.0)


def test_what_rounds_nothing_moves_nothing() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    assert moved(lambda: torch.where(x > 0, x.abs(), -x).relu().T.reshape(2, 12).amax(1), 3).max() == 0
    assert moved(lambda: torch.cat([x.relu(), x.clone()])[1:].flip(0).clamp(-1, 1).to(torch.float64), 3).max() == 0


@pytest.mark.parametrize("terms", [1, 100, 10_000])
def test_a_sum_moves_by_the_law_of_sums(terms: int) -> None:
    """Variance terms (y^2 / 3 + S / 6) and one rounding of y; here y^2 = terms^2 and S = terms."""
    ones = torch.ones(terms, dtype=torch.float64)
    inner = terms / 6 * terms if terms > STEP else 0.0
    expected = ((1 + terms / 3 * (terms > 1)) * terms**2 + inner) ** 0.5
    for compute in (ones.sum, lambda: ones @ ones[:, None]):
        assert float(moved(compute, 100)) == pytest.approx(expected, rel=0.1)


def test_cancellation_amplifies() -> None:
    """(h + c) - c: the rounding of h + c, and the small one of the difference."""
    h = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = moved(lambda: (h + 1000) - 1000)
    torch.testing.assert_close(found, (1000 + h), rtol=0.01, atol=0.0)
    single = ((h.float() + 1000) - 1000).double() - h.float().double()
    ratio = float(single.square().mean().sqrt() / (found * EPSILON).square().mean().sqrt())
    assert ratio == pytest.approx(ROUNDING**0.5 / 2, rel=0.4)  # what the band takes for one rounding


def test_the_backward_pass_and_memory_that_is_changed_in_place() -> None:
    x = torch.ones(5, dtype=torch.float64, requires_grad=True)
    with noisy(EPSILON, torch.Generator().manual_seed(0)):
        (gradient,) = torch.autograd.grad((x * 3).sum(), x)
        y = torch.ones(5)
        y.add_(1)
    assert ((gradient - 3).abs() > 0).all()
    assert ((gradient - 3).abs() <= 6 * EPSILON).all()
    assert ((y - 2).abs() == 2 * EPSILON).all()


def test_infinities_stay_and_no_number_becomes_one() -> None:
    limits = torch.tensor([-torch.inf, torch.inf, torch.finfo(torch.float32).max, torch.finfo(torch.float32).min])
    for seed in range(5):
        with noisy(EPSILON, torch.Generator().manual_seed(seed)):
            found = limits + 0.0
        assert torch.equal(found.isinf(), limits.isinf())
        assert not found.isnan().any()


def test_parts_of_complex_numbers_move_apart() -> None:
    z = torch.complex(torch.ones(100), torch.full((100,), 2.0))
    with noisy(EPSILON, torch.Generator().manual_seed(0)):
        found = z * 1.0
    parts = torch.view_as_real(found - z).abs()
    assert set(parts[:, 0].tolist()) == {EPSILON}
    assert (torch.view_as_real(found - z).sign().prod(1) < 0).any()


@pytest.mark.parametrize("own", [False, True])
def test_what_an_operator_draws_is_drawn_once(own: bool) -> None:
    weights = torch.ones(4, 5000)

    def drawn(block: AbstractContextManager[object]) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        with block:
            places = torch.multinomial(weights, 3, generator=generator if own else None)
        return places, torch.get_rng_state(), generator.get_state()

    plain, run = drawn(nullcontext()), drawn(noisy(EPSILON, torch.Generator().manual_seed(2)))
    assert all(map(torch.equal, plain[1:], run[1:]))
    assert (plain[0] == run[0]).float().mean() > 0.5  # of weights that differ by roundings
