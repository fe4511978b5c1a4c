import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthgauge.reports.numbers import aligned, interval, number, quantity

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (NAN, "NaN"),
        (INF, "∞"),
        (-INF, "−∞"),
        (0.0, "0"),
        (-0.0, "0"),
        (3.0, "3"),
        (0.5, "0.5"),
        (-0.12345, "−0.1235"),
        (9.9996, "10"),
        (123456.7, "123457"),
        (0.8**100, "2.037 × 10⁻¹⁰"),
        (1.5**100, "4.066 × 10¹⁷"),
        (-5e-324, "−4.941 × 10⁻³²⁴"),
        (999999.9, "1 × 10⁶"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.51234, 0.4991, 0.5257), "0.512 [0.499, 0.526]"),
        ((0.5, None, None), "0.5"),
        ((52340.0, 51310.0, 53290.0), "52340 [51310, 53290]"),
        ((2.04e-10, 1.9e-10, 2.2e-10), "(2.04 [1.90, 2.20]) × 10⁻¹⁰"),
        ((0.003, -0.2, 0.21), "0.00 [−0.20, 0.21]"),
        ((-0.001, -0.2, 0.21), "0.00 [−0.20, 0.21]"),
        ((1e-10, 1e-12, 3e-8), "1 × 10⁻¹⁰ [1 × 10⁻¹², 3 × 10⁻⁸]"),
        ((0.5, 0.3, INF), "0.50 [0.30, ∞]"),
        ((0.5, -INF, INF), "0.5 [no bounds]"),
        ((1.0, 0.0, INF), "1 [no bounds]"),  # of a ratio
        ((0.5, None, 0.7), "0.50 [–, 0.70]"),
        ((NAN, NAN, NAN), "NaN [NaN, NaN]"),
        ((1.0, NAN, NAN), "1 [no interval]"),
        ((INF, 0.2, INF), "∞ [0.2, ∞]"),
        ((3.0, 3.0, 3.0), "3 [3, 3]"),
        ((None, 1.0, 2.0), "– [1.0, 2.0]"),
        ((1.0, -1e308, 1e308), "1 [−1 × 10³⁰⁸, 1 × 10³⁰⁸]"),  # a width beyond float64
        ((0.701502836803586, 0.7015028368035857, 0.7015028368035863), "0.7015 [0.7015, 0.7015]"),
    ],
)
def test_interval(values, text):
    assert interval(*values) == text


def test_a_lopsided_interval_stays_lopsided():
    assert interval(0.1, 0.099, 5.0) == "0.100 [0.099, 5.000]"


def value_of(text: str) -> float:
    plain = text.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789"))
    mantissa, _, exponent = plain.partition(" × 10")
    return float(f"{mantissa}e{exponent or 0}")


@given(st.floats(-1e308, 1e308))
def test_number_reads_back_to_four_digits(value):
    # half a unit of the fourth digit; a subnormal printed in four digits reads back to its own last place
    assert value_of(number(value)) == pytest.approx(value, rel=5.0001e-4, abs=5e-324)


@given(st.lists(st.floats(-1e12, 1e12), min_size=3, max_size=3))
def test_an_interval_resolves_its_own_width(values):
    low, observed, high = sorted(values)
    text = interval(observed, low, high)
    body, _, power = text.partition("]) × 10")
    head, _, ends = body.lstrip("(").rstrip("]").partition(" [")
    scale = f" × 10{power}" if power else ""
    for shown, true in zip((head, *ends.split(", ")), (observed, low, high), strict=True):
        error = abs(value_of(shown + scale) - true)
        # the last place is at most a tenth of the width, and rounding errs by half of that; numbers of a logarithmic
        # scale carry four digits each, and float64 itself fifteen
        assert error <= max(0.0501 * (high - low), 5.01e-4 * abs(true))


def test_columns_share_their_decimal_place_only_where_that_loses_nothing():
    assert aligned([0.5, 0.25, -1.0]) == ["0.500", "0.250", "−1.000"]
    assert aligned([1.0, 20.0, NAN]) == ["1", "20", "NaN"]
    assert aligned([1.0, 1e-9]) == ["1", "1 × 10⁻⁹"]
    assert aligned([12.5, 0.0123, INF]) == ["12.500", "0.012", "∞"]
    assert aligned([17378.2, -20000.6]) == ["17378", "−20001"]
    assert aligned([]) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.008312, "8.31 ms"),
        (0.0, "0 s"),
        (999.96, "1.00 ks"),
        (12.5, "12.5 s"),
        (2.5e-10, "0.250 ns"),
        (float("nan"), "NaN s"),
        (None, "–"),
    ],
)
def test_quantities_take_the_prefix_that_fits(value, text):
    assert quantity(value, "s") == text
