import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from depthgauge import formats
from depthgauge.formats import ExponentHistogram, fractions

ALL = pytest.mark.parametrize("fmt", formats.FORMATS, ids=lambda fmt: fmt.name)
STORED = pytest.mark.parametrize(
    "fmt", [fmt for fmt in formats.FORMATS if fmt.name not in ("tf32", "float64")], ids=lambda fmt: fmt.name
)


def rounded(x, fmt):
    """x to the format's nearest value, ties to even, as if its exponents had no upper end; exact in float64."""
    exponent = np.frexp(x)[1] - 1
    quantum = np.maximum(np.ldexp(1.0, exponent - fmt.mantissa_bits), fmt.smallest_subnormal)
    return np.rint(x / quantum) * quantum


def limits(fmt):
    """Values on, just below and just above everything that a format decides."""
    half = fmt.smallest_subnormal / 2
    ulp = math.ldexp(1.0, math.frexp(fmt.max)[1] - 1 - fmt.mantissa_bits)
    places = [
        half,
        fmt.smallest_subnormal,
        fmt.smallest_normal - half,
        fmt.smallest_normal,
        fmt.max,
        fmt.max + ulp / 2,
        fmt.max + ulp,
    ]
    near = [side for place in places for side in (np.nextafter(place, 0), place, np.nextafter(place, math.inf))]
    return np.array(near)


def expected(x, fmt):
    near = np.abs(rounded(x, fmt))
    under, over = near == 0, near > fmt.max
    subnormal = (near < fmt.smallest_normal) & ~under
    return under.mean(), subnormal.mean(), over.mean()


@pytest.mark.parametrize("fmt", [fmt for fmt in formats.FORMATS if fmt.name != "tf32"], ids=lambda fmt: fmt.name)
def test_limits_are_those_of_the_dtype(fmt):
    info = torch.finfo(getattr(torch, fmt.dtype))
    assert fmt.max == info.max
    assert fmt.smallest_normal == info.smallest_normal
    assert fmt.smallest_subnormal == info.smallest_normal * info.eps


def test_tf32_has_the_range_of_float32_and_the_precision_of_float16():
    tf32 = formats.get("tf32")
    assert tf32.smallest_normal == formats.get("fp32").smallest_normal
    assert tf32.mantissa_bits == formats.get("fp16").mantissa_bits


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("fp16", "float16"),
        ("half", "float16"),
        ("bf16", "bfloat16"),
        ("fp32", "float32"),
        ("fp64", "float64"),
        ("TF32", "tf32"),
        ("fp8_e4m3fn", "float8_e4m3fn"),
        ("fp8_e5m2", "float8_e5m2"),
        ("torch.bfloat16", "bfloat16"),
    ],
)
def test_names(alias, name):
    assert formats.get(alias).name == name
    assert formats.get(formats.get(alias)) is formats.get(name)


def test_unknown_name_says_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'bfloat16'"):
        formats.get("bfloat61")


def test_torch_is_not_imported():
    code = "import sys, depthgauge.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@ALL
@pytest.mark.parametrize("shift", [-40, -8, 0, 3, 24])
def test_fractions_are_exact_at_every_limit(fmt, shift):
    with np.errstate(over="ignore"):
        x = limits(fmt)
        x = x[np.isfinite(np.ldexp(x, -shift)) & (np.ldexp(np.ldexp(x, -shift), shift) == x)]
        histogram = ExponentHistogram.of(np.ldexp(x, -shift))
    if fmt.name == "float64":  # every float64 is its own rounding; the reference would overflow
        found = fractions(histogram, fmt, 2.0**shift)
        assert (found.under, found.over) == (0, 0)
        return
    found = fractions(histogram, fmt, 2.0**shift)
    assert (found.under, found.subnormal, found.over) == expected(x, fmt)
    assert found.under + found.subnormal + found.normal + found.over == pytest.approx(1, abs=1e-15)


