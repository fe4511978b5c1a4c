"""Rounding to a format, against its own list of values, torch's casts, ml_dtypes and gfloat."""

import math
from dataclasses import replace

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from depthgauge import formats

ALL = pytest.mark.parametrize("fmt", formats.FORMATS, ids=lambda fmt: fmt.name)
LISTED = pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
CAST = pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "float8_e5m2"])
GFLOAT = {
    "float16": gfloat.formats.format_info_binary16,
    "bfloat16": gfloat.formats.format_info_bfloat16,
    "float32": gfloat.formats.format_info_binary32,
    "tf32": replace(gfloat.formats.format_info_bfloat16, name="tf32", k=19, precision=11, num_high_nans=2**10 - 1),
    "float8_e4m3fn": gfloat.formats.format_info_ocp_e4m3,
    "float8_e5m2": gfloat.formats.format_info_ocp_e5m2,
}
SATURATES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 13)


def same(x, y):
    """Equal bit for bit, but for the bits of a NaN."""
    x, y = np.asarray(x), np.asarray(y)
    return x.dtype == y.dtype and np.array_equal(x, y, equal_nan=True) and np.array_equal(*map(signs, (x, y)))


def signs(x):
    return np.signbit(x) & ~np.isnan(x)


def random_bits(n, dtype=np.float32, seed=0):
    """Values with every exponent as likely as every other, and some NaN."""
    integers = np.dtype(f"u{np.dtype(dtype).itemsize}")
    return np.random.default_rng(seed).integers(0, np.iinfo(integers).max, n, integers, endpoint=True).view(dtype)


def sixteen_bits(dtype):
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


def values_of(fmt):
    """All values from 0 up to the largest, in order, those at even places with an even significand; then the next."""
    dtype = getattr(torch, fmt.dtype)
    integers = torch.int8 if dtype.itemsize == 1 else torch.int16
    codes = torch.arange(2 ** (8 * dtype.itemsize - 1), dtype=torch.int32).to(integers)
    listed = codes.view(dtype).double().numpy()
    listed = listed[np.isfinite(listed)]
    return np.append(listed, 2 * listed[-1] - listed[-2])


@LISTED
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_every_tie_and_its_neighbours(name, saturate, kind):
    """In float64, whose values beside a tie are a tie in float32: a cast that passes through float32 fails here."""
    fmt = formats.get(name)
    listed = values_of(fmt)
    down, up = listed[:-1], listed[1:]
    middle = (down + up) / 2
    even = np.where(np.arange(len(down)) % 2 == 0, down, up)
    x = np.concatenate([down, np.nextafter(middle, 0), middle, np.nextafter(middle, np.inf)])
    expected = np.concatenate([down, down, even, up])
    too_large = fmt.max if saturate else math.inf if fmt.has_infinity else math.nan
    expected[expected > fmt.max] = too_large
    for sign in (1.0, -1.0):
        given = sign * x
        found = formats.round(given if kind == "array" else torch.from_numpy(given), fmt, saturate=saturate)
        assert same(found, sign * expected)


@CAST
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_values_of_sixteen_bits_against_torch(name, dtype):
    x = sixteen_bits(dtype)
    x = x[~x.isnan()]  # a signalling NaN of numpy's warns when it is converted
    cast = x.float().to(getattr(torch, name)).float().numpy()
    assert same(formats.round(x.float().numpy(), name), cast)
    assert same(formats.round(x.double().numpy(), name), cast.astype(np.float64))
    assert same(formats.round(x.double(), name), cast.astype(np.float64))
    found = formats.round(x, name)
    assert found.dtype == dtype
    assert same(found.float(), torch.from_numpy(cast).to(dtype).float())


def test_a_numpy_array_of_float16_against_numpy():
    x = sixteen_bits(torch.float16).numpy()
    assert same(formats.round(x, "fp16"), x)
    with np.errstate(over="ignore", invalid="ignore"):  # 65504 is 65536 in bfloat16
        bf16 = x.astype(ml_dtypes.bfloat16)
        assert same(formats.round(x, "bf16"), bf16.astype(np.float16))


