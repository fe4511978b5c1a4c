"""Sums rounded step by step, against sums done by hand, by numpy and in fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from depthgauge import formats, summation


@pytest.fixture
def values():
    return formats.round(torch.randn(64, 5, generator=torch.Generator().manual_seed(0)), "float16")


def test_a_naive_sum_is_numpys_cumulative_sum(values):
    ours = summation.partial_sums(values, "float16", "naive", lengths=(1, 7, 64)).numpy()
    theirs = np.cumsum(values.numpy().astype(np.float16), axis=0, dtype=np.float16)
    np.testing.assert_array_equal(ours, theirs[[0, 6, 63]])


def test_pairs_and_blocks_add_in_their_order(values):
    x = values.numpy().astype(np.float16)
    halves = x
    while len(halves) > 1:
        halves = halves[::2] + halves[1::2]
    np.testing.assert_array_equal(summation.partial_sums(values, "float16", "pairwise", lengths=(64,))[0], halves[0])
    blocks = [np.cumsum(x[i : i + 16], axis=0, dtype=np.float16)[-1] for i in range(0, 64, 16)]
    expected = np.cumsum(blocks, axis=0, dtype=np.float16)[-1]
    found = summation.partial_sums(values, "float16", "blocked", lengths=(64,), block=16)[0]
    np.testing.assert_array_equal(found, expected)


def test_a_compensated_sum_keeps_what_a_naive_one_loses():
    """1 + 1000 x 2^-11 in float16: each is half a spacing of 1, and is lost by itself."""
    values = torch.full((1001, 1), 2.0**-11)
    values[0] = 1
    assert summation.partial_sums(values, "float16", "naive", lengths=(1001,)) == 1
    exact = float(1 + Fraction(1000, 2**11))
    assert summation.partial_sums(values, "float16", "compensated", lengths=(1001,)).item() == pytest.approx(
        exact, abs=formats.get("float16").spacing(exact) / 2
    )


def test_stochastic_sums_are_right_in_the_mean():
    values = torch.full((500, 4000), 2.0**-12)
    values[0] = 1
    sums = summation.partial_sums(
        values, "float16", "stochastic", lengths=(500,), generator=torch.Generator().manual_seed(1)
    )
    exact = 1 + 499 * 2.0**-12
    assert sums.mean().item() == pytest.approx(exact, abs=5 * sums.std().item() / 4000**0.5)
    with pytest.raises(ValueError, match="needs a generator"):
        summation.partial_sums(values, "float16", "stochastic", lengths=(500,))


def test_exact_sums_are_those_of_float64(values):
    found = summation.exact_sums(values, (3, 64))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, values.double().cumsum(0)[[2, 63]], rtol=1e-14)


@pytest.mark.parametrize("formula", summation.FORMULAS)
def test_variances_in_float32_are_numpys(formula):
    x = torch.randn(256, 20, generator=torch.Generator().manual_seed(4)) + 2
    found = summation.variances(x, "float32", formula)
    np.testing.assert_allclose(found, x.double().var(0, correction=0), rtol=1e-5)


def test_one_pass_is_the_textbook_formula_step_by_step(values):
    """In numpy's float16, whose operations round once."""
    x = values.numpy().astype(np.float16)

    def mean(y):
        while len(y) > 1:
            y = y[::2] + y[1::2]
        return y[0] / np.float16(64)

    np.testing.assert_array_equal(summation.variances(values, "float16", "one-pass"), mean(x * x) - mean(x) * mean(x))
    two = mean((x - mean(x)) * (x - mean(x)))
    np.testing.assert_array_equal(summation.variances(values, "float16", "two-pass"), two)


def test_welford_needs_no_second_look(values):
    """Its update in numpy's float16."""
    middle, squares = values[0].numpy().astype(np.float16), np.zeros(5, np.float16)
    for k, row in enumerate(values.numpy().astype(np.float16)[1:], 2):
        off = row - middle
        middle = middle + off / np.float16(k)
        squares = squares + off * (row - middle)
    np.testing.assert_array_equal(summation.variances(values, "float16", "welford"), squares / np.float16(64))


def test_lengths_that_an_order_cannot_have(values):
    with pytest.raises(ValueError, match="power of two"):
        summation.partial_sums(values, "float16", "pairwise", lengths=(48,))
    with pytest.raises(ValueError, match="no multiple"):
        summation.partial_sums(values, "float16", "blocked", lengths=(48,), block=32)
