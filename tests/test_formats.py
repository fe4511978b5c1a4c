import math
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction

import mpmath
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


def lower(x):
    return np.nextafter(x, 0)


def upper(x):
    return np.nextafter(x, math.inf)


@ALL
def test_thresholds_are_where_rounding_changes(fmt):
    assert formats.round(fmt.zero_below, fmt) == 0
    assert formats.round(upper(fmt.zero_below), fmt) == fmt.smallest_subnormal
    assert not math.isfinite(formats.round(fmt.overflows_from, fmt))
    assert formats.round(lower(fmt.overflows_from), fmt) == fmt.max
    assert formats.round(1 + fmt.epsilon, fmt) == 1 + fmt.epsilon
    assert formats.round(1 + fmt.epsilon / 2, fmt) == 1


def test_the_limit_that_belongs_to_the_lower_side():
    """464 lies as near to 448 as to the 480 that e4m3fn lacks, and 448 is even; the largest of IEEE's layout is odd."""
    assert formats.get("e4m3fn").overflows_from == upper(464.0)
    assert formats.get("fp16").overflows_from == 65520
    assert formats.get("e5m2").overflows_from == 61440


@ALL
def test_a_sum_of_ones_stops(fmt):
    stop = fmt.stagnation
    assert formats.round(stop + 1, fmt) == stop
    assert formats.round(stop - 1, fmt) == stop - 1
    if stop > 2048:
        return
    total = 0.0
    for _ in range(int(stop) + 5):
        total = formats.round(total + 1, fmt)
    assert total == stop


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_spacing_is_numpys(dtype):
    name = np.dtype(dtype).name
    x = np.random.default_rng(3).integers(0, 2 ** (8 * np.dtype(dtype).itemsize - 1) - 1, 2000, dtype=np.int64)
    x = x.astype(f"i{np.dtype(dtype).itemsize}").view(dtype)
    x = x[np.isfinite(x)]
    found = formats.get(name).spacing(x)
    assert found.dtype == np.float64
    assert np.array_equal(found, np.spacing(x).astype(np.float64))
    assert np.array_equal(formats.get(name).spacing(torch.from_numpy(-x)), found)


@STORED
def test_spacing_leads_to_the_next_value(fmt):
    x = np.array([0.0, fmt.smallest_subnormal, fmt.smallest_normal, 1.0, 3.0, 7.0])
    after = x + fmt.spacing(x)
    assert np.array_equal(formats.round(after, fmt), after)
    assert np.array_equal(formats.round(x + 0.49 * fmt.spacing(x), fmt), x)


def test_spacing_of_numbers_and_of_what_is_none():
    fp16 = formats.get("fp16")
    assert fp16.spacing(-2048.5) == 2
    assert type(fp16.spacing(1.0)) is float
    assert np.isnan(fp16.spacing([65505.0, math.inf, -math.inf, math.nan])).all()
    on_meta = fp16.spacing(torch.ones(3, device="meta", dtype=torch.bfloat16))
    assert (on_meta.device.type, on_meta.dtype) == ("meta", torch.float64)


@ALL
@pytest.mark.parametrize("terms", [1, 10, 1000])
def test_exponentials_overflow_from_the_threshold(fmt, terms):
    x = fmt.exp_overflows_from(terms)
    below = x - fmt.spacing(x) if abs(math.frexp(x)[0]) != 0.5 else x - fmt.spacing(x) / 2
    assert formats.round(x, fmt) == x
    with mpmath.workdps(60):
        limit = (mpmath.mpf(fmt.max) + mpmath.mpf(fmt.spacing(fmt.max)) / 2) / terms
        assert mpmath.exp(mpmath.mpf(below)) < limit < mpmath.exp(mpmath.mpf(x))


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_torch_overflows_from_the_thresholds_of_exp_and_softmax(name):
    fmt, dtype = formats.get(name), getattr(torch, name)
    x = torch.tensor(fmt.exp_overflows_from(), dtype=dtype)
    assert torch.exp(x).isinf()
    assert torch.exp(x - fmt.spacing(x).to(dtype)).isfinite()
    many = torch.full((10,), fmt.exp_overflows_from(10), dtype=dtype)
    assert (torch.exp(many) / torch.exp(many).sum(dtype=torch.float64).to(dtype)).eq(0).all()
    assert float(torch.softmax(many, 0).sum()) == pytest.approx(1, abs=10 * fmt.epsilon)


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
        ("NVFP4", "nvfp4"),
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