def test_torch_saturates_where_the_definition_of_e4m3fn_says_nan():
    """From 2.13 a CPU's cast is our saturating one but for infinity; before, it was the definition."""
    x = torch.from_numpy(random_bits(100_000))
    found = formats.round(x, "float8_e4m3fn")
    cast = x.to(torch.float8_e4m3fn).float()
    beyond = x.abs() > 464
    assert found[beyond].isnan().all()
    assert same(found[~beyond], cast[~beyond])
    if SATURATES:
        assert same(formats.round(x, "float8_e4m3fn", saturate=True), cast)
    else:
        assert same(found, cast)
    limits = torch.tensor([448.0, 464.0, 465.0, math.inf, -math.inf])
    assert formats.round(limits, "e4m3fn", saturate=True).tolist() == [448.0, 448.0, 448.0, 448.0, -448.0]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_against_ml_dtypes(name):
    x = random_bits(100_000)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(getattr(ml_dtypes, name)).astype(np.float32)
    assert same(formats.round(x, name), expected)


@pytest.mark.parametrize("name", GFLOAT)
@pytest.mark.parametrize("saturate", [False, True])
def test_against_gfloat(name, saturate):
    fmt, info = formats.get(name), GFLOAT[name]
    assert (fmt.max, fmt.smallest_subnormal) == (info.max, info.smallest_subnormal)
    dice = np.random.default_rng(1)
    x = np.ldexp(dice.uniform(-2, 2, 10_000), dice.integers(-160, 140, 10_000))
    x = np.concatenate([x, [0.0, -0.0, math.inf, -math.inf, math.nan]])
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore", invalid="ignore"):
            x = x.astype(dtype)
            expected = gfloat.round_ndarray(info, x.astype(np.float64), gfloat.RoundMode.TiesToEven, saturate)
            expected = expected.astype(dtype)
        assert same(formats.round(x, fmt, saturate=saturate), expected)


@ALL
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(), min_size=1, max_size=40), saturate=st.booleans())
def test_rounding_is_idempotent_monotone_and_odd(fmt, values, saturate):
    x = np.sort(np.array(values))
    found = formats.round(x, fmt, saturate=saturate)
    assert same(formats.round(found, fmt, saturate=saturate), found)
    assert same(formats.round(-x, fmt, saturate=saturate), -found)
    numbers = found[~np.isnan(found)]
    assert (numbers[:-1] <= numbers[1:]).all()
    assert (np.isnan(x) <= np.isnan(found)).all()


@ALL
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_and_tensors_round_alike(fmt, saturate, dtype):
    x = random_bits(20_000, dtype, 4)
    found = formats.round(x, fmt, saturate=saturate)
    assert same(found, formats.round(torch.from_numpy(x), fmt, saturate=saturate))
    assert same(found, np.concatenate([formats.round(x[:7], fmt, saturate=saturate), found[7:]]))


@ALL
def test_kind_shape_dtype_and_the_input_itself_are_kept(fmt):
    x = random_bits(24, seed=5).reshape(2, 3, 4)
    before, expected = x.copy(), formats.round(x.ravel(), fmt)
    views = [x, x.transpose(2, 0, 1), x[:, ::-2], np.asfortranarray(x), x.astype(">f4"), x[:0], x[0, 0, 0, ...]]
    for view in views:
        found = formats.round(view, fmt)
        assert (type(found), found.shape, found.dtype) == (np.ndarray, view.shape, view.dtype)
        assert not np.shares_memory(found, x)
    assert same(formats.round(x.T, fmt), expected.reshape(2, 3, 4).T)
    assert same(formats.round(x.astype(">f4"), fmt).astype("f4"), expected.reshape(2, 3, 4))
    tensor = torch.from_numpy(x)
    for view in (tensor, tensor.mT, tensor[:, ::2], tensor[:0], tensor[0, 0, 0], tensor[:, :1].expand(2, 3, 4)):
        found = formats.round(view, fmt)
        assert (found.shape, found.dtype) == (view.shape, view.dtype)
        assert same(found, formats.round(view.numpy(), fmt))
    assert same(x, before)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@ALL
