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


V = torch.ones(8, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"values": np.ones((8, 3))}, TypeError, "values is a numpy.ndarray, where a tensor"),
        ({"values": [[1.0]]}, TypeError, "values is a list"),
        ({"values": V.half()}, TypeError, "torch.float16, where float32 or float64 was expected"),
        ({"values": V.long()}, TypeError, "torch.int64"),
        ({"values": V.cfloat()}, TypeError, "torch.complex64"),
        ({"values": torch.eye(8).to_sparse()}, TypeError, "a sparse_coo tensor, where a dense one was expected"),
        ({"values": torch.ones(8)}, ValueError, r"the shape \(8,\), where \(n, columns\) was expected"),
        ({"values": torch.ones(8, 3, 1)}, ValueError, r"the shape \(8, 3, 1\)"),
        ({"values": torch.tensor(1.0)}, ValueError, r"the shape \(\)"),
        ({"values": V[:0]}, ValueError, "with a row at least"),
        ({"fmt": "float17"}, ValueError, "no floating-point format is called 'float17'"),
        ({"fmt": None}, ValueError, "no floating-point format is called None"),
        ({"fmt": "nvfp4"}, ValueError, "nvfp4 is a block format"),
        ({"fmt": "float64"}, ValueError, "float64 has more bits than torch.float32"),
        ({"method": "nave"}, ValueError, "no method of summation is called 'nave': there are naive, pairwise"),
        ({"method": ["naive"]}, ValueError, "no method of summation is called"),
        *(
            ({"lengths": lengths}, ValueError, "lengths is .*, where ascending whole numbers from 1 to 8")
            for lengths in (8, None, "48", (), (9,), (8, 4), (0, 4), (-2,), (4.0,), (True,))
        ),
        *(
            ({"method": "blocked", "block": block}, ValueError, "block is .*, where a whole number >= 1")
            for block in (0, -1, 1.5, "a", None)
        ),
        ({"method": "stochastic", "generator": np.random.default_rng()}, TypeError, "not a numpy.Generator"),
        ({"method": "stochastic", "generator": 1}, TypeError, "a torch.Generator, not an int"),
    ],
)
def test_a_wrong_argument_ends_in_a_sentence(options, error, message):
    given = {"values": V, "fmt": "float16", "method": "naive", "lengths": (8,), **options}
    with pytest.raises(error, match=message):
        summation.partial_sums(**given)
    if options.keys() <= {"values", "fmt"}:
        with pytest.raises(error, match=message):
            summation.variances(given["values"], given["fmt"], "welford")
    if options.keys() <= {"values", "lengths"}:
        with pytest.raises(error, match=message):
            summation.exact_sums(given["values"], given["lengths"])
    with pytest.raises(ValueError, match="no formula of a variance is called 'twopass': there are two-pass"):
        summation.variances(V, "float16", "twopass")


def test_lengths_that_an_order_cannot_have(values):
    with pytest.raises(ValueError, match="power of two"):
        summation.partial_sums(values, "float16", "pairwise", lengths=(48,))
    with pytest.raises(ValueError, match="no multiple"):
        summation.partial_sums(values, "float16", "blocked", lengths=(48,), block=32)
