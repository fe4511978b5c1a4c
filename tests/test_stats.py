"""The statistics against closed forms, published examples, full enumeration, and simulation.

Simulated coverage is a binomial share: its tolerance is four of its own standard deviations (`within`), wide enough
that a correct method fails once in 16,000 times, and seeds are fixed.
"""

from __future__ import annotations

import doctest
import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from depthgauge import stats
from depthgauge.stats import Answer
from depthgauge.training import unsettled

Array = NDArray[np.float64]

patient = settings(deadline=None)  # a busy machine is no failure

values = st.floats(-1e6, 1e6, allow_subnormal=False).map(lambda v: round(v, 3))


def samples(least: int = 5, most: int = 12) -> st.SearchStrategy[list[float]]:
    return st.lists(values, min_size=least, max_size=most)


def within(share: float, nominal: float, n: int) -> bool:
    return abs(share - nominal) <= 4 * math.sqrt(nominal * (1 - nominal) / n)


def simulated(seed: int, runs: int, one: Callable[[np.random.Generator], bool]) -> float:
    generator = np.random.default_rng(seed)
    return sum(one(generator) for _ in range(runs)) / runs


# One sample


def test_mean_is_students_interval() -> None:
    x = [5.1, 4.9, 6.2, 5.7, 5.0, 5.5]
    got = stats.mean(x, 0.9, unit="s")
    low, high = scipy.stats.ttest_1samp(x, 0).confidence_interval(0.9)
    assert (got.value, got.low, got.high) == pytest.approx((np.mean(x), low, high), rel=1e-12)
    assert (got.n, got.unit, got.method) == (6, "s", "mean, Student t, 90 %")


@pytest.mark.parametrize(("n", "log"), [(5, False), (5, True), (19, False), (40, True)])
def test_mean_covers_as_often_as_it_says(n: int, *, log: bool) -> None:
    def one(generator: np.random.Generator) -> bool:
        x = generator.normal(1.0, 2.0, n)
        return stats.mean(np.exp(x) if log else x, log=log).contains(math.e if log else 1.0)

    assert within(simulated(n, 2_000, one), 0.95, 2_000)


def test_geometric_mean_is_a_mean_of_logarithms() -> None:
    x = np.array([1.0, 10.0, 100.0, 1000.0, 1e4])
    got, logs = stats.mean(x, log=True), stats.mean(np.log10(x))
    assert (got.value, got.low, got.high) == pytest.approx((100.0, 10**logs.low, 10**logs.high), rel=1e-12)
    assert got.method.startswith("geometric mean")


@pytest.mark.parametrize("scale", [2.0**1000, 2.0**-1000])
def test_extreme_magnitudes_do_not_overflow_on_the_way(scale: float) -> None:
    x = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    plain, scaled = stats.mean(x), stats.mean(x * scale)
    assert (scaled.value, scaled.low, scaled.high) == (plain.value * scale, plain.low * scale, plain.high * scale)
    assert stats.paired(x * scale, 0 * x).effect.low == pytest.approx(stats.paired(x, 0 * x).effect.low * scale)


@pytest.mark.parametrize("make", [stats.mean, stats.median])
@pytest.mark.parametrize("n", range(5))
def test_fewer_than_five_values_are_points_only(make: Callable[..., stats.Estimate], n: int) -> None:
    got = make(np.arange(n))
    assert not got.has_interval
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert not got.contains(got.value)
    assert got.n == n
    assert "points only" in got.method
    assert math.isnan(got.value) if n == 0 else got.value == (n - 1) / 2


@pytest.mark.parametrize(
    ("bad", "mean"), [(math.nan, math.nan), (math.inf, math.inf), (-math.inf, -math.inf)], ids=["nan", "inf", "-inf"]
)
def test_a_value_that_is_not_finite_is_neither_dropped_nor_averaged_away(bad: float, mean: float) -> None:
    got = stats.mean([1.0, 2.0, 3.0, 4.0, 5.0, bad])
    assert got.value == pytest.approx(mean, nan_ok=True)
    assert not got.has_interval
    assert got.n == 6
    assert "1 of 6 values not finite" in got.method


def test_a_sum_that_overflows_hides_no_infinity() -> None:
    assert stats.mean([1e308, 1e308, -math.inf]).value == -math.inf
    assert stats.paired([1e308, 0.0], [-1e308, 1.0]).effect.value == math.inf


def test_opposite_infinities_have_no_mean() -> None:
    assert math.isnan(stats.mean([1.0, 2.0, 3.0, math.inf, -math.inf]).value)
    assert math.isnan(stats.mean([math.nan] * 8).value)


def test_a_zero_makes_the_geometric_mean_zero() -> None:
    got = stats.mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], log=True)
    assert got.value == 0.0
    assert not got.has_interval


def test_equal_values() -> None:
    got = stats.mean([0.1] * 7)
    assert (got.value, got.low, got.high) == (0.1, 0.1, 0.1)
    assert "all 7 values equal" in got.method


def test_bca_is_the_bootstrap_that_scipy_computes() -> None:
    x = np.random.default_rng(4).exponential(size=40)
    got = stats.mean(x, interval="bca", seed=1)
    theirs = scipy.stats.bootstrap(
        (x,), np.mean, n_resamples=9_999, method="BCa", rng=np.random.default_rng(2), vectorized=True
    )
    # Monte-Carlo error of a bootstrap quantile: sqrt(p (1 - p) / B) / density, of two independent draws.
    error = theirs.standard_error
    density = scipy.stats.norm.pdf(1.96) / error
    tolerance = 4 * math.sqrt(2 * 0.025 * 0.975 / 9_999) / density
    assert got.low == pytest.approx(theirs.confidence_interval.low, abs=tolerance)
    assert got.high == pytest.approx(theirs.confidence_interval.high, abs=2 * tolerance)  # the longer tail
    t = stats.mean(x)
    assert got.high - got.value > 1.05 * (got.value - got.low)  # it follows the skew, which t cannot
    assert t.high - t.value == pytest.approx(t.value - t.low)


def test_bca_is_deterministic_and_says_its_seed() -> None:
    x = np.random.default_rng(0).normal(size=25)
    one, again, other = (stats.mean(x, interval="bca", seed=seed) for seed in (3, 3, 4))
    assert one == again == stats.mean(x[::-1], interval="bca", seed=3)
    assert (one.low, one.high) != (other.low, other.high)
    assert "seed 3" in one.method


def test_bca_of_equal_values_is_the_value() -> None:
    got = stats.mean([2.0] * 20, interval="bca")
    assert (got.low, got.high) == (2.0, 2.0)


