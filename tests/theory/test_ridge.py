"""Risks of least squares and ridge regression: against fits, a numerical spectrum, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate

from depthgauge import theory


@pytest.mark.parametrize(("examples", "features"), [(20, 8), (8, 24), (10, 5)])
def test_the_risk_of_least_squares_is_that_of_many_fits(examples: int, features: int) -> None:
    random = np.random.default_rng(1)
    b = random.standard_normal(features)
    b *= 1.5 / np.linalg.norm(b)
    x = random.standard_normal((4_000, examples, features))
    y = x @ b + 0.7 * random.standard_normal(x.shape[:2])
    risks = ((np.einsum("rpn,rn->rp", np.linalg.pinv(x), y) - b) ** 2).sum(1)
    predicted = theory.ridgeless_risk(examples, features, signal=1.5**2, noise=0.7**2)
    assert abs(risks.mean() - predicted) < 5 * risks.std() / math.sqrt(len(risks))


def test_the_risk_is_infinite_where_features_are_as_many_as_examples_and_largest_about_there() -> None:
    assert [math.isinf(theory.ridgeless_risk(10, p)) for p in (8, 9, 10, 11, 12)] == [False, True, True, True, False]
    below = [theory.ridgeless_risk(50, p) for p in range(1, 49)]
    above = [theory.ridgeless_risk(50, p) for p in range(52, 100)]
    assert below == sorted(below)
    assert above == sorted(above, reverse=True)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("penalty", [0.05, 1.0])
def test_the_risk_of_ridge_regression_is_the_integral_over_the_law_of_marchenko_and_pastur(
    ratio: float, penalty: float
) -> None:
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2

    def density(s: float) -> float:
        return math.sqrt(max((high - s) * (s - low), 0)) / (2 * math.pi * ratio * s)

    def part(s: float) -> float:
        return (2.0 * penalty**2 + 0.3 * ratio * s) / (s + penalty) ** 2

    expected = integrate.quad(lambda s: part(s) * density(s), low, high, limit=400)[0]
    expected += max(0.0, 1 - 1 / ratio) * part(0.0)
    assert theory.ridge_risk(ratio, penalty, signal=2.0, noise=0.3) == pytest.approx(expected, rel=1e-5)


def test_the_best_penalty_is_best_and_a_small_one_leaves_least_squares() -> None:
    best = theory.best_penalty(1.5, signal=2.0, noise=0.3)
    least = theory.ridge_risk(1.5, signal=2.0, noise=0.3)
    assert least == theory.ridge_risk(1.5, best, signal=2.0, noise=0.3)
    assert least < min(theory.ridge_risk(1.5, factor * best, signal=2.0, noise=0.3) for factor in (0.8, 1.25))
    for ratio in (0.5, 2.0):
        many = theory.ridgeless_risk(10**7, int(ratio * 10**7), signal=2.0, noise=0.3)
        assert theory.ridge_risk(ratio, 1e-7, signal=2.0, noise=0.3) == pytest.approx(many, rel=1e-5)
    with pytest.raises(ValueError, match="penalty"):
        theory.ridge_risk(1.0, 0.0)
