import math

import numpy as np
import pytest

from depthgauge import theory

H = np.array([1.0, 0.3, 0.05])


def map_of_moments(h, rate, batch, momentum):
    """One step on all second moments of (theta, v), by Isserlis' theorem on full matrices: no eigenbasis, no trace."""
    d = len(h)
    covariance = np.diag(h)
    step = np.block([[np.eye(d) - rate * covariance, -rate * momentum * np.eye(d)], [covariance, momentum * np.eye(d)]])
    push = np.vstack([-rate * np.eye(d), np.eye(d)])
    columns = []
    for unit in np.eye(4 * d * d):
        moments = unit.reshape(2 * d, 2 * d)
        moments = (moments + moments.T) / 2
        theta = moments[:d, :d]
        # E[x x' C x x'] = 2 H C H + tr(C H) H, so that the mean of B of them has the variance below.
        noise = (covariance @ theta @ covariance + np.trace(theta @ covariance) * covariance) / batch
        columns.append((step @ moments @ step.T + push @ noise @ push.T).ravel())
    return np.array(columns).T


@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("batch", [1, 5])
def test_risk_is_that_of_all_second_moments(momentum, batch):
    rate, start, noise = 0.2, np.array([1.0, 2.0, 0.5]), 0.7
    step = map_of_moments(H, rate, batch, momentum)
    moments = np.zeros((6, 6))
    moments[:3, :3] = np.diag(start)
    push = np.vstack([-rate * np.eye(3), np.eye(3)])
    labels = push @ np.diag(noise * H / batch) @ push.T
    expected = []
    for _ in range(30):
        expected.append((H @ np.diag(moments)[:3] + noise) / 2)
        moments = (step @ moments.ravel()).reshape(6, 6) + labels
    found = theory.regression_risk(H, rate, batch, np.arange(30), label_noise=noise, start=start, momentum=momentum)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_risk_against_sgd():
    """4,000 runs on drawn examples; the loss's own spread sets the tolerance."""
    rate, batch, steps, runs, momentum, rng = 0.3, 4, 20, 4000, 0.5, np.random.default_rng(0)
    theta, v = np.ones((runs, 3)), np.zeros((runs, 3))
    for _ in range(steps):
        x = rng.normal(size=(runs, batch, 3)) * np.sqrt(H)
        error = (x @ theta[..., None])[..., 0] - 0.5 * rng.normal(size=(runs, batch))
        v = momentum * v + (x * error[..., None]).mean(1)
        theta = theta - rate * v
    risk = (theta**2 @ H + 0.25) / 2
    expected = theory.regression_risk(H, rate, batch, steps, label_noise=0.25, momentum=momentum)
    assert risk.mean() == pytest.approx(expected, abs=5 * risk.std() / math.sqrt(runs))


def test_risk_of_an_unlimited_batch_is_that_of_the_quadratic():
    t = [0, 1, 7, 200]
    risk = theory.regression_risk(H, 0.9, 1e15, t, label_noise=0.0, momentum=0.4)
    quadratic = theory.noisy_quadratic(H, 0.9, 1, t, noise=0.0, momentum=0.4)
    np.testing.assert_allclose(risk, quadratic, rtol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("h", [H, np.array([2.0]), 1 / np.arange(1, 5)])
def test_largest_stable_rate_is_where_the_matrix_of_the_recursion_has_radius_one(h, batch, momentum):
    rate = theory.stable_learning_rate(h, batch, momentum)

    def radius(factor):
        return np.abs(np.linalg.eigvals(map_of_moments(h, factor * rate, batch, momentum))).max()

    assert radius(1.0) == pytest.approx(1, abs=1e-9)
    assert radius(0.999) < 1 < radius(1.001)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_noise_that_does_not_depend_on_the_weights_leaves_the_limit(momentum):
    """The loss of the noisy quadratic stays bounded below it and does not above it."""
    rate = theory.stable_learning_rate(H, momentum=momentum)
    assert rate == pytest.approx(2 * (1 + momentum) / H.max(), rel=1e-15)
    below, above = (
        theory.noisy_quadratic(H, factor * rate, 1, [10_000, 20_000], momentum=momentum) for factor in (0.999, 1.001)
    )
    assert below[1] == pytest.approx(below[0], rel=1e-6)
    assert above[1] > 2 * above[0]


def test_limits_known_in_closed_form():
    for batch in (1, 3, 50):  # one dimension: alpha h = 2 B / (B + 2)
        assert theory.stable_learning_rate(0.5, batch) == pytest.approx(2 * 2 * batch / (batch + 2), rel=1e-14)
    equal = theory.stable_learning_rate(np.ones(10), 4)  # d equal ones: alpha h = 2 B / (B + d + 1)
    assert equal == pytest.approx(2 * 4 / (4 + 10 + 1), rel=1e-14)
    assert theory.stable_learning_rate([1.0, 0.5], 1e12) == pytest.approx(2, rel=1e-9)
    assert theory.stable_learning_rate([0.0, 0.0], 3) == theory.stable_learning_rate(0.0) == math.inf


def test_a_diverging_risk_ends_at_infinity():
    assert theory.regression_risk(1.0, 3.0, 1, 5000, momentum=0.3) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.regression_risk([-1.0], 0.1, 1, 1), "curvature has an entry"),
        (lambda: theory.regression_risk([1.0], 0.1, 0, 1), "batch_size is 0"),
        (lambda: theory.regression_risk([1.0], 0.1, 1, -1), "steps is -1"),
        (lambda: theory.regression_risk([1.0], 0.1, 1, 1, label_noise=-1.0), "label_noise is -1.0"),
        (lambda: theory.regression_risk([1.0], 0.1, 1, 1, momentum=1.0), "momentum is 1.0"),
        (lambda: theory.stable_learning_rate([math.inf]), "curvature has an entry"),
        (lambda: theory.stable_learning_rate(1.0, 0), "batch is 0"),
        (lambda: theory.stable_learning_rate(1.0, momentum=-0.1), "momentum is -0.1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