@pytest.mark.parametrize(
    ("events", "n", "low", "high"),  # Newcombe 1998, Statist. Med. 17, 857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_as_published(events: int, n: int, low: float, high: float) -> None:
    got = stats.rate(events, n)
    assert got.value == events / n
    assert (got.low, got.high) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(5, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
@patient
def test_wilsons_ends_solve_the_score_equation(counts: tuple[int, int], confidence: float) -> None:
    events, n = counts
    got, mirrored = stats.rate(events, n, confidence), stats.rate(n - events, n, confidence)
    z = scipy.stats.norm.ppf(0.5 + confidence / 2)
    for end in (got.low, got.high):
        assert (got.value - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-12)
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert (got.low, got.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)


def test_median_of_ten_lies_between_the_second_and_the_ninth() -> None:
    got = stats.median(range(10))  # P(2 <= Bin(10, 1/2) <= 8) = 1002/1024, and 912/1024 one further in
    assert (got.value, got.low, got.high) == (4.5, 1.0, 8.0)


@pytest.mark.parametrize(("n", "q", "confidence"), [(5, 0.5, 0.9), (17, 0.5, 0.95), (40, 0.1, 0.95), (40, 0.9, 0.8)])
def test_quantile_intervals_are_the_tightest_that_cover(n: int, q: float, confidence: float) -> None:
    x = np.arange(1.0, n + 1)
    got = stats.quantile(x, q, confidence)
    below = 0 if got.low == -math.inf else int(got.low)  # rank of the end: P(quantile < x_(k)) = P(Bin <= k - 1)
    above = n + 1 if got.high == math.inf else int(got.high)
    law, tail = scipy.stats.binom(n, q), (1 - confidence) / 2
    assert law.cdf(below - 1) <= tail < law.cdf(below)
    assert law.sf(above - 1) <= tail < law.sf(above - 2)


@pytest.mark.parametrize(("q", "n", "rank"), [(0.07, 101, 7), (0.29, 101, 29), (0.58, 51, 29), (0.9, 11, 9)])
def test_a_quantile_that_is_one_of_the_values_takes_no_part_of_the_next(q: float, n: int, rank: int) -> None:
    x = np.where(np.arange(n) <= rank, np.arange(n), math.inf)  # 0.07 * 100 is 7.000000000000001 in floating point
    assert stats.quantile(x, q).value == rank
    assert stats.quantile(np.where(np.arange(n) < rank, -math.inf, np.arange(n)), q).value == rank


def test_quantile_where_the_sample_cannot_bound_it() -> None:
    got = stats.quantile(range(20), 0.99)
    assert got.high == math.inf
    assert got.low > 0


def test_median_takes_infinity_and_refuses_to_order_nan() -> None:
    got = stats.median([1.0, 2.0, 3.0, 4.0, math.inf, math.inf, math.inf, 2.5, 2.2])
    assert (got.value, got.low, got.high) == (3.0, 2.0, math.inf)
    unordered = stats.median([1.0, 2.0, 3.0, 4.0, 5.0, math.nan])
    assert math.isnan(unordered.value)
    assert not unordered.has_interval
    assert "1 of 6 values not a number" in unordered.method


@given(samples(5, 30), st.randoms())
@patient
def test_order_of_a_sample_is_irrelevant(x: list[float], random: object) -> None:
    shuffled = x.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis types its generator as object
    assert stats.mean(x) == stats.mean(shuffled)
    assert stats.median(x) == stats.median(shuffled)
    assert stats.variance_ratio(x, 1.0).effect == stats.variance_ratio(shuffled, 1.0).effect
    assert str(stats.against(x, 1.0)) == str(stats.against(shuffled, 1.0))


def test_zeros_have_no_sign() -> None:
    zeros = [-0.0, 0.0, -0.0, 0.0, 0.0]
    for test in ("t", "median", "sign-flip"):
        told = {str(stats.against(x, 1.0, test=test)) for x in (zeros, zeros[::-1], [-0.0] * 5, [0.0] * 5)}
        assert len(told) == 1
        assert not told.pop().startswith("-")


@given(samples(5, 30), st.sampled_from([0.5, 0.8, 0.95, 0.99]))
@patient
def test_intervals_contain_their_estimate_and_grow_with_confidence(x: list[float], confidence: float) -> None:
    for make in (stats.mean, stats.median):
        got, wider = make(x, confidence), make(x, 0.999)
        assert got.low <= got.value <= got.high
        assert wider.low <= got.low
        assert got.high <= wider.high


@given(samples(5, 20), st.sampled_from([-4.0, -1.0, 0.25, 2.0]))
@patient
def test_scaling_by_a_power_of_two_scales_everything(x: list[float], factor: float) -> None:
    for make in (stats.mean, stats.median):
        plain, scaled = make(x), make(np.array(x) * factor)
        ends = sorted([plain.low * factor, plain.high * factor])
        assert (scaled.value, scaled.low, scaled.high) == pytest.approx((plain.value * factor, *ends), rel=1e-12)


# Two samples

DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], dtype=float)


def test_sign_flips_on_darwins_maize_as_fisher_counted_them() -> None:
    got = stats.paired(DARWIN, 0 * DARWIN)  # Fisher 1935, The Design of Experiments, section 21: 863 of 32,768 a tail
    assert got.p == 2 * 863 / 2**15
    assert got.effect.value == pytest.approx(314 / 15)
    assert got.answer is Answer.INCONCLUSIVE
    assert stats.paired(DARWIN, 0 * DARWIN, test="t").p == pytest.approx(0.0497, abs=5e-5)


def flips(x: Array, theta: float) -> float:
    """The two-sided p-value, by trying every flip."""
    d = x - theta
    sums = np.array([(d * signs).sum() for signs in itertools.product((1, -1), repeat=len(d))])
    slack = 1e-9 * np.abs(d).sum()
    return min(1.0, 2 * min(float(np.mean(sums >= d.sum() - slack)), float(np.mean(sums <= d.sum() + slack))))


@given(st.lists(st.integers(-9, 9).map(float), min_size=5, max_size=8), st.integers(-9, 9))
@settings(patient, max_examples=60)
def test_sign_flips_are_all_of_them(x: list[float], theta: int) -> None:
    d = np.array(x)
    assert stats.against(d, theta, test="sign-flip").p == flips(d, theta)


@given(samples(6, 9), st.sampled_from([0.8, 0.9, 0.95]), st.floats(-2, 2))
@settings(patient, max_examples=60)
def test_an_interval_holds_exactly_what_its_test_does_not_reject(x: list[float], confidence: float, at: float) -> None:
    d = np.array(x)
    theta = float(d.mean() + at * (np.ptp(d) + 1))
    for test in ("sign-flip", "t", "median"):
        got = stats.against(d, theta, test=test, confidence=confidence)
        if np.ptp(d) > 0 and min(abs(theta - got.effect.low), abs(theta - got.effect.high)) > 1e-6:
            assert (got.p <= got.alpha) == (not got.effect.contains(theta)), test


@pytest.mark.parametrize(("n", "k"), [(6, 1), (8, 6), (11, 51)])
def test_sign_flip_intervals_cover_as_often_as_they_say(n: int, k: int) -> None:
    exact = 1 - 2 * k / 2**n  # k = floor(0.05 * 2^(n - 1)); any symmetric law, here one without a mean

    def one(generator: np.random.Generator) -> bool:
        return stats.against(generator.standard_cauchy(n) + 3, 3.0, test="sign-flip").effect.contains(3.0)

    assert k == math.floor(0.05 * 2 ** (n - 1))
    assert within(simulated(n, 3_000, one), exact, 3_000)


