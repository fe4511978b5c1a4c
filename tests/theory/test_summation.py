"""Laws of rounding errors in sums against closed forms, and against sums that were rounded step by step."""

import math

import numpy as np
import pytest
import torch

from depthgauge import formats, summation, theory
from depthgauge.theory import summation as laws

N, COLUMNS = 1024, 2000
LENGTHS = (32, 256, N)
MEAN, STD = 0.3, 0.15


def test_bounds_in_closed_form():
    u = 2.0**-11
    assert laws.unit_roundoff("fp16") == u
    assert theory.worst_case("fp16", 100) == pytest.approx(100 * u / (1 - 100 * u), rel=1e-15)
    assert theory.worst_case("fp16", 2048) == math.inf
    spread = 3 / (1 - u)  # lambda = 3 has the chance 1 - 2 exp(-9/2 (1 - u)^2) by the theorem
    chance = 1 - 2 * math.exp(-(spread**2) * (1 - u) ** 2 / 2)
    expected = math.expm1(spread * math.sqrt(100) * u + 100 * u * u / (1 - u))
    assert theory.probabilistic_bound("fp16", 100, confidence=chance) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="confidence is 1"):
        theory.probabilistic_bound("fp16", 100, confidence=1.0)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.0), (0.3, 0.15), (0.25, 0.4), (-0.1, 0.02)])
def test_rounding_moments_against_quadrature(mean, std, stochastic):
    h = np.array([0.1, 0.5, 1.0, 3.0])
    x = mean + std * laws.normal_points(200_001)[:, None] * np.ones(4)
    up = x / h - np.floor(x / h)
    error = np.rint(x / h) * h - x
    square = h**2 * up * (1 - up) if stochastic else error**2
    bias, expected = laws.rounding_moments(mean, std, h, stochastic=stochastic)
    np.testing.assert_allclose(expected, square.mean(0), rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(bias, 0 * h if stochastic else error.mean(0), atol=1e-4)


def test_a_fine_spacing_rounds_evenly():
    bias, square = laws.rounding_moments(1.0, 1.0, np.array([0.01]))
    assert bias == pytest.approx(0, abs=1e-12)
    assert square == pytest.approx(0.01**2 / 12, rel=1e-12)


def test_a_sum_of_one_number_has_no_error():
    assert theory.sum_errors("bf16", 1.0, 1.0, (1,)) == ((0.0, 0.0),)


def test_the_growth_is_that_of_the_textbook():
    """Before a spacing meets the summands' spread: relative to the sum sqrt(n), and sqrt(log n) in pairs."""
    short, long = (error.rms for error in theory.sum_errors("float32", 0.0, 1.0, (2**6, 2**14)))
    assert long / short / 2**8 == pytest.approx(1, rel=0.05)  # of a sum that grows as sqrt(n)
    short, long = (error.rms for error in theory.sum_errors("float32", 1.0, 0.5, (2**8, 2**16)))
    assert long / short / 2**12 == pytest.approx(1, rel=0.05)
    short, long = (error.rms for error in theory.sum_errors("float32", 0.0, 1.0, (2**6, 2**14), "pairwise"))
    assert long / short / 2**4 == pytest.approx(math.sqrt(14 / 6), rel=0.05)


def sums(values, fmt, method, lengths=LENGTHS):
    draws = torch.Generator().manual_seed(3)
    found = summation.partial_sums(values, fmt, method, lengths=lengths, generator=draws)
    return (found.double() - summation.exact_sums(values, lengths)).numpy()


@pytest.mark.parametrize("method", summation.METHODS)
@pytest.mark.parametrize("mean", [0.0, MEAN])
@pytest.mark.parametrize("fmt", ["float16", "bfloat16"])
def test_the_law_is_what_sums_do(fmt, mean, method):
    """Within a tenth: a root mean square of 2,000 has a standard error of 2 to 3 %, and the law is of first order."""
    draws = torch.Generator().manual_seed(7)
    values = formats.round(mean + STD * torch.randn(N, COLUMNS, generator=draws), fmt)
    law = theory.sum_errors(fmt, mean, STD, LENGTHS, method)
    error = sums(values, fmt, method)
    np.testing.assert_allclose(np.sqrt(np.square(error).mean(1)), [at.rms for at in law], rtol=0.1)
    spread = 4 * error.std(1) / math.sqrt(COLUMNS) + 0.05 * np.sqrt(np.square(error).mean(1))
    assert (np.abs(error.mean(1) - [at.bias for at in law]) < spread).all()


def test_products_are_added_unrounded():
    draws = torch.Generator().manual_seed(8)
    a, b = (formats.round(STD**0.5 * torch.randn(N, COLUMNS, generator=draws), "float16") for _ in range(2))
    law = theory.sum_errors("float16", 0.0, STD, LENGTHS, products=True)
    error = sums(a * b, "float16", "naive")
    np.testing.assert_allclose(np.sqrt(np.square(error).mean(1)), [at.rms for at in law], rtol=0.1)


@pytest.mark.parametrize("fmt", ["float16", "bfloat16"])
def test_equal_numbers_err_alike(fmt):
    x = formats.round(MEAN + STD * laws.normal_points(COLUMNS), fmt)
    error = sums(torch.from_numpy(x).float().expand(N, -1), fmt, "naive", (N,))[0]
    law = theory.equal_sum_errors(fmt, x, N)
    assert np.sqrt(np.square(law).mean()) == pytest.approx(np.sqrt(np.square(error).mean()), rel=0.1)
    assert np.abs(law).max() <= theory.worst_case(fmt, N - 1) * N * np.abs(x).max()


def test_a_long_sum_stands_still():
    """In bfloat16 a sum of ones stops at 256, so that all but these are lost."""
    assert theory.equal_sum_errors("bfloat16", np.ones(1), 4096) == 256 - 4096


@pytest.mark.parametrize("formula", ["one-pass", "two-pass"])
@pytest.mark.parametrize("ratio", [2, 8, 32])
def test_the_error_of_a_variance_is_the_laws(formula, ratio):
    """Within a tenth, as for sums."""
    draws = torch.Generator().manual_seed(9)
    std = 4 / (1 + ratio)
    x = formats.round(std * (ratio + torch.randn(256, COLUMNS, generator=draws)), "float16")
    exact = x.double().var(0, correction=0)
    error = (summation.variances(x, "float16", formula) - exact) / exact
    law = theory.variance_error("float16", ratio * std, std, 256, formula)
    assert error.square().mean().sqrt().item() == pytest.approx(law, rel=0.1)
