import math

import numpy as np
import pytest
import torch

from depthgauge import theory


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


def recursion(h, c, start, rates, *, momentum, averaging):
    """Loss at every step, one eigenvalue after the other, by full matrices of (theta, v, average)."""
    loss = np.zeros(len(rates) + 1)
    for i in range(len(h)):
        moments = np.zeros((3, 3))
        moments[np.ix_([0, 2], [0, 2])] = start[i]
        loss[0] += h[i] * start[i] / 2
        for t, rate in enumerate(rates, 1):
            velocity = np.array([[1, 0, 0], [h[i], momentum, 0], [0, 0, 1]])
            weights = np.array([[1, -rate, 0], [0, 1, 0], [0, 0, 1]])
            average = np.array([[1, 0, 0], [0, 1, 0], [1 - averaging, 0, averaging]])
            step, push = average @ weights @ velocity, average @ weights @ np.array([0.0, 1.0, 0.0])
            moments = step @ moments @ step.T + c[i] * np.outer(push, push)
            loss[t] += h[i] * moments[2, 2] / 2
    return loss


def cooled(step):
    return 1 / (1 + step / 3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("averaging", [0.0, 0.8])
@pytest.mark.parametrize("schedule", [None, cooled, [1.0] * 9 + [0.5] * 60])
def test_momentum_averages_and_schedules_are_the_recursion(momentum, averaging, schedule):
    h, c, start = np.array([1.0, 0.1, 0.003, 0.0]), np.array([0.5, 2.0, 0.0, 1.0]), np.array([1.0, 3.0, 2.0, 1.0])
    alpha, batch, steps = 0.7, 16, 50
    factors = (
        [1.0] * steps if schedule is None else [schedule(t) for t in range(steps)] if callable(schedule) else schedule
    )
    expected = recursion(h, c / batch, start, alpha * np.array(factors[:steps]), momentum=momentum, averaging=averaging)
    given = {"momentum": momentum, "averaging": averaging, "schedule": schedule}
    found = theory.noisy_quadratic(h, alpha, batch, np.arange(steps + 1), noise=c, start=start, **given)
    np.testing.assert_allclose(found, expected, rtol=1e-11)
    some = theory.noisy_quadratic(h, alpha, batch, [[41, 3], [0, 41]], noise=c, start=start, **given)
    np.testing.assert_allclose(some, expected[[[41, 3], [0, 41]]], rtol=1e-11)


def test_without_momentum_the_recursion_is_the_closed_form():
    h, t = 1 / np.arange(1, 30), np.arange(2000)
    closed = theory.noisy_quadratic(h, 0.7, 3, t)
    np.testing.assert_allclose(theory.noisy_quadratic(h, 0.7, 3, t, schedule=np.ones(2000)), closed, rtol=1e-10)
    np.testing.assert_allclose(theory.noisy_quadratic(h, 0.7, 3, t, averaging=1e-12), closed, rtol=1e-9)


def test_heavy_ball_is_that_of_torch():
    """Without noise: SGD of torch with momentum, a schedule, and its exponential average of the weights."""
    h, start = torch.tensor([1.0, 0.2], dtype=torch.float64), torch.tensor([3.0, -1.0], dtype=torch.float64)
    weights = torch.nn.Parameter(start.clone())
    module = torch.nn.ParameterList([weights])
    optimizer = torch.optim.SGD([weights], lr=0.5, momentum=0.8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cooled)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7))
    average.update_parameters(module)  # the first call copies
    losses = []
    for _ in range(12):
        losses.append(float((h * average.module[0].detach() ** 2).sum() / 2))
        optimizer.zero_grad()
        ((h * weights**2).sum() / 2).backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(module)
    found = theory.noisy_quadratic(
        h.numpy(), 0.5, 1, np.arange(12), noise=0.0, start=(start**2).numpy(), momentum=0.8, averaging=0.7,
        schedule=cooled,
    )  # fmt: skip
    np.testing.assert_allclose(found, losses, rtol=1e-10)


def test_stationary_loss_of_the_heavy_ball():
    """Variance of the AR(2) process theta' = (1 + b - a h) theta - b theta_before - a n, after 10^9 steps."""
    h, a, b, c, batch = 0.5, 0.8, 0.6, 2.0, 7
    variance = (1 + b) * a**2 * c / batch / ((1 - b) * ((1 + b) ** 2 - (1 + b - a * h) ** 2))
    loss = theory.noisy_quadratic(h, a, batch, 10**9, noise=c, momentum=b)
    assert loss == pytest.approx(h * variance / 2, rel=1e-12)


def test_with_momentum_what_diverges_ends_at_infinity():
    assert theory.noisy_quadratic([4.0, 1.0], 1.0, 1, [1, 10_000], momentum=0.5)[1] == math.inf
    assert theory.noisy_quadratic(4.0, 1.0, 1, 10_000, noise=0.0, start=0.0, momentum=0.5, averaging=0.5) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.noisy_quadratic([-1.0], 0.1, 1, 1), "curvature has an entry"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 0, 1), "batch_size is 0"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 1, 1.5), "steps is 1.5"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 1, 1, momentum=1.0), "momentum is 1.0"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 1, 1, averaging=-0.1), "averaging is -0.1"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 1, 3, schedule=[1.0, 1.0]), "2 factors, where 3 steps"),
        (lambda: theory.noisy_quadratic([1.0], 0.1, 1, 1, schedule=[-1.0]), "schedule has a factor"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