def test_five_pairs_bound_nothing_at_95_percent() -> None:
    got = stats.paired([1.0, 2, 3, 4, 5], [0.0] * 5)
    assert got.p == 2 / 2**5
    assert (got.effect.low, got.effect.high) == (-math.inf, math.inf)
    assert got.answer is Answer.INCONCLUSIVE
    assert stats.paired([1.0, 2, 3, 4, 5], [0.0] * 5, confidence=0.9).answer is Answer.DIFFERENT


def test_many_pairs_are_students_test() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(2, 17))
    got, theirs = stats.paired(a, b), scipy.stats.ttest_rel(a, b)
    assert got.p == pytest.approx(theirs.pvalue, rel=1e-10)
    assert got.z == pytest.approx(theirs.statistic, rel=1e-12)
    assert (got.effect.low, got.effect.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-10)


@given(samples(6, 10))
@patient
def test_swapping_the_pair_turns_the_effect_round(a: list[float]) -> None:
    b = np.sin(a)
    for test in ("sign-flip", "t", "median"):
        one, other = stats.paired(a, b, test=test), stats.paired(b, a, test=test)
        assert other.p == pytest.approx(one.p, rel=1e-9)
        assert -other.effect.value == pytest.approx(one.effect.value, rel=1e-9)
        assert -other.effect.high == pytest.approx(one.effect.low, rel=1e-9)


def test_ratios_do_not_depend_on_the_unit() -> None:
    generator = np.random.default_rng(5)
    a, b = generator.lognormal(size=(2, 9))
    one, other = stats.paired(a, b, log=True, margin=1.5), stats.paired(1024 * a, 1024 * b, log=True, margin=1.5)
    assert one.effect.value == pytest.approx(math.exp(np.mean(np.log(a / b))), rel=1e-12)
    assert one.reference == 1.0
    assert (other.effect.low, other.effect.high) == pytest.approx((one.effect.low, one.effect.high), rel=1e-12)
    assert (other.p, other.p_equivalent) == (one.p, one.p_equivalent)


def shifted(by: float, spread: float, n: int = 12) -> Array:
    """n values with exactly this mean and standard deviation."""
    x = np.linspace(-1, 1, n)
    centred: Array = spread * x / x.std(ddof=1)
    return by + centred


@pytest.mark.parametrize(
    ("by", "spread", "margin", "answer", "negligible"),
    [
        (1.0, 0.1, 0.5, Answer.BEYOND, False),
        (0.0, 0.1, 0.5, Answer.EQUIVALENT, False),
        (0.2, 0.1, 0.5, Answer.NEGLIGIBLE, True),
        (0.5, 0.1, 0.5, Answer.INCONCLUSIVE, False),  # different, but beyond the margin or inside it?
        (0.0, 5.0, 0.5, Answer.INCONCLUSIVE, False),
        (0.0, 0.1, None, Answer.INCONCLUSIVE, False),
        (0.2, 0.1, None, Answer.DIFFERENT, False),
    ],
)
@pytest.mark.parametrize("test", ["sign-flip", "t", "median"])
def test_answers(
    by: float, spread: float, margin: float | None, answer: Answer, test: str, *, negligible: bool
) -> None:
    d = shifted(by, spread)
    got = stats.paired(d, 0 * d, margin=margin, test=test)  # type: ignore[arg-type]  # parametrize gives str
    assert (got.answer, got.negligible) == (answer, negligible)
    assert got.above == (answer in {Answer.DIFFERENT, Answer.BEYOND})
    assert not got.below


def test_equivalence_is_two_one_sided_tests() -> None:
    d = np.random.default_rng(8).normal(0.1, 0.3, 11)
    got = stats.paired(d, 0 * d, margin=0.4, test="t")
    above = scipy.stats.ttest_1samp(d, -0.4, alternative="greater").pvalue
    below = scipy.stats.ttest_1samp(d, 0.4, alternative="less").pvalue
    assert got.p_equivalent == pytest.approx(max(above, below), rel=1e-10)


@given(samples(6, 9), st.floats(0.1, 100))
@settings(patient, max_examples=60)
def test_equivalent_means_the_90_percent_interval_is_inside(x: list[float], margin: float) -> None:
    d = np.array(x) / 1e5
    for test in ("sign-flip", "t", "median"):
        got = stats.paired(d, 0 * d, margin=margin, test=test)
        inner = stats.paired(d, 0 * d, confidence=0.9, test=test).effect
        if np.ptp(d) > 0 and min(abs(abs(inner.low) - margin), abs(abs(inner.high) - margin)) > 1e-9:
            assert got.inside == (-margin < inner.low and inner.high < margin), test


def test_so_many_repetitions_as_are_needed_decide_four_times_of_five() -> None:
    x = np.linspace(-1, 1, 20) + 0.35
    first = stats.against(x, 0.0, margin=0.1)
    assert first.needed > 20
    generator = np.random.default_rng(7)
    again = generator.normal(x.mean(), x.std(ddof=1), (2000, first.needed))
    decided = np.mean([stats.against(sample, 0.0, margin=0.1).beyond for sample in again])
    assert 0.72 < decided < 0.9
    assert stats.against(x, 0.35).needed == 0  # no number of repetitions decides
    assert stats.against(10 * x + 1000, 0.0).needed == 0  # it is decided
    assert unsettled(first, at_edge=True).needed == 0  # something else keeps it open
    assert stats.against(np.exp(x), 1.0, log=True, margin=math.exp(0.1)).needed == first.needed


def test_false_equivalence_is_as_rare_as_promised() -> None:
    def one(generator: np.random.Generator) -> bool:  # the truth lies on the margin: the worst case
        return stats.paired(generator.normal(1.0, 1.0, 20), np.zeros(20), margin=1.0).inside

    share = simulated(1, 3_000, one)
    assert share <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 3_000)
    assert within(share, 0.05, 3_000)


@pytest.mark.parametrize("n", range(5))
def test_fewer_than_five_pairs_are_inconclusive(n: int) -> None:
    a = np.full(n, 100.0) + np.arange(n)
    for got in (
        stats.paired(a, 0 * a, margin=1e9),
        stats.paired(a, 0 * a, test="median", margin=1e9),
        stats.unpaired(a, 0 * a, margin=1e9),
        stats.against(a, 0.0, margin=1e9),
        stats.against(a, 0.0, sd=1e-3, margin=1e9),
        stats.variance_ratio(a, 1e-9),
        stats.coverage(0, n, 0.999),
    ):
        assert got.answer is Answer.INCONCLUSIVE
        assert not got.effect.has_interval
        assert math.isnan(got.p)


def test_diverged_pairs_leave_no_mean_but_a_median() -> None:
    a = np.array([1.0, 2, 3, 4, 5, 6, 7, math.inf])
    b = np.zeros(8)
    bare, ordered = stats.paired(a, b), stats.paired(a, b, test="median")
    assert bare.answer is Answer.INCONCLUSIVE
    assert "1 of 8 values not finite" in bare.effect.method
    assert ordered.answer is Answer.DIFFERENT
    assert ordered.p == 2 / 2**8
    both = stats.paired([*a[:-1], math.inf], [*b[:-1], math.inf], test="median")  # inf - inf
    assert both.answer is Answer.INCONCLUSIVE
    assert "not a number" in both.effect.method


