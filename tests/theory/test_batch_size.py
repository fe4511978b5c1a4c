import math

import numpy as np
import pytest

from depthgauge import theory


def test_noise_scale_of_known_noise():
    assert theory.noise_scale(covariance_trace=50.0, gradient_norm=0.5) == 200
    assert theory.noise_scale(1.0, 0.0) == math.inf
    assert math.isnan(theory.noise_scale(0.0, 0.0))


def test_two_batch_sizes_give_back_exact_moments():
    trace, squared = 30.0, 0.7
    small, big = 8, 200
    found = theory.noise_scale_from_batches(small, squared + trace / small, big, squared + trace / big)
    assert found.covariance_trace == pytest.approx(trace, rel=1e-12)
    assert found.gradient_norm_squared == pytest.approx(squared, rel=1e-12)
    assert found.scale == pytest.approx(trace / squared, rel=1e-12)


def test_an_estimate_without_signal_has_no_scale():
    assert math.isnan(theory.noise_scale_from_batches(1, 10.0, 10, 0.5).scale)


def test_steps_and_examples_are_a_hyperbola():
    batches, least, critical = np.array([1.0, 7.0, 64.0, 1000.0]), 300.0, 50.0
    steps, examples = theory.steps_at(batches, least, critical), theory.examples_at(batches, least, critical)
    np.testing.assert_allclose((steps / least - 1) * (examples / (least * critical) - 1), 1, rtol=1e-12)
    np.testing.assert_allclose(examples, batches * steps, rtol=1e-12)
    np.testing.assert_allclose(theory.batch_for(steps, least, critical), batches, rtol=1e-12)
    assert theory.steps_at(critical, least, critical) == 2 * least
    assert theory.examples_at(critical, least, critical) == 2 * least * critical


def test_no_batch_takes_fewer_than_the_least_steps():
    assert theory.batch_for([299.0, 300.0, 600.0], 300.0, 50.0).tolist() == [math.inf, math.inf, 50.0]


def test_regimes_end_where_steps_or_examples_exceed_their_least_by_the_share():
    low, high = theory.regime_bounds(200.0, within=0.1)
    assert theory.examples_at(low, 1.0, 200.0) == pytest.approx(1.1 * 200)
    assert theory.steps_at(high, 1.0, 200.0) == pytest.approx(1.1)
    assert [theory.regime(batch, 200.0, 0.1) for batch in (low, 200.0, high)] == [
        "perfect scaling", "diminishing returns", "maximal data parallelism",
    ]  # fmt: skip


def test_scaled_rate_lowers_a_noisy_quadratic_most():
    """One step of SGD from a known point: the expected loss is a parabola in the rate, known from three of them."""
    h, c, start = np.array([1.0, 0.2]), np.array([3.0, 0.5]), np.array([2.0, 1.0])
    largest = (h**2 * start).sum() / (h**3 * start).sum()
    scale = (h * c).sum() / (h**3 * start).sum()  # tr(H Sigma) / (G' H G), G = h theta
    for batch in (1, 10, 1000):
        none, one, two = (theory.noisy_quadratic(h, rate, batch, 1, noise=c, start=start) for rate in (0, 1, 2))
        best = (4 * one - 3 * none - two) / (2 * (2 * one - none - two))
        assert theory.scaled_rate(batch, largest, scale) == pytest.approx(best, rel=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.noise_scale(-1.0, 1.0), "covariance_trace is -1.0"),
        (lambda: theory.noise_scale_from_batches(8, 1.0, 8, 1.0), "smaller than"),
        (lambda: theory.steps_at([1, 0], 1.0, 1.0), "batch is"),
        (lambda: theory.examples_at(1, -1.0, 1.0), "least_steps is -1.0"),
        (lambda: theory.batch_for(-1, 1.0, 1.0), "steps is -1"),
        (lambda: theory.batch_for(1, 0.0, 1.0), "least_steps is 0.0"),
        (lambda: theory.regime(0, 1.0), "batch is 0"),
        (lambda: theory.regime_bounds(1.0, 1.5), "within is 1.5"),
        (lambda: theory.scaled_rate(1, 1.0, -2.0), "noise_scale is -2.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