@STORED
def test_fractions_are_those_of_a_conversion_by_torch(fmt):
    """Random bits: every exponent of float32 is as likely as every other."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x) & (x != 0)]
    near = torch.from_numpy(x).to(getattr(torch, fmt.dtype)).double().abs().numpy()
    found = fractions(ExponentHistogram.of(x), fmt)
    assert found.under == np.mean(near == 0)
    assert found.subnormal == np.mean((near > 0) & (near < fmt.smallest_normal))
    if fmt.has_infinity:
        assert found.over == np.mean(np.isinf(near))
    else:  # torch saturates or gives NaN, by version; 464 is the last value that rounds to 448
        assert found.over == np.mean(np.abs(x) > 464)


@ALL
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), st.integers(-60, 60))
def test_counts_add_up(fmt, values, shift):
    histogram = ExponentHistogram.of(np.array(values, np.float64))
    assert histogram.count == len(values)
    found = fractions(histogram, fmt, 2.0**shift)
    if found.n:
        assert found.under + found.subnormal + found.normal + found.over == pytest.approx(1, abs=1e-12)
    else:
        assert math.isnan(found.under)


def test_lognormal_values_underflow_as_the_normal_distribution_says():
    n, mu, sigma, scale = 200_000, -16.0, 3.0, 2.0**6
    x = np.exp(np.random.default_rng(1).normal(mu, sigma, n))
    exact = stats.norm.cdf((math.log(2.0**-25 / scale) - mu) / sigma)
    found = fractions(ExponentHistogram.of(x), "fp16", scale).under
    assert abs(found - exact) < 5 * math.sqrt(exact * (1 - exact) / n)


def test_a_scale_that_is_no_power_of_two_is_off_by_one_segment_at_most():
    x = np.random.default_rng(2).normal(0, 1e-6, 100_000)
    histogram = ExponentHistogram.of(x)
    for scale in (1.1, 1000.0, 3e-3):
        under, subnormal, over = expected(x * scale, formats.get("fp16"))
        found = fractions(histogram, "fp16", scale)
        worst = histogram.counts.max() / len(x)
        assert abs(found.under - under) <= worst
        assert abs(found.subnormal - subnormal) <= 2 * worst
        assert abs(found.over - over) <= worst


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_loss_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="positive finite"):
        fractions(ExponentHistogram.of([1.0]), "fp16", scale)


def test_subnormal_values_are_filed_under_their_own_exponent():
    histogram = ExponentHistogram.of(np.float32([2.0**-149, 3 * 2.0**-149, 2.0**-126]))
    assert histogram.exponents.tolist() == [-149, -148, -126]
    exponents, counts = histogram.by_exponent()
    assert (exponents[0], exponents[-1], counts.sum()) == (-149, -126, 3)
    assert ExponentHistogram.of([5e-324]).exponents.tolist() == [-1074]


def test_zeros_and_nonfinite_values_are_counted_by_kind():
    histogram = ExponentHistogram.of([0.0, -0.0, math.inf, -math.inf, -math.inf, math.nan, 1.0])
    assert (histogram.zeros, histogram.positive_infinities, histogram.negative_infinities) == (2, 1, 2)
    assert (histogram.nans, histogram.nonzero, histogram.count) == (1, 1, 7)
    assert fractions(histogram, "fp16").n == 1


def test_histograms_add():
    x, y = np.array([1.0, 3.0, math.nan]), np.array([1.0, 0.0, 1e300])
    both = ExponentHistogram.of(np.concatenate([x, y]))
    assert ExponentHistogram.of(x) + ExponentHistogram.of(y) == both
    assert ExponentHistogram.sum([ExponentHistogram.of(x), ExponentHistogram.of(y)]) == both
    assert ExponentHistogram.sum([]).count == 0
    assert ExponentHistogram.of(np.array([1 + 3j])) == ExponentHistogram.of([1.0, 3.0])