def test_equal_pairs_are_not_different() -> None:
    a = np.arange(8.0)
    for test in ("sign-flip", "t", "median"):
        got = stats.paired(a, a, margin=0.1, test=test)
        assert (got.p, got.z if test != "median" else 0.0, got.answer) == (1.0, 0.0, Answer.EQUIVALENT)


def test_a_constant_difference_is_no_surer_than_its_signs() -> None:
    got = stats.paired(np.full(20, 0.3), np.zeros(20), test="t")
    assert got.p == 2 * 2.0**-20
    assert got.z == math.inf


def test_welch_is_scipys() -> None:
    generator = np.random.default_rng(6)
    a, b = generator.normal(0, 1, 8), generator.normal(0.5, 6, 13)
    got, theirs = stats.unpaired(a, b, margin=4.0), scipy.stats.ttest_ind(a, b, equal_var=False)
    assert got.p == pytest.approx(theirs.pvalue, rel=1e-10)
    assert (got.effect.low, got.effect.high) == pytest.approx(tuple(theirs.confidence_interval()), rel=1e-10)
    sides = [
        scipy.stats.ttest_ind(a + 4, b, equal_var=False, alternative="greater").pvalue,
        scipy.stats.ttest_ind(a - 4, b, equal_var=False, alternative="less").pvalue,
    ]
    assert got.p_equivalent == pytest.approx(max(sides), rel=1e-9)
    ratio = stats.unpaired(np.exp(a), np.exp(b), log=True)
    assert ratio.effect.value == pytest.approx(math.exp(got.effect.value), rel=1e-12)
    assert ratio.p == pytest.approx(got.p, rel=1e-9)


def test_deviation_from_a_prediction_in_standard_errors() -> None:
    x = shifted(3.0, 2.0, 16)
    got = stats.against(x, 2.0)
    assert got.z == pytest.approx(1.0 / (2.0 / 4), rel=1e-12)
    assert got.p == pytest.approx(2 * scipy.stats.t.sf(2.0, 15), rel=1e-9)
    known = stats.against(x, 2.0, sd=1.0)
    assert known.z == pytest.approx(4.0, rel=1e-12)
    assert known.p == pytest.approx(2 * scipy.stats.norm.sf(4.0), rel=1e-9)
    assert stats.against(np.exp(x), math.exp(2.0), log=True).z == pytest.approx(got.z, rel=1e-9)
    assert stats.against(np.exp(x), 0.1, log=True).reference == 0.1
    assert stats.against(x, 3.5, margin=2.0).answer is Answer.EQUIVALENT


def test_deviations_of_a_right_prediction_are_normal() -> None:
    generator = np.random.default_rng(7)
    z = [stats.against(generator.normal(2.0, 0.5, 6), 2.0, sd=0.5).z for _ in range(1_000)]
    assert stats.uniformity(stats.normal_pit(z)).p > 1e-4


def test_combining_conditions() -> None:
    assert stats.combine([True, True]) == "holds"
    assert stats.combine([False]) == "fails"
    assert stats.combine([True, False, None]) == "depends"
    assert stats.combine([True, None]) == "inconclusive"
    assert stats.combine([None, False]) == "inconclusive"
    assert stats.combine([]) == "inconclusive"


# Families


def test_holm_by_hand() -> None:
    got = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert got.adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert got.rejected.tolist() == [True, False, False, True]
    assert got.size == 4


@given(st.lists(st.floats(0, 1), max_size=12))
@patient
def test_holm_is_monotone_and_never_below_the_raw_p(p: list[float]) -> None:
    adjusted = stats.holm(p).adjusted
    assert np.all(adjusted >= np.array(p))
    assert np.all(adjusted <= np.minimum(1, len(p) * np.array(p)))  # never worse than Bonferroni
    assert np.all(np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0)


def test_holm_counts_a_test_that_could_not_be_made() -> None:
    got = stats.holm([0.02, math.nan, 0.5])
    assert got.adjusted == pytest.approx([0.06, math.nan, 1.0], nan_ok=True)
    assert got.rejected.tolist() == [False, False, False]
    assert stats.holm([]).size == 0


def test_family_wise_error_is_kept_and_lost_without_it() -> None:
    generator = np.random.default_rng(9)
    runs, members = 500, 10
    raw = corrected = 0
    for _ in range(runs):
        family = [stats.against(x, 0.0) for x in generator.normal(size=(members, 8))]
        raw += any(c.differs for c in family)
        corrected += any(c.differs for c in stats.together(family))
    assert corrected / runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / runs)
    assert within(raw / runs, 1 - 0.95**members, runs)


def test_a_family_answers_together() -> None:
    strong, weak = shifted(1.0, 0.3, 10), shifted(0.25, 0.3, 10)
    alone = [stats.paired(d, 0 * d) for d in (strong, *[weak] * 9)]
    both = stats.together(alone)
    assert {c.answer for c in alone} == {Answer.DIFFERENT}
    assert [c.answer for c in both] == [Answer.DIFFERENT, *[Answer.INCONCLUSIVE] * 9]
    assert {c.family for c in both} == {10}
    assert both[0].p_adjusted == 10 * alone[0].p
    assert "(0.02 among 10)" in str(both[0])
    assert both[0].effect.low < alone[0].effect.low
    assert stats.together([]) == ()


def test_a_family_never_makes_a_difference_of_what_is_the_same() -> None:
    """Alone established to be different inside the margin, among 40 at most undecided."""
    generator = np.random.default_rng(3)
    close = [stats.against(generator.normal(0.5, 0.2, 8), 0.0, margin=0.7) for _ in range(40)]
    assert {c.answer for c in close} >= {Answer.NEGLIGIBLE}
    family = stats.together(close)
    assert {c.answer for c in family} <= {Answer.NEGLIGIBLE, Answer.EQUIVALENT, Answer.INCONCLUSIVE}
    for c in family:  # the answer is the one that the interval shows
        assert c.differs == (not c.effect.contains(0.0))
        assert not c.beyond


def test_intervals_of_a_family_hold_at_once_that_of_the_furthest_too() -> None:
    generator = np.random.default_rng(4)
    runs, members = 400, 12
    worst = every = 0
    for _ in range(runs):
        family = stats.together([stats.against(x, 0.0) for x in generator.normal(size=(members, 6))])
        furthest = max(family, key=lambda c: abs(c.effect.value))
        worst += furthest.effect.contains(0.0)
        every += all(c.effect.contains(0.0) for c in family)
    slack = 4 * math.sqrt(0.05 * 0.95 / runs)
    assert worst / runs >= every / runs >= 0.95 - slack


@pytest.mark.parametrize(("family", "needed"), [(1, 6), (2, 7), (10, 9), (20, 10), (40, 11), (1638, 16)])
def test_seeds_needed_are_those_that_can_win(family: int, needed: int) -> None:
    assert stats.seeds_needed(family) == needed
    for n, wins in ((needed, True), (needed - 1, False)):
        best = stats.paired(np.arange(1.0, n + 1), np.zeros(n))
        others = [stats.paired(np.array([1.0, -1] * 5), np.zeros(10))] * (family - 1)
        assert stats.together([best, *others])[0].differs == wins
    assert stats.too_few_seeds(needed, family) is None
    assert stats.seeds_needed(10**9) == 17
    assert f"at least {needed}" in (stats.too_few_seeds(needed - 1, family) or "")


