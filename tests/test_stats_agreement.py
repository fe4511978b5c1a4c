"""Interval and p-value never contradict each other, in every public function that gives both.

Ties, equal values and references that lie exactly on an end are where they would, so the samples are made of few
different numbers. `FUNCTIONS` holds every function; a test notices one that is missing.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from depthgauge import stats
from depthgauge.stats import Answer, Comparison

Array = NDArray[np.float64]

patient = settings(deadline=None, max_examples=150)  # a busy machine is no failure

CONFIDENCES = st.sampled_from([0.5, 0.8, 0.9, 0.9375, 0.95, 0.96875, 0.99])
TIED = st.sampled_from([-0.7, -0.2, 0.1, 0.3, 0.1 + 0.2, 0.7, 1.1])  # 0.1 + 0.2 is 0.3 but for rounding
POSITIVE = st.sampled_from([0.1, 0.2, 0.3, 0.1 + 0.2, 0.7, 1.0, 3.0])


def lists(element: st.SearchStrategy[float], most: int = 11) -> st.SearchStrategy[list[float]]:
    equal = st.tuples(element, st.integers(1, most)).map(lambda pair: [pair[0]] * pair[1])
    return st.lists(element, min_size=1, max_size=most) | equal


def pairs(element: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[list[float], list[float]]]:
    return st.integers(1, 10).flatmap(
        lambda n: st.tuples(st.lists(element, min_size=n, max_size=n), st.lists(element, min_size=n, max_size=n))
    )


def runs(draw: st.DrawFn, n: int) -> tuple[Array, NDArray[np.bool_]]:
    steps = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    return np.array(steps, dtype=float), np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))


def _paired(draw: st.DrawFn, confidence: float) -> Comparison:
    log = draw(st.booleans())
    a, b = draw(pairs(POSITIVE if log else TIED))
    test = draw(st.sampled_from(["auto", "sign-flip", "t", "median"]))
    return stats.paired(a, b, log=log, confidence=confidence, test=test)


def _against(draw: st.DrawFn, confidence: float) -> Comparison:
    log = draw(st.booleans())
    x = draw(lists(POSITIVE if log else TIED))
    at = draw(st.sampled_from(x) | (POSITIVE if log else TIED))
    sd = draw(st.sampled_from([None, 0.01, 1.0]))
    test = "t" if sd else draw(st.sampled_from(["sign-flip", "t", "median"]))
    return stats.against(x, at, sd=sd, log=log, confidence=confidence, test=test)


def _unpaired(draw: st.DrawFn, confidence: float) -> Comparison:
    log = draw(st.booleans())
    element = POSITIVE if log else TIED
    return stats.unpaired(draw(lists(element)), draw(lists(element)), log=log, confidence=confidence)


def _coverage(draw: st.DrawFn, confidence: float) -> Comparison:
    n = draw(st.integers(1, 40))
    return stats.coverage(
        draw(st.integers(0, n)), n, draw(st.sampled_from([0.03125, 0.25, 0.5, 0.9, 0.95])), confidence=confidence
    )


def _variance_ratio(draw: st.DrawFn, confidence: float) -> Comparison:
    known = draw(st.sampled_from([None, 0.1, 0.3]))
    return stats.variance_ratio(
        draw(lists(TIED)), draw(st.sampled_from([1e-300, 0.01, 0.3])), predicted_mean=known, confidence=confidence
    )


def _restricted(draw: st.DrawFn, confidence: float) -> Comparison:
    a, b = (stats.survival(*runs(draw, draw(st.integers(1, 9)))) for _ in range(2))
    return stats.restricted_mean_difference(a, b, min(a.last, b.last), confidence=confidence)


def _earlier(draw: st.DrawFn, confidence: float) -> Comparison:
    n = draw(st.integers(1, 12))
    return stats.earlier(*runs(draw, n), *runs(draw, n), confidence=confidence)


def _time_ratio(draw: st.DrawFn, confidence: float) -> Comparison:
    a, b = draw(pairs(POSITIVE))
    return stats.time_ratio(a, b, confidence=confidence)


FUNCTIONS: dict[str, Callable[[st.DrawFn, float], Comparison]] = {
    "paired": _paired,
    "against": _against,
    "unpaired": _unpaired,
    "coverage": _coverage,
    "variance_ratio": _variance_ratio,
    "restricted_mean_difference": _restricted,
    "earlier": _earlier,
    "time_ratio": _time_ratio,
}


def test_every_function_that_gives_both_is_here() -> None:
    both = {
        name
        for name in stats.__all__
        if inspect.isfunction(function := getattr(stats, name))
        and inspect.signature(function).return_annotation == "Comparison"
    }
    assert both == set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
@given(st.data())
@patient
def test_a_reference_is_rejected_exactly_where_it_lies_outside(name: str, data: st.DataObject) -> None:
    got = data.draw(st.composite(lambda draw: FUNCTIONS[name](draw, draw(CONFIDENCES)))())
    effect = got.effect
    assert effect.has_interval == (not math.isnan(got.p))
    if not effect.has_interval:
        assert got.answer is Answer.INCONCLUSIVE
        return
    assert effect.low <= effect.value <= effect.high
    assert (got.p <= got.alpha) == (not effect.contains(got.reference)) == (got.answer is Answer.DIFFERENT)
    assert got.above == (effect.low > got.reference)
    assert got.below == (effect.high < got.reference)


@given(pairs(POSITIVE), CONFIDENCES, st.sampled_from([1.0, 1.5, 3.0, math.inf]))
@patient
def test_with_a_resolution_the_interval_lies_beyond_it(
    both: tuple[list[float], list[float]], confidence: float, resolution: float
) -> None:
    got = stats.time_ratio(*both, resolution=resolution, confidence=confidence)
    if got.effect.has_interval:
        near = got.effect.low if got.effect.value > 1 else 1 / got.effect.high if got.effect.high else math.inf
        if not math.isclose(near, resolution, rel_tol=1e-9) or resolution == 1:
            assert (got.answer is Answer.DIFFERENT) == (near > resolution)


# The same, of references that the interval knows nothing of: here, only what lies within rounding of an end is spared.


def agree(effect: stats.Estimate, theta: float, p: float, alpha: float) -> bool:
    near = any(math.isclose(theta, end, rel_tol=1e-9, abs_tol=1e-9) for end in (effect.low, effect.high))
    return near or (p <= alpha) == (not effect.contains(theta))


@given(lists(TIED), st.sampled_from(["sign-flip", "t", "median"]), CONFIDENCES, st.lists(st.floats(-3, 3), min_size=5))
@patient
def test_one_interval_answers_for_every_prediction(
    x: list[float], test: str, confidence: float, thetas: list[float]
) -> None:
    effect = stats.against(x, 1e6, test=test, confidence=confidence).effect  # type: ignore[arg-type]  # sampled_from gives str
    if effect.has_interval:
        for theta in thetas:
            got = stats.against(x, theta, test=test, confidence=confidence)  # type: ignore[arg-type]  # as above
            assert agree(effect, theta, got.p, got.alpha), theta


@given(lists(TIED), lists(TIED), CONFIDENCES, st.lists(st.floats(-3, 3), min_size=5))
@patient
def test_one_interval_answers_for_every_shift(
    a: list[float], b: list[float], confidence: float, shifts: list[float]
) -> None:
    effect = stats.unpaired(a, b, confidence=confidence).effect
    if effect.has_interval and not len(set(a)) == len(set(b)) == 1:
        for shift in shifts:
            got = stats.unpaired(a, np.array(b) + shift, confidence=confidence)
            assert agree(effect, shift, got.p, got.alpha), shift


@given(st.integers(5, 60), st.data(), CONFIDENCES)
@patient
def test_one_interval_answers_for_every_share(n: int, data: st.DataObject, confidence: float) -> None:
    inside = data.draw(st.integers(0, n))
    effect = stats.coverage(inside, n, 0.5, confidence=confidence).effect
    for nominal in np.linspace(0.001, 0.999, 41):
        got = stats.coverage(inside, n, float(nominal), confidence=confidence)
        assert agree(effect, float(nominal), got.p, got.alpha), nominal


@given(lists(TIED), CONFIDENCES, st.lists(st.floats(1e-3, 1e3), min_size=5))
@patient
def test_one_interval_answers_for_every_variance(x: list[float], confidence: float, predictions: list[float]) -> None:
    effect = stats.variance_ratio(x, 1.0, confidence=confidence).effect
    if effect.has_interval:
        for predicted in predictions:
            got = stats.variance_ratio(x, predicted, confidence=confidence)
            assert agree(effect, predicted, got.p, got.alpha), predicted


# Equal values


@pytest.mark.parametrize("test", ["t", "sign-flip"])
@pytest.mark.parametrize(("n", "confidence", "bounded"), [(5, 0.95, False), (6, 0.95, True), (5, 0.9, True)])
def test_equal_values_say_what_their_signs_say(test: str, n: int, confidence: float, *, bounded: bool) -> None:
    got = stats.against([1.0] * n, 0.0, test=test, confidence=confidence)  # type: ignore[arg-type]  # parametrize gives str
    ends = (1.0, 1.0) if bounded else (-math.inf, math.inf)
    assert (got.effect.value, got.p) == (1.0, 2.0 ** (1 - n))
    assert (got.effect.low, got.effect.high) == pytest.approx(ends)
    assert got.answer is (Answer.DIFFERENT if bounded else Answer.INCONCLUSIVE)
    assert stats.against([1.0] * n, 1.0, test=test, confidence=confidence).p == 1.0  # type: ignore[arg-type]  # as above


def test_two_groups_of_equal_values_say_what_their_splits_say() -> None:
    got = stats.unpaired([2.0] * 5, [1.0] * 5)
    assert (got.p, got.effect.low, got.effect.high) == (2 / math.comb(10, 5), 1.0, 1.0)
    strict = stats.unpaired([2.0] * 5, [1.0] * 5, confidence=0.999)
    assert (strict.effect.low, strict.effect.high) == (-math.inf, math.inf)
    assert strict.answer is Answer.INCONCLUSIVE


@pytest.mark.parametrize("n", [5, 6])
def test_values_that_are_equal_but_for_rounding_are_equal_values(n: int) -> None:
    """0.1 + 0.2 among values of 0.3 has no spread to be measured by; it was 1e16 standard errors from anything else."""
    values = [0.1 + 0.2, *[0.3] * (n - 1)]
    alone, near = stats.against(values, 0.29), stats.against(values, 0.3)
    assert alone.p == 2.0 ** (1 - n)
    assert alone.answer is (Answer.DIFFERENT if n == 6 else Answer.INCONCLUSIVE)
    assert (near.p, near.z) == (1.0, 0.0)
    assert near.effect.contains(0.3)
    assert near.effect.contains(0.1 + 0.2)
    pair = stats.unpaired(values, [0.29] * n)
    assert pair.p == 2 / math.comb(2 * n, n)
    assert stats.unpaired(values, [0.3] * n).p == 1.0
    assert stats.against([0.3 + 1e-14, *[0.3] * (n - 1)], 0.29).p < 1e-9  # eight times the rounding is a spread


def test_equal_values_on_the_log_scale_hold_themselves() -> None:
    for value in np.linspace(0.1, 9.9, 99):  # exp(log(x)) misses x for about one in three
        got = stats.against([value] * 8, value, log=True)
        assert got.effect.contains(value)
        assert got.p == 1.0


@pytest.mark.parametrize("n", [5, 6, 8])
def test_equal_values_alone_miss_no_more_often_than_stated(n: int) -> None:
    """The symmetric law with most equal samples away from its mean: all 2^n samples of -1 and 1."""
    missed = [len(set(x)) == 1 and not stats.mean(x).contains(0.0) for x in itertools.product((-1.0, 1.0), repeat=n)]
    assert np.mean(missed) <= 0.05  # a point at n = 5 would miss 2 of 32: 6.25 %


@pytest.mark.parametrize(("n", "confidence"), [(5, 0.95), (17, 0.9), (60, 0.99)])
def test_the_exact_interval_of_a_share_covers_at_least_as_often_as_it_says(n: int, confidence: float) -> None:
    ends = [stats.coverage(k, n, 0.5, confidence=confidence).effect for k in range(n + 1)]
    for share in np.linspace(0.003, 0.997, 143):
        law = scipy.stats.binom(n, share).pmf(np.arange(n + 1))
        assert sum(law[k] for k in range(n + 1) if ends[k].contains(float(share))) >= confidence
