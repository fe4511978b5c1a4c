"""Fractions lost by a format against the rounding itself, done by numpy and torch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthgauge import formats, theory

NAMES = ["float16", "bfloat16", "float32", "float8_e4m3fn", "float8_e5m2", "tf32"]
SAMPLES = 200_000


def binomial(p, n=SAMPLES, errors=5.0):
    """Five standard errors of a proportion, and one count."""
    return errors * math.sqrt(max(p * (1 - p), 0) / n) + 1 / n


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
        ("float8_e4m3fn", torch.float8_e4m3fn),
        ("float8_e5m2", torch.float8_e5m2),
    ],
)
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0])
def test_underflow_against_rounding(name, dtype, loss_scale):
    fmt = formats.get(name)
    mu, sigma = math.log(fmt.smallest_subnormal) - 2.0, 4.0
    g = np.exp(np.random.default_rng(0).normal(mu, sigma, SAMPLES)) * loss_scale
    measured = (torch.from_numpy(g).to(torch.float32).to(dtype).float() == 0).double().mean().item()
    expected = theory.underflow_fraction(name, mu, sigma, loss_scale)
    assert 0.01 < expected < 0.99
    assert measured == pytest.approx(expected, abs=binomial(expected))


@pytest.mark.parametrize("name", NAMES)
def test_half_the_smallest_subnormal_is_the_median(name):
    mu = math.log(formats.get(name).smallest_subnormal) - math.log(2)
    assert theory.underflow_fraction(name, mu, 1.7, 1.0) == pytest.approx(0.5, abs=1e-13)
    assert theory.underflow_fraction(name, mu - 1e-9, 0.0, 1.0) == 1
    assert theory.underflow_fraction(name, mu + 1e-9, 0.0, 1.0) == 0


@given(st.sampled_from(NAMES), st.floats(-60, 0), st.floats(0.01, 8), st.floats(1, 1e6))
def test_a_loss_scale_is_a_shift(name, mu, sigma, scale):
    shifted = theory.underflow_fraction(name, mu + math.log(scale), sigma, 1.0)
    scaled = theory.underflow_fraction(formats.get(name), mu, sigma, scale)
    assert scaled == pytest.approx(shifted, rel=1e-9, abs=1e-300)
    assert scaled <= theory.underflow_fraction(name, mu, sigma, 1.0)


@pytest.mark.parametrize("std", [0.02, 1.0, 3e-5])
@pytest.mark.parametrize(
    "update", [1e-3, -1e-3, 2.0**-17, -(2.0**-17), 2.0**-20, 1e-5, -3e-6, 1e-7, 2.0**-25, 2.0**-26]
)
def test_lost_updates_against_float16(std, update):
    w = np.random.default_rng(7).normal(0, std, SAMPLES).astype(np.float16).astype(np.float64)
    measured = ((w + update).astype(np.float16) == w).mean()
    expected = theory.lost_update_fraction("fp16", std, update)
    assert measured == pytest.approx(expected, abs=binomial(expected))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("float8_e4m3fn", torch.float8_e4m3fn), ("float8_e5m2", torch.float8_e5m2)],
)
@pytest.mark.parametrize("update", [2.0**-4, -(2.0**-5), 0.02, 2.0**-10, 1.5 * 2.0**-9, 0.3])
def test_lost_updates_against_torch(name, dtype, update):
    w = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(2)).to(dtype).float()
    measured = ((w + update).to(dtype).float() == w).double().mean().item()
    expected = theory.lost_update_fraction(name, 1.0, update)
    assert measured == pytest.approx(expected, abs=binomial(expected))


@pytest.mark.parametrize("exponent", range(-12, 2))
@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn"])
def test_lost_updates_exactly_by_enumeration(name, exponent):
    """Every value of an 8-bit format, each with the mass of the interval that rounds to it: no sampling."""
    fmt, std = formats.get(name), 0.4
    dtype = getattr(torch, fmt.dtype)
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float().double()
    values = torch.unique(values[torch.isfinite(values)]).numpy()  # one zero of the two
    middle = (values[1:] + values[:-1]) / 2
    cdf = np.array([0.0, *(0.5 * math.erfc(-x / std / math.sqrt(2)) for x in middle), 1.0])
    for update in (2.0**exponent, -(2.0**exponent), 1.3 * 2.0**exponent):
        kept = torch.from_numpy(values + update).to(torch.float32).to(dtype).double().numpy() == values
        expected = float(np.diff(cdf)[kept].sum())
        assert theory.lost_update_fraction(name, std, update) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("exponent", range(-9, 0))
@pytest.mark.parametrize("name", ["float8_e5m2", "float8_e4m3fn"])
def test_lost_decay_exactly_by_enumeration(name, exponent):
    """As above, the product with 1 - decay rounded once."""
    fmt, std = formats.get(name), 0.4
    dtype = getattr(torch, fmt.dtype)
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float().double()
    values = torch.unique(values[torch.isfinite(values)]).numpy()
    middle = (values[1:] + values[:-1]) / 2
    cdf = np.array([0.0, *(0.5 * math.erfc(-x / std / math.sqrt(2)) for x in middle), 1.0])
    for decay in (2.0**exponent, 1.3 * 2.0**exponent, 1.7 * 2.0**exponent):
        kept = torch.from_numpy(values * (1 - decay)).to(torch.float32).to(dtype).double().numpy() == values
        expected = float(np.diff(cdf)[kept].sum())
        assert theory.lost_decay_fraction(name, std, decay) == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_decay_moves_no_weight_up_to_a_quarter_of_the_spacing_and_every_one_from_half_of_it(name):
    """Weights whose subnormals and zeros weigh nothing."""
    edge = 2.0 ** -(formats.get(name).mantissa_bits + 2)
    fmt = formats.Format("wide", 11, formats.get(name).mantissa_bits, 2.0**60, 2.0**-60, 2.0**-80, "float64")
    assert theory.lost_decay_fraction(fmt, 1.0, 0.999 * edge) == pytest.approx(1, abs=1e-15)
    assert theory.lost_decay_fraction(fmt, 1.0, edge) == pytest.approx(1, abs=1e-15)
    assert 0.1 < theory.lost_decay_fraction(fmt, 1.0, 1.5 * edge) < 0.9
    assert theory.lost_decay_fraction(fmt, 1.0, 2 * edge) == pytest.approx(0, abs=1e-15)
    assert theory.lost_decay_fraction(name, 1.0, 0.0) == 1


def test_updates_of_float32_and_tf32_follow_the_spacing():
    """Below 2^-14 of the weights nothing of the format but its mantissa matters."""
    for shift in (0, 3):
        tf32 = theory.lost_update_fraction("tf32", 1.0, 0.9 * 2.0 ** (-11 - shift))
        float32 = theory.lost_update_fraction("float32", 1.0, 0.9 * 2.0 ** (-24 - shift))
        # both lose exactly binades from 2^-shift; cells round over their edges by half a spacing of tf32
        assert tf32 == pytest.approx(float32, abs=2.0**-11)
        assert float32 == pytest.approx(math.erfc(2.0**-shift / math.sqrt(2)), abs=2.0**-20)


@given(st.sampled_from(NAMES), st.floats(1e-4, 1e2), st.floats(1e-12, 10), st.floats(1.0, 100))
def test_a_larger_update_is_lost_less_often(name, std, update, factor):
    fewer = theory.lost_update_fraction(name, std, update * factor)
    more = theory.lost_update_fraction(name, std, update)
    assert 0 <= fewer <= more + 1e-12 <= 1 + 1e-12


def test_no_update_is_always_lost():
    assert theory.lost_update_fraction("fp16", 1.0, 0.0) == 1


@pytest.mark.parametrize(("factor", "top"), [(1.5, True), (0.8, False)])
@pytest.mark.parametrize("name", NAMES)
def test_a_steady_walk_leaves_when_the_product_does(factor, top, name):
    fmt = formats.get(name)
    depth = 0
    while fmt.smallest_subnormal <= factor**depth <= fmt.max:
        depth += 1
    found = theory.exit_depth(math.log(factor), 0.0, name)
    assert (found.median, found.mean, found.overflow) == (depth, depth, float(top))


@pytest.mark.parametrize(("drift", "std"), [(0.1, 0.5), (-0.3, 0.7), (0.0, 1.0), (0.02, 0.8), (-0.01, 1.5)])
def test_a_random_walk_leaves_as_predicted(drift, std):
    """Against 4,000 walks. Five standard errors, and 2 % for the continuity correction's own order."""
    fmt, walks = formats.get("fp16"), 4000
    rng = np.random.default_rng(11)
    low, high = math.log(fmt.smallest_subnormal), math.log(fmt.max)
    x = np.zeros(walks)
    depth = np.zeros(walks)
    over = np.zeros(walks, dtype=bool)
    active = np.ones(walks, dtype=bool)
    step = 0
    while active.any():
        step += 1
        x[active] += rng.normal(drift, std, active.sum())
        leaves = active & ((x > high) | (x < low))
        depth[leaves], over[leaves] = step, x[leaves] > high
        active &= ~leaves
    found = theory.exit_depth(drift, std, fmt)
    assert over.mean() == pytest.approx(found.overflow, abs=binomial(found.overflow, walks) + 0.01)
    assert depth.mean() == pytest.approx(found.mean, rel=0.02 + 5 * depth.std() / depth.mean() / math.sqrt(walks))
    # the median of n values has rank error sqrt(n)/2
    ordered = np.sort(depth)
    rank = int(5 * math.sqrt(walks) / 2)
    assert 0.98 * ordered[walks // 2 - rank] - 1 <= found.median <= 1.02 * ordered[walks // 2 + rank] + 1


def test_exit_depth_at_the_ends():
    assert theory.exit_depth(0.0, 0.0, "fp16").median == math.inf
    assert theory.exit_depth(1.0, 1.0, "fp16", start=100.0) == (0.0, 0.0, 1.0)
    assert theory.exit_depth(1.0, 1.0, "fp16", start=-100.0) == (0.0, 0.0, 0.0)
    nearly = theory.exit_depth(0.5, 1e-4, "fp32")
    assert nearly.median == pytest.approx(math.log(formats.get("fp32").max) / 0.5, rel=1e-3)
    assert nearly.overflow == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.underflow_fraction("fp16", 0.0, -1.0, 1.0), "sigma is -1.0"),
        (lambda: theory.underflow_fraction("fp16", 0.0, 1.0, 0.0), "loss_scale is 0.0"),
        (lambda: theory.underflow_fraction("fp15", 0.0, 1.0, 1.0), "nearest"),
        (lambda: theory.lost_update_fraction("fp16", 0.0, 1.0), "weight_std is 0.0"),
        (lambda: theory.lost_update_fraction("fp16", 1.0, math.nan), "update is nan"),
        (lambda: theory.exit_depth(math.inf, 1.0, "fp16"), "drift is inf"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("point", [0.5, 1.0, -3.0, 6.0, 1.5])
def test_landing_on_a_point_against_rounding(name, dtype, point):
    """Every value that rounds to the point, found by bisection on the doubles around it, has the mass of its cell."""
    std = 1.3
    below, above = (_last(dtype, point, point + way) for way in (-1.0, 1.0))
    low, high = sorted((below, above))
    expected = (math.erf(high / std / math.sqrt(2)) - math.erf(low / std / math.sqrt(2))) / 2
    # torch rounds a double through float32, which moves either end of the cell by up to 2^-24 of the point
    assert theory.landing_probability(name, point, std) == pytest.approx(expected, rel=3e-4)


def _last(dtype, point, away):
    """The number furthest towards `away` that rounds to `point`."""
    inside, outside = point, away
    for _ in range(60):
        middle = (inside + outside) / 2
        if float(torch.tensor(middle, dtype=torch.float64).to(dtype)) == point:
            inside = middle
        else:
            outside = middle
    return inside


def test_share_of_many_deviations_is_the_mean_of_their_chances():
    """To the hundredth of a logarithm that deviations are taken to; what is 0 for certain lands on 0 alone."""
    stds = np.array([[0.5, 1.0], [0.0, 2.0]])
    for point, certain in ((0.0, 1.0), (1.0, 0.0)):
        chances = [theory.landing_probability("bf16", point, std) for std in (0.5, 1.0, 2.0)]
        assert theory.landing_share("bf16", point, stds) == pytest.approx((sum(chances) + certain) / 4, rel=0.02)


def test_landing_is_a_density_times_a_spacing_in_a_fine_format():
    """Around 1 the spacing of float32 is 2^-23 above and 2^-24 below: a cell of 1.5 x 2^-24."""
    expected = math.exp(-1 / 2) / math.sqrt(2 * math.pi) * 1.5 * 2.0**-24
    assert theory.landing_probability("fp32", 1.0, 1.0) == pytest.approx(expected, rel=1e-6)
    zero = 2.0**-24 / math.sqrt(2 * math.pi)  # of float16: between minus and plus half its smallest subnormal
    assert theory.landing_probability("fp16", 0.0, 1.0) == pytest.approx(zero, rel=1e-6)


def test_every_value_of_a_small_format_is_landed_on_somewhere():
    """All finite values of float8 e5m2 and their cells share out the whole line, but for what overflows."""
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).double()
    finite = values[values.isfinite()].unique()
    total = sum(theory.landing_probability("e5m2", float(value), 3.0) for value in finite)
    assert total == pytest.approx(1.0, abs=1e-12)


def test_a_point_that_the_format_does_not_hold_is_never_met():
    assert theory.landing_probability("bf16", 0.1, 1.0) == 0
    assert theory.landing_probability("fp16", 1e6, 1.0) == 0