# Calibration


@pytest.mark.parametrize(("inside", "n", "nominal"), [(90, 100, 0.95), (38, 40, 0.95), (5, 5, 0.5), (0, 9, 0.3)])
def test_coverage_of_a_band(inside: int, n: int, nominal: float) -> None:
    got = stats.coverage(inside, n, nominal)
    sides = [scipy.stats.binomtest(inside, n, nominal, alternative=side).pvalue for side in ("less", "greater")]
    assert got.p == pytest.approx(min(1.0, 2 * min(sides)), rel=1e-9)
    exact = scipy.stats.binomtest(inside, n).proportion_ci(method="exact")
    assert (got.effect.low, got.effect.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert got.z == pytest.approx((inside / n - nominal) / math.sqrt(nominal * (1 - nominal) / n))


def test_coverage_inside_a_margin() -> None:
    assert stats.coverage(950, 1_000, 0.95, margin=0.03).answer is Answer.EQUIVALENT
    assert stats.coverage(19, 20, 0.95, margin=0.03).answer is Answer.INCONCLUSIVE
    assert stats.coverage(700, 1_000, 0.95, margin=0.03).below
    assert stats.coverage(20, 20, 0.95, margin=0.2).p_equivalent == pytest.approx(0.75**20)  # 1.15 is no share


def test_uniformity_is_scipys_exact_test() -> None:
    u = np.random.default_rng(1).uniform(size=17)
    got, theirs = stats.uniformity(u), scipy.stats.kstest(u, "uniform", method="exact")
    assert (got.distance, got.p) == pytest.approx((theirs.statistic, theirs.pvalue), rel=1e-9)
    assert stats.uniformity(u**3).p < 0.01
    assert math.isnan(stats.uniformity([0.5, 0.2, math.nan, 0.3, 0.4, 0.9]).p)
    assert math.isnan(stats.uniformity([]).p)


def test_pit_of_infinite_scores() -> None:
    assert stats.normal_pit([[-math.inf, 0.0, math.inf]]).tolist() == [[0.0, 0.5, 1.0]]


@pytest.mark.parametrize("known", [None, 4.0])
def test_variance_ratio_covers_as_often_as_it_says(known: float | None) -> None:
    def one(generator: np.random.Generator) -> bool:
        return stats.variance_ratio(generator.normal(4, 3, 7), 9.0, predicted_mean=known).effect.contains(1.0)

    assert within(simulated(2, 2_000, one), 0.95, 2_000)


def test_variance_ratio_by_the_chi_square() -> None:
    x = shifted(0.0, 2.0, 10)
    got = stats.variance_ratio(x, 1.0, margin=20.0)
    law = scipy.stats.chi2(9)
    assert got.effect.value == pytest.approx(4.0, rel=1e-12)
    assert (got.effect.low, got.effect.high) == pytest.approx((36 / law.ppf(0.975), 36 / law.ppf(0.025)), rel=1e-9)
    assert got.p == pytest.approx(2 * law.sf(36), rel=1e-9)
    assert got.p_equivalent == pytest.approx(max(law.sf(36 * 20), law.cdf(36 / 20)), rel=1e-9)
    assert got.negligible
    assert stats.variance_ratio(x + 1, 1.0, predicted_mean=0.0).effect.value == pytest.approx(4.0 * 9 / 10 + 1)
    flat = stats.variance_ratio(np.ones(8), 1.0)
    assert (flat.effect.value, flat.p, flat.answer) == (0.0, 0.0, Answer.DIFFERENT)
    assert stats.variance_ratio([1.0, 2, 3, 4, math.inf], 1.0).answer is Answer.INCONCLUSIVE


# Steps to a target

# Freireich et al. 1963, Blood 21, 699: weeks in remission; True where the remission was seen to end.
DRUG = np.array([6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35], dtype=float)
DRUG_ENDED = np.array([1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0], dtype=bool)
PLACEBO = np.array([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23], dtype=float)
PLACEBO_ENDED = np.ones(21, dtype=bool)


def test_kaplan_meier_as_published() -> None:
    got = stats.survival(DRUG, DRUG_ENDED)
    assert got.steps.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert got.share == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=5e-4)
    assert got.at_risk.tolist() == [21, 17, 15, 12, 11, 7, 6]
    assert got.median().value == 23
    assert stats.survival(PLACEBO, PLACEBO_ENDED).median().value == 8
    assert (got.reached.value, got.reached.n) == (9 / 21, 21)


@st.composite
def tied(draw: st.DrawFn, least: int = 1, most: int = 20) -> tuple[Array, NDArray[np.bool_]]:
    n = draw(st.integers(least, most))
    steps = draw(st.lists(st.integers(1, 12), min_size=n, max_size=n))
    return np.array(steps, dtype=float), np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


def test_a_median_of_exactly_one_half() -> None:
    steps = [1, 3, 2, 4, 1, 3, 11, 5, 3, 12]  # (8/10) (7/8) (5/7) = 1/2 after step 3
    assert stats.survival(steps, [1, 1, 1, 0, 1, 1, 1, 1, 0, 0]).median().value == 3


@given(tied())
@settings(patient, max_examples=500)
def test_the_median_in_fractions(runs: tuple[Array, NDArray[np.bool_]]) -> None:
    left, expected = Fraction(1), math.inf
    for step in np.unique(runs[0][runs[1]]):
        ended, at_risk = int(((runs[0] == step) & runs[1]).sum()), int((runs[0] >= step).sum())
        left *= Fraction(at_risk - ended, at_risk)
        if left <= Fraction(1, 2):
            expected = step
            break
    assert stats.survival(*runs).median().value == expected


def test_the_median_of_many_censored_runs_takes_no_time() -> None:
    generator = np.random.default_rng(0)
    steps, reached = generator.integers(1, 4_000, 20_000), generator.random(20_000) < 0.5
    got = stats.survival(steps, reached)
    assert got.median().value == got.steps[np.argmax(got.share <= 0.5)]


def censored(steps: Array, reached: NDArray[np.bool_]) -> scipy.stats.CensoredData:
    return scipy.stats.CensoredData(steps[reached], right=steps[~reached])


@given(tied())
@patient
def test_curves_are_scipys(runs: tuple[Array, NDArray[np.bool_]]) -> None:
    got, theirs = stats.survival(*runs), scipy.stats.ecdf(censored(*runs)).sf
    assert got.share == pytest.approx(theirs.evaluate(got.steps), abs=1e-12)
    everywhere = np.arange(14.0)
    ours = np.concatenate([[1.0], got.share])[np.searchsorted(got.steps, everywhere, "right")]
    assert ours == pytest.approx(theirs.evaluate(everywhere), abs=1e-12)