def test_tensors_of_eight_bits(fmt, dtype):
    x = torch.arange(256, dtype=torch.uint8).view(dtype)
    found = formats.round(x, fmt)
    assert found.dtype == dtype
    assert same(found.float(), formats.round(x.float(), fmt).to(dtype).float())


def test_numbers():
    assert formats.round(0.1, "fp16") == float(np.float16(0.1))
    assert type(formats.round(0.1, "fp16")) is float
    assert type(formats.round(np.float32(0.1), "fp16")) is np.float32
    assert math.copysign(1, formats.round(-1e-9, "fp16")) == -1


@ALL
def test_no_gradient_flows_through(fmt):
    weight = torch.nn.Parameter(torch.ones(3))
    found = formats.round(weight, fmt)
    assert type(found) is torch.Tensor
    assert not found.requires_grad
    found += 1
    assert weight.tolist() == [1, 1, 1]


@pytest.mark.parametrize("fmt", [*formats.FORMATS, *formats.BLOCKS], ids=lambda fmt: fmt.name)
def test_a_tensor_stays_on_its_device(fmt):
    """A tensor of the meta device has no values: looking at one of them would raise."""
    x = torch.empty(3, 40, dtype=torch.bfloat16, device="meta")
    found = formats.round(x, fmt)
    assert (found.device, found.shape, found.dtype) == (x.device, x.shape, x.dtype)


@ALL
def test_a_mode_that_flushes_subnormal_numbers_changes_nothing(fmt):
    x = torch.from_numpy(random_bits(20_000, seed=12))
    expected = formats.round(x, fmt)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        found = formats.round(x, fmt)
    finally:
        torch.set_flush_denormal(False)
    assert same(found, expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fmt", [*formats.FORMATS, *formats.BLOCKS], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gpu_rounds_as_a_cpu(fmt, dtype):
    x = torch.from_numpy(random_bits(2**16, np.float32, 6)).to(dtype).reshape(16, -1)
    assert same(formats.round(x.cuda(), fmt).double().cpu(), formats.round(x, fmt).double())


# Stochastic rounding. The seeds are fixed; with others a test of this section fails with a probability of 1e-9 for each
# value it draws, so of 1e-7 in all.


def draws(kind, x, fmt, n, seed):
    """n stochastic roundings of each value, as float64."""
    if kind == "array":
        return formats.round(np.repeat(x[:, None], n, 1), fmt, stochastic=np.random.default_rng(seed)).astype(
            np.float64
        )
    tensor = torch.from_numpy(x)[:, None].repeat(1, n)
    return formats.round(tensor, fmt, stochastic=torch.Generator().manual_seed(seed)).double().numpy()


def between(fmt, dtype):
    """Values between neighbours of the format, subnormal and normal ones, and the rest of the way to the upper."""
    low = np.array([0.0, 3 * fmt.smallest_subnormal, fmt.smallest_normal, 1.0, 1 + fmt.epsilon, fmt.max])
    rest = np.array([0.1, 0.5, 0.9, 0.25, 0.001, 0.7])
    step = np.array(
        [fmt.smallest_subnormal] * 3 + [fmt.epsilon] * 2 + [math.ulp(fmt.max) * 2.0 ** (52 - fmt.mantissa_bits)]
    )
    x = (low + rest * step).astype(dtype)
    return x, low, step, (x.astype(np.float64) - low) / step


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "tf32", "float8_e4m3fn", "float8_e5m2"])
def test_stochastic_rounding_goes_up_with_the_probability_of_the_distance(name, dtype, kind):
    fmt, n = formats.get(name), 5_000
    x, low, step, rest = between(fmt, dtype)
    found = draws(kind, x, fmt, n, seed=7)
    found[~np.isfinite(found)] = low[-1] + step[-1]  # what would follow the largest value
    for row, down, up, share in zip(found, low, low + step, rest, strict=True):
        assert set(np.unique(row)) <= {down, up}
        assert stats.binomtest(int((row == up).sum()), n, share).pvalue > 1e-9
    assert same(draws(kind, -x, fmt, n, seed=7)[:-1], -found[:-1])


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_stochastic_rounding_of_float64_to_float32(kind):
    n, low = 5_000, np.array([1.0, 2.0**-140])
    step = np.array([2.0**-23, 2.0**-149])
    found = draws(kind, low + 0.3 * step, "float32", n, seed=8)
    for row, down, up in zip(found, low, low + step, strict=True):
        assert set(np.unique(row)) == {down, up}
        assert stats.binomtest(int((row == up).sum()), n, 0.3).pvalue > 1e-9