ONE = ExponentHistogram.of([1.0])
NAME = "no floating-point format is called "


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: formats.get(16), ValueError, NAME + "16"),
        (lambda: formats.get([]), ValueError, NAME + r"\[\]"),
        (lambda: formats.get(torch.int8), ValueError, NAME + "torch.int8"),
        (lambda: formats.get("x" * 1000), ValueError, NAME + r"'x+\.\.\.x+': the nearest"),
        (lambda: formats.get(torch.ones(3, 3)), ValueError, NAME + r"[^\n]*: the nearest"),
        (lambda: formats.get("fp16").spacing("1"), TypeError, "x is a str, where real numbers were expected"),
        (lambda: formats.get("fp16").spacing(None), TypeError, "x is None"),
        (lambda: formats.get("fp16").spacing(1j), TypeError, "x is a complex"),
        (lambda: formats.get("fp16").spacing(np.array(["2020"], "M8[D]")), TypeError, "x is an array of datetime64"),
        (lambda: formats.get("fp16").spacing(np.ma.masked_equal([1.0, 2.0], 1)), TypeError, "x is a masked array"),
        (lambda: formats.get("fp16").spacing(torch.ones(2, dtype=torch.cfloat)), TypeError, "torch.complex64"),
        (lambda: formats.get("fp16").spacing(torch.eye(2).to_sparse()), TypeError, "a sparse_coo tensor"),
        *(
            (
                lambda n=n: formats.get("fp16").exp_overflows_from(n),
                ValueError,
                "terms is .*, where a whole number >= 1",
            )
            for n in (0, -1, 1.5, math.nan, None, "a", True)
        ),
        (lambda: ExponentHistogram.of("abc"), TypeError, "values is a str, where numbers were expected"),
        (lambda: ExponentHistogram.of(None), TypeError, "values is None"),
        (lambda: ExponentHistogram.of({}), TypeError, "values is a dict"),
        (lambda: ExponentHistogram.of(iter([1.0])), TypeError, "values is a list_iterator"),
        (
            lambda: ExponentHistogram.of([[1.0], [1.0, 2.0]]),
            TypeError,
            "values is a list of which numpy makes",
        ),
        (lambda: ExponentHistogram.of(np.array([1, None])), TypeError, "an array of object"),
        (lambda: ExponentHistogram.of(np.array([3], "m8[s]")), TypeError, "an array of timedelta64"),
        (lambda: ExponentHistogram.of(np.zeros(2, [("a", float)])), TypeError, "an array of"),
        (lambda: ExponentHistogram.of(np.ma.masked_equal([1.0, 2.0], 1)), TypeError, "values is a masked array"),
        (lambda: ExponentHistogram.of(torch.eye(3).to_sparse()), TypeError, "values is a sparse_coo tensor"),
        (lambda: ExponentHistogram.of(torch.ones(3, device="meta")), ValueError, "on the meta device, without values"),
        (lambda: ExponentHistogram.sum(ONE), TypeError, "histograms is a depthgauge.ExponentHistogram"),
        (lambda: ExponentHistogram.sum([1, 2]), TypeError, "'ExponentHistogram' and 'int'"),
        (lambda: ExponentHistogram.from_cells([1, 2], [1]), ValueError, r"shape \(2,\) and counts of shape \(1,\)"),
        (lambda: ExponentHistogram.from_cells([1.5], [1]), TypeError, "keys are of float64, where whole numbers"),
        (lambda: ExponentHistogram.from_cells([1], [-1]), ValueError, "counts are from -1 to -1"),
        (
            lambda: ExponentHistogram.from_cells([40_000], [1]),
            ValueError,
            "whole numbers from 0 to 33567",
        ),
        (lambda: fractions(np.ones(3), "fp16"), TypeError, "histogram is a numpy.ndarray, where an ExponentHistogram"),
        *(
            (lambda n=n: fractions(ONE, "fp16", n), ValueError, "a loss scale is a positive finite number, not")
            for n in ("2", None, 1j, [1.0, 2.0], np.ones(2), torch.ones(2), 10**400)
        ),
        (lambda: formats.cell_shares([0], [99], "fp16"), ValueError, "segments are from 99 to 99"),
        (lambda: formats.cell_shares([0, 1], [1], "fp16"), ValueError, "make no cells"),
        (lambda: formats.cell_shares([0.5], [1], "fp16"), TypeError, "exponents are of float64"),
        (lambda: formats.cell_key(None, [1]), TypeError, "exponents is None"),
        (lambda: formats.cell_key([-2000], [1]), ValueError, "whole numbers from -1074 to 1023 were expected"),
        (lambda: formats.cell_of([3.5]), TypeError, "keys are of float64"),
    ],
)
def test_a_wrong_argument_ends_in_a_sentence(call, error, message):
    with pytest.raises(error, match=message):
        call()


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


@pytest.mark.parametrize("x", [1, 1.5, True, Fraction(3, 2), Decimal("1.5"), np.float32(1.5), np.array(1.5)])
def test_the_spacing_at_any_kind_of_number(x):
    assert formats.get("fp16").spacing(x) == 2.0**-10
    assert math.isnan(formats.get("fp16").spacing(10**400))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float8_e5m2, torch.int32])
def test_a_histogram_of_any_tensor(dtype):
    expected = ExponentHistogram.of([1.0, -3.0, 0.0])
    assert ExponentHistogram.of(torch.tensor([1.0, -3.0, 0.0]).to(dtype)) == expected
    negative = torch.tensor([1 - 3j, 0], requires_grad=True).conj().imag
    assert ExponentHistogram.of(negative) == ExponentHistogram.of([3.0, 0.0])


def test_a_dtype_of_torch_is_a_name() -> None:
    import torch

    assert formats.get(torch.bfloat16) is formats.get("bfloat16")
    with pytest.raises(ValueError, match="no floating-point format is called None"):
        formats.get(None)