@given(tied(5), tied(5))
@patient
def test_log_rank_scores_are_scipys(a: tuple[Array, NDArray[np.bool_]], b: tuple[Array, NDArray[np.bool_]]) -> None:
    got = stats.log_rank(*a, *b)
    if math.isnan(got.z):  # no step at which a run of either group could have been the one
        assert got.p == 1.0
        return
    theirs = scipy.stats.logrank(censored(*a), censored(*b))
    assert got.z == pytest.approx(theirs.statistic, abs=1e-9)
    if got.method == "log-rank, normal":
        assert got.p == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize(("steps", "ended"), [(DRUG, DRUG_ENDED), (PLACEBO, PLACEBO_ENDED)])
def test_median_interval_inverts_the_log_log_band(steps: Array, ended: NDArray[np.bool_]) -> None:
    got = stats.survival(steps, ended).median()
    curve = scipy.stats.ecdf(scipy.stats.CensoredData(steps[ended], right=steps[~ended])).sf
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning) if ended.all() else np.errstate():
        band = curve.confidence_interval(method="log-log")
    expected = []
    for end in (band.low, band.high):
        there = end.quantiles[np.nan_to_num(end.probabilities, nan=1.0) <= 0.5]
        expected.append(float(there[0]) if len(there) else math.inf)
    assert (got.low, got.high) == tuple(expected)


def test_a_target_that_hardly_any_run_reached() -> None:
    got = stats.survival([100.0] * 9 + [40.0], [False] * 9 + [True])
    assert got.median().value == math.inf
    assert got.median().high == math.inf
    assert "9 censored" in got.median().method
    assert got.restricted_mean(100).value == pytest.approx(94.0)
    never = stats.survival([100.0] * 6, [False] * 6)
    assert never.median().value == math.inf
    assert (never.restricted_mean(100).value, never.reached.value) == (100.0, 0.0)


@pytest.mark.parametrize(("n", "arrived", "low"), [(20, 0, 100.0), (20, 1, 100.0), (6, 0, 100.0), (5, 0, 0.0)])
def test_a_median_beyond_the_budget_is_known_to_lie_there(n: int, arrived: int, low: float) -> None:
    """As `stats.median` says of the same runs; five late ones of five have a chance of 3 %, more than 2.5 %."""
    got = stats.survival(
        [100.0] * (n - arrived) + [50.0] * arrived, [False] * (n - arrived) + [True] * arrived
    ).median()
    assert (got.value, got.low, got.high) == (math.inf, low, math.inf)
    exact = stats.median([math.inf] * (n - arrived) + [50.0] * arrived)
    assert exact.low == (math.inf if low else -math.inf)


def test_a_curve_that_drops_to_zero_bounds_nothing_from_above() -> None:
    got = stats.survival([10.0] * 6, [True] * 6).median()  # Greenwood's variance is 0/0 at S = 0
    assert (got.value, got.low, got.high) == (10.0, 10.0, math.inf)


def test_few_runs_are_points_only() -> None:
    got = stats.survival([10.0, 20, 30, 40], [True] * 4)
    assert (got.median().value, got.restricted_mean(40).value) == (20.0, 25.0)
    assert not got.median().has_interval
    assert not got.restricted_mean(40).has_interval


@given(st.lists(st.integers(1, 60), min_size=5, max_size=15), st.integers(10, 50))
@patient
def test_without_censoring_the_restricted_mean_is_a_mean(steps: list[int], horizon: int) -> None:
    horizon = min(horizon, max(steps))
    cut = np.minimum(steps, horizon)
    got, plain = stats.survival(steps, [True] * len(steps)).restricted_mean(horizon), stats.mean(cut)
    assert (got.value, got.low, got.high) == pytest.approx((plain.value, plain.low, plain.high), rel=1e-9)
    budget = stats.survival(cut, np.array(steps) < horizon)  # stopped at the horizon: the same information
    assert budget.restricted_mean(horizon).value == pytest.approx(plain.value, rel=1e-12)


def test_restricted_mean_covers_under_censoring() -> None:
    truth = 30 * (1 - math.exp(-1))  # exponential of mean 30, horizon 30

    def one(generator: np.random.Generator) -> bool:
        ends, stops = generator.exponential(30, 40), generator.uniform(30, 90, 40)
        curve = stats.survival(np.minimum(ends, stops), ends <= stops)
        return curve.restricted_mean(30.0).contains(truth)

    assert within(simulated(3, 1_000, one), 0.95, 1_000)


def test_restricted_mean_difference_is_welch_without_censoring() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.uniform(1, 50, 9), generator.uniform(1, 90, 12)
    first, second = (stats.survival(x, np.ones(len(x), dtype=bool)) for x in (a, b))
    got = stats.restricted_mean_difference(first, second, 40.0, margin=5)
    plain = stats.unpaired(np.minimum(a, 40), np.minimum(b, 40), margin=5)
    assert (got.effect.value, got.p, got.p_equivalent) == pytest.approx(
        (plain.effect.value, plain.p, plain.p_equivalent), rel=1e-9
    )
    few = stats.survival([1.0, 50.0], [True, False])
    assert stats.restricted_mean_difference(first, few, 40.0).answer is Answer.INCONCLUSIVE


def test_log_rank_as_published() -> None:
    got = stats.log_rank(DRUG, DRUG_ENDED, PLACEBO, PLACEBO_ENDED)
    assert got.observed == 9
    assert got.expected == pytest.approx(19.25, abs=5e-3)
    assert got.z**2 == pytest.approx(16.79, abs=5e-3)
    assert got.method == "log-rank, normal"
    assert got.p == pytest.approx(scipy.stats.chi2(1).sf(got.z**2), rel=1e-9)


def test_small_log_rank_counts_every_split() -> None:
    a, b = np.array([3.0, 5, 9, 9, 12]), np.array([1.0, 2, 5, 6, 12, 4])
    seen_a, seen_b = a < 12, b < 12
    got = stats.log_rank(a, seen_a, b, seen_b)
    at, seen = np.concatenate([a, b]), np.concatenate([seen_a, seen_b])

    def excess(first: tuple[int, ...]) -> float:
        """Observed less expected, by its textbook definition."""
        mine = np.isin(np.arange(11), first)
        total = 0.0
        for t in np.unique(at[seen]):
            ended, risk = seen & (at == t), at >= t
            total += (ended & mine).sum() - ended.sum() * (risk & mine).sum() / risk.sum()
        return total

    splits = np.array([excess(first) for first in itertools.combinations(range(11), 5)])
    here = excess((0, 1, 2, 3, 4))
    assert got.observed - got.expected == pytest.approx(here)
    assert got.p == np.mean(np.abs(splits) >= abs(here) - 1e-9)
    assert got.method == "log-rank, all 462 splits"


def test_log_rank_where_nothing_was_reached() -> None:
    got = stats.log_rank([9.0] * 5, [False] * 5, [9.0] * 6, [False] * 6)
    assert (got.observed, got.p) == (0, 1.0)
    assert math.isnan(stats.log_rank([1.0] * 4, [True] * 4, [2.0] * 9, [True] * 9).p)