@LISTED
@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_stochastic_rounding_leaves_the_values_of_the_format(name, kind):
    listed = values_of(formats.get(name))[:-1]
    x = np.concatenate([listed, -listed, [math.nan], [math.inf] if formats.get(name).has_infinity else []])
    for dtype in (np.float32, np.float64):
        assert same(draws(kind, x.astype(dtype), name, 2, seed=9)[:, 0], x)


def test_a_sum_that_stagnates_grows_under_stochastic_rounding():
    """2048 ones more than 2048 in float16: to nearest it stays; stochastically its mean is exact, its variance known.

    A step of 1 in a spacing of 2 has the variance 1, so the standard error of the mean of 500 sums is sqrt(2048 / 500).
    """
    runs, dice = 500, np.random.default_rng(10)
    nearest, total = np.float32(2048), np.full(runs, 2048, np.float32)
    for _ in range(2048):
        nearest = formats.round(nearest + 1, "fp16")
        total = formats.round(total + 1, "fp16", stochastic=dice)
    assert nearest == 2048
    assert abs(total.mean() - 4096) < 6 * math.sqrt(2048 / runs)


def test_the_generator_decides():
    x = np.random.default_rng(11).normal(size=1000)
    first, again, other = (formats.round(x, "bf16", stochastic=np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.arange(3), {}, "int64"),
        (np.ones(3, complex), {}, "complex128"),
        (torch.arange(3), {}, "torch.int64"),
        ([1.0, 2.0], {}, "list"),
        (np.ones(3), {"stochastic": torch.Generator()}, "numpy.random.Generator, not a torch.Generator"),
        (np.ones(3), {"stochastic": 1}, "not an int"),
        (torch.ones(3), {"stochastic": np.random.default_rng()}, "torch.Generator, not a numpy.Generator"),
        (torch.ones(3), {"stochastic": torch.Generator}, "not the class torch.Generator"),
        (None, {}, "not None"),
        (np.array([1.0, None]), {}, "not object"),
        (np.ones(3, np.longdouble), {}, "float32 or float64"),
        (np.ma.masked_greater([1.0, 9.0], 5.0), {}, "a masked array"),
        (torch.ones(3, dtype=torch.complex64), {}, "torch.complex64"),
        (torch.eye(3).to_sparse(), {"fmt": "tf32"}, "x is a sparse_coo tensor"),
        (torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), {"fmt": "nvfp4"}, "x is a nested tensor"),
        (np.ones(3), {"saturate": "no"}, "saturate is a str"),
        (np.ones(3), {"saturate": np.ones(3, bool)}, "saturate is a numpy.ndarray"),
    ],
)
def test_what_cannot_be_rounded(x, options, message):
    with pytest.raises(TypeError, match=message):
        formats.round(x, **{"fmt": "fp16", **options})


@pytest.mark.parametrize("axis", [2, -3, None, "a", 1.0, (0, 1), True])
@pytest.mark.parametrize("x", [np.ones((2, 3)), torch.ones(2, 3), np.ones((0, 3))], ids=["array", "tensor", "empty"])
def test_an_axis_that_there_is_not(x, axis):
    with pytest.raises(ValueError, match=r"axis is .*, where a whole number from -2 to 1 was expected"):
        formats.round(x, "nvfp4", axis=axis)


def test_what_may_be_rounded_though_it_looks_odd():
    for fmt in ("tf32", "mxfp8_e4m3"):
        for x in (np.array(1.5), np.ones(0), torch.tensor(1.5), torch.ones(0), np.ones(3, ">f4")):
            assert same(formats.round(x, fmt, axis=0), x)
    negative = torch.full((3,), 1.1j).conj().imag  # torch notes the sign, and leaves the bits as they were
    assert same(formats.round(negative, "tf32"), -formats.round(torch.full((3,), 1.1), "tf32"))
