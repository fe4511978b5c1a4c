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


def test_noisy_quadratic_is_the_recursion_of_the_second_moment():
    h, c, start = np.array([1.0, 0.1, 0.003, 0.0]), np.array([0.5, 2.0, 0.0, 1.0]), np.array([1.0, 3.0, 2.0, 1.0])
    alpha, batch = 0.7, 16
    second, expected = start.copy(), []
    for _ in range(41):
        expected.append(float((h * second).sum() / 2))
        second = (1 - alpha * h) ** 2 * second + alpha**2 * c / batch
    loss = theory.noisy_quadratic(h, alpha, batch, np.arange(41), noise=c, start=start)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_noisy_quadratic_against_sgd():
    """4,000 runs of noisy descent; the loss's own spread sets the tolerance."""
    h, alpha, batch, steps, runs = np.array([1.0, 0.2]), 0.5, 4, 30, 4000
    rng = np.random.default_rng(0)
    theta = np.ones((runs, 2))
    for _ in range(steps):
        theta -= alpha * (h * theta + rng.normal(0, np.sqrt(h / batch), (runs, 2)))
    loss = (h * theta**2).sum(1) / 2
    expected = theory.noisy_quadratic(h, alpha, batch, steps)
    assert loss.mean() == pytest.approx(expected, abs=5 * loss.std() / math.sqrt(runs))


def test_noisy_quadratic_at_and_beyond_the_stability_limit():
    assert theory.noisy_quadratic(2.0, 1.0, 1, 10, noise=3.0, start=1.0) == pytest.approx(1 + 10 * 3, rel=1e-12)
    assert theory.noisy_quadratic(4.0, 1.0, 1, 10_000) == math.inf
    assert theory.noisy_quadratic(4.0, 1.0, 1, 10_000, noise=0.0, start=0.0) == 0
    assert theory.noisy_quadratic(1.0, 1.0, 2, [0, 1, 5]).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_ring_allreduce_is_the_sum_of_its_messages(devices):
    size, bandwidth, latency = 12e6, 3e9, 2e-5
    messages = 2 * (devices - 1)
    assert theory.ring_allreduce_time(size, devices, bandwidth, latency) == pytest.approx(
        sum(latency + size / devices / bandwidth for _ in range(messages)), rel=1e-12
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.noise_scale(-1.0, 1.0), "covariance_trace is -1.0"),
        (lambda: theory.noise_scale_from_batches(8, 1.0, 8, 1.0), "smaller than"),
        (lambda: theory.noisy_quadratic([-1.0], 0.1, 1, 1), "curvature has an entry"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 0, 1), "batch_size is 0"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 1, 1.5), "steps is 1.5"),
        (lambda: theory.ring_allreduce_time(1.0, 0, 1.0, 0.0), "devices is 0"),
        (lambda: theory.ring_allreduce_time(1.0, 2, 0.0, 0.0), "bandwidth is 0.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