def test_which_of_a_pair_was_earlier() -> None:
    a = [10.0, 20, 30, 40, 50, 60, 100, 100, 70]
    b = [15.0, 25, 35, 45, 100, 90, 90, 100, 70]
    reached_a = [True] * 6 + [False, False, True]
    reached_b = [True, True, True, True, False, True, True, False, True]
    got = stats.earlier(a, reached_a, b, reached_b)
    assert (got.effect.value, got.effect.n) == (6 / 7, 7)
    assert got.p == pytest.approx(2 * 8 / 2**7)
    assert "2 of 9 pairs undecided" in got.effect.method
    assert stats.earlier([5.0] * 6, [True] * 6, [5.0] * 6, [False] * 6).effect.value == 1.0  # b was still without it


# Trends


@given(st.integers(0, 10**6))
@patient
def test_slopes_are_least_squares(seed: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=9), generator.normal(size=(2, 3, 9))
    got = stats.slopes(x, y)
    for row in np.ndindex(2, 3):
        theirs = scipy.stats.linregress(x, y[row])
        assert (got.slope[row], got.intercept[row]) == pytest.approx((theirs.slope, theirs.intercept), abs=1e-9)
    assert got.complete.all()


def test_slopes_of_lines_that_left_the_format() -> None:
    x = np.arange(6.0)
    y = np.stack([2 * x + 1, 3 * x, x, x])
    y[1, 4:] = math.inf
    y[2, 2:] = math.nan
    y[3, :] = -math.inf
    got = stats.slopes(x, y)
    assert got.slope == pytest.approx([2, 3, math.nan, math.nan], nan_ok=True)
    assert got.intercept[:2] == pytest.approx([1, 0])
    assert got.used.tolist() == [6, 4, 2, 0]
    assert got.complete.tolist() == [True, False, False, False]


@pytest.mark.parametrize("seeds", [4, 5])
def test_decay_length_needs_five_seeds(seeds: int) -> None:
    layers = np.arange(1, 21)
    lines = np.exp(-layers / 4.0) * np.linspace(0.99, 1.01, seeds)[:, None]
    got = stats.decay_length(layers, lines)
    assert got.has_interval is (seeds == 5)
    if seeds == 5:
        # factors common to all layers move no slope
        assert (got.value, got.low, got.high) == pytest.approx((4.0, 4.0, 4.0), rel=1e-9)
        assert got.method == "decay of the mean, layers 7 to 20, jackknife, 95 %"
    else:
        assert math.isnan(got.value)
        assert got.method == "points only: 4 of at least 5 seeds"


def test_decay_length_is_fitted_up_to_where_the_mean_drowns() -> None:
    """From layer 10 on seeds differ by far more than their mean; what stands there must not matter."""
    layers = np.arange(1, 21)
    lines = np.tile(-np.exp(-layers / 3.0), (6, 1))
    lines[:, 9:] = np.array([1.0, -1.0, 2.0, -2.0, 3.0, -3.0])[:, None]
    got = stats.decay_length(layers, lines)
    assert got.value == pytest.approx(3.0, rel=1e-9)
    assert got.method.startswith("decay of the mean, layers 4 to 9")
    lines[:, 4:] = math.inf
    assert math.isnan(stats.decay_length(layers, lines).value)


def test_decay_length_is_infinite_where_nothing_decays() -> None:
    layers = np.arange(1, 21)
    assert stats.decay_length(layers, np.linspace(0.9, 1.1, 6)[:, None] + 0.0 * layers).value == math.inf
    assert stats.decay_length(layers, np.linspace(0.9, 1.1, 6)[:, None] * np.exp(layers / 5.0)).value == math.inf


@pytest.mark.parametrize(("seeds", "confidence"), [(5, 0.95), (10, 0.95), (10, 0.8)])
def test_decay_length_covers_as_often_as_it_says(seeds: int, confidence: float) -> None:
    """Each seed decays at a rate of its own and with independent noise; small enough for the mean's ln to be linear."""
    layers = np.arange(1, 31)

    def one(generator: np.random.Generator) -> bool:
        rates = 0.1 + 0.001 * generator.standard_normal((seeds, 1))
        lines = np.exp(-rates * layers) * (1 + 0.02 * generator.standard_normal((seeds, 30)))
        return stats.decay_length(layers, lines, confidence).contains(10.0)

    assert within(simulated(3, 500, one), confidence, 500)


def test_decay_length_does_not_end_where_noise_holds_the_mean_up() -> None:
    """Noise of one size at all layers: ended by the mean itself, the fit was 6.6 of 6 and held the truth in 92 %."""
    layers, generator = np.arange(40), np.random.default_rng(0)
    found = [
        stats.decay_length(layers, np.exp(-layers / 6.0) + 0.3 * generator.standard_normal((20, 40)))
        for _ in range(300)
    ]  # fmt: skip
    slopes = np.array([-1 / each.value for each in found])
    assert abs(np.median(slopes) + 1 / 6) < 4 * 1.2533 * slopes.std() / math.sqrt(300)  # of a median's standard error
    assert np.mean([each.contains(6.0) for each in found]) > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 300)


# Durations


def test_a_steady_drift_cancels_in_abba() -> None:
    clock = np.exp(0.02 * np.arange(40)).reshape(10, 4)  # the machine slows down; both take the same time
    a, b = clock[:, [0, 3]], clock[:, [1, 2]] * 1.05
    got = stats.time_ratio(a, b)
    assert got.effect.value == pytest.approx(1 / 1.05, rel=1e-12)
    assert got.below


def test_a_ratio_below_the_resolution_is_inconclusive() -> None:
    generator = np.random.default_rng(1)
    a = np.exp(generator.normal(0.02, 0.005, (20, 2)))
    b = np.exp(generator.normal(0.0, 0.005, (20, 2)))
    assert stats.time_ratio(a, b).above
    assert stats.time_ratio(a, b, resolution=1.03).answer is Answer.INCONCLUSIVE
    assert stats.time_ratio(a, b, resolution=1.03, margin=1.02).answer is Answer.INCONCLUSIVE
    assert stats.time_ratio(a, b, resolution=1.03, margin=1.05).answer is Answer.EQUIVALENT
    assert stats.time_ratio(a * 1.2, b, resolution=1.03).above
    assert stats.time_ratio(b, b, margin=1.01).answer is Answer.EQUIVALENT
    assert stats.time_ratio(b, b, margin=1.01, resolution=1.03).answer is Answer.INCONCLUSIVE  # finer than the clock


def test_a_against_a_raises_no_alarm() -> None:
    def one(generator: np.random.Generator) -> bool:
        times = np.exp(0.05 * generator.standard_t(2, (4, 12, 2)))  # heavy-tailed noise
        limit = stats.resolution(times[0], times[1])
        return stats.time_ratio(times[2], times[3], resolution=limit).answer is Answer.DIFFERENT

    assert simulated(4, 1_000, one) <= 0.01


def test_resolution_is_the_far_end_of_an_a_a_run() -> None:
    generator = np.random.default_rng(2)
    a, again = np.exp(generator.normal(0, 0.1, (2, 30)))
    effect = stats.time_ratio(a, again).effect
    assert stats.resolution(a, again) == max(effect.high, 1 / effect.low) == stats.resolution(again, a)
    assert stats.resolution(a[:7], again[:7]) == math.inf  # 2^-6 > 0.01: seven blocks bound nothing at 99 %
    assert stats.resolution(a[:3], again[:3]) == math.inf
    assert stats.time_ratio(a * 5, again, resolution=math.inf).answer is Answer.INCONCLUSIVE


# What a user can get wrong


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean([[1.0, 2.0]]), "one-dimensional"),
        (lambda: stats.mean([1.0] * 5, 95), "between 0 and 1"),
        (lambda: stats.mean([-1.0] * 5, log=True), "negative"),
        (lambda: stats.mean([1.0] * 19, interval="bca"), "at least 20"),
        (lambda: stats.mean([1.0] * 20, interval="bootstrap"), "'t' or 'bca'"),  # type: ignore[arg-type]  # on purpose
        (lambda: stats.quantile([1.0] * 5, 1.0), "between 0 and 1"),
        (lambda: stats.rate(6, 5), "6 of 5"),
        (lambda: stats.paired([1.0], [1.0, 2.0]), "one length"),
        (lambda: stats.paired([1.0] * 6, [2.0] * 6, margin=-1), "zero or more"),
        (lambda: stats.paired([1.0] * 6, [2.0] * 6, margin=0.1, log=True), "factor of at least 1"),
        (lambda: stats.paired([1.0] * 6, [2.0] * 6, test="wilcoxon"), "'median'"),  # type: ignore[arg-type]  # on purpose
        (lambda: stats.paired([1.0] * 17, [2.0] * 17, test="sign-flip"), "test='t'"),
        (lambda: stats.against([1.0] * 6, math.nan), "finite"),
        (lambda: stats.against([1.0] * 6, -1.0, log=True), "positive"),
        (lambda: stats.against([1.0] * 6, 1.0, sd=0.0), "positive"),
        (lambda: stats.against([1.0] * 6, 1.0, sd=1.0, test="median"), "test='t'"),
        (lambda: stats.holm([0.5, 1.5]), "between 0 and 1"),
        (lambda: stats.seeds_needed(0), "at least 1 member"),
        (
            lambda: stats.together([stats.against(range(5), 0), stats.against(range(5), 0, confidence=0.9)]),
            "one confidence",
        ),
        (lambda: stats.coverage(1, 10, 1.0), "between 0 and 1"),
        (lambda: stats.uniformity([2.0]), "normal_pit"),
        (lambda: stats.variance_ratio([1.0] * 5, 0.0), "positive"),
        (lambda: stats.survival([1.0, math.inf], [True, False]), "reached=False"),
        (lambda: stats.survival([1.0], [True, False]), "one shape"),
        (lambda: stats.survival([1.0] * 5, [True] * 5).restricted_mean(2.0), "within the longest run"),
        (lambda: stats.earlier([1.0], [True], [1.0, 2.0], [True, True]), "one size"),
        (lambda: stats.slopes([1.0, 2.0], [1.0, 2.0]), "at least 3"),
        (lambda: stats.slopes([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), "different x"),
        (lambda: stats.slopes([1.0, 2.0, 3.0], [1.0, 2.0]), r"\(k,\)"),
        (lambda: stats.decay_length([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), r"\(n, k\)"),
        (lambda: stats.time_ratio([0.0, 1.0], [1.0, 1.0]), "too coarse"),
        (lambda: stats.time_ratio(np.ones((5, 3)), np.ones((5, 3))), r"\(blocks, 2\)"),
    ],
)
def test_mistakes_end_in_one_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_importing_the_statistics_does_not_import_scipy() -> None:
    code = "import sys, depthgauge.stats; print([m for m in ('scipy', 'pandas', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_examples_in_the_docstring() -> None:
    assert doctest.testmod(stats).failed == 0
    assert doctest.testmod(stats).attempted > 0


def test_a_band_holds_the_middle_share_of_seeds_and_its_ends_are_seeds() -> None:
    lines = np.stack([np.arange(1.0, 21.0), np.r_[np.arange(1.0, 20.0), math.inf]], axis=1)
    band = stats.band(lines, 0.9)
    assert list(band) == ["low", "median", "high"]
    assert [end.tolist() for end in band.values()] == [[1, 1], [10, 10], [19, 19]]
    assert stats.band(lines, 1.0)["high"].tolist() == [20, math.inf]
    assert np.isnan(stats.band(np.empty((0, 3)))["median"]).all()
    for wrong in ((np.ones(3), 0.9), (np.ones((2, 2)), 1.5)):
        with pytest.raises(ValueError, match="lines have shape"):
            stats.band(*wrong)


@pytest.mark.parametrize(("index", "n"), [(1.5, 200), (3.0, 1000)])
def test_the_interval_of_a_tail_index_covers_it(index, n):
    draws = np.random.default_rng(7).pareto(index, (400, n)) + 1
    assert 0.92 < np.mean([stats.tail_index(x).contains(index) for x in draws]) < 0.98


def test_a_tail_index_is_what_the_formula_says():
    x = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 0.5])
    found = stats.tail_index(x, 0.5)
    assert found.value == pytest.approx(5 / (np.log(2) * 15))
    assert found.method.startswith("Hill, largest 5 of 10")


@pytest.mark.parametrize(
    ("x", "value", "reason"),
    [
        ([1.0] * 20, np.inf, "are equal"),
        ([0.0] * 18 + [1.0, 2.0], np.nan, "fewer than 6 values are positive"),
        ([1.0] * 19 + [np.inf], np.nan, "not finite"),
        ([1.0, 2.0], np.nan, "fewer than 6"),
    ],
)
def test_where_there_is_no_tail_the_reason_is_given(x, value, reason):
    found = stats.tail_index(x)
    np.testing.assert_equal(found.value, value)
    assert reason in found.method
    assert not found.has_interval


@pytest.mark.parametrize(("x", "share"), [([[1.0]], 0.05), ([-1.0, 2.0], 0.05), ([1.0], 1.0)])
def test_a_tail_of_nonsense_is_refused(x, share):
    with pytest.raises(ValueError, match=r"one dimension|at least 0|between 0 and 1"):
        stats.tail_index(x, share)


def test_pseudo_values_of_a_mean_are_the_values_and_of_a_ratio_have_the_error_of_both() -> None:
    one = np.array([1.0, 2.0, 4.0, 9.0])
    assert stats.pseudo_values(lambda x: float(x.mean()), one) == pytest.approx(one)
    found = stats.pseudo_values(lambda x, y: float(x.mean() / y.mean()), 3 * one, one)
    assert found == pytest.approx(np.full(4, 3.0))
    assert stats.pseudo_values(lambda x: float(x.mean()), [5.0]).tolist() == [5.0]
    with pytest.raises(ValueError, match="samples of one length"):
        stats.pseudo_values(lambda x, y: float(x.mean() / y.mean()), one, one[:2])


def test_an_estimate_is_told_with_its_interval_where_it_has_one() -> None:
    assert stats.mean([1.0, 2.0, 3.0, 4.0, 5.0]).told(".1f") == "3.0 [1.0, 5.0]"
    assert stats.mean([1.0, 2.0]).told("+.1f") == "+1.5"
