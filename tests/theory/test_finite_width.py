"""Exact laws against mpmath and against simulation; tolerances are five standard errors of what is simulated."""

import math

import mpmath
import numpy as np
import pytest
import torch

from depthgauge import theory
from depthgauge.theory.expectation import moments


def agrees(sample, mean, variance, errors=5.0):
    """Whether a sample's mean and variance are within `errors` standard errors of theory; kurtosis from the sample."""
    n = len(sample)
    centred = sample - sample.mean()
    spread = math.sqrt(float((centred**4).mean() - (centred**2).mean() ** 2) / n)
    assert sample.mean() == pytest.approx(mean, abs=errors * math.sqrt(variance / n))
    assert sample.var() == pytest.approx(variance, abs=errors * spread)


def log_chi2(sigma_w2, n, m):
    """(mean, second moment) of ln(sigma_w2 chi^2_m / n), by mpmath from the density."""
    with mpmath.workdps(25):
        a = mpmath.mpf(m) / 2

        def moment(k):
            # t = ln(chi^2 / 2) has density exp(a t - e^t) / Gamma(a)
            shift = mpmath.log(2 * mpmath.mpf(sigma_w2) / n)
            return mpmath.quad(
                lambda t: (shift + t) ** k * mpmath.exp(a * t - mpmath.exp(t)) / mpmath.gamma(a),
                [-300, -60, -20, -5, 0, 2, 6],
            )

        return moment(1), moment(2)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("sigma_w2", [1.0, 2.0])
def test_relu_log_gain_of_narrow_layers(width, sigma_w2):
    weights = {m: math.comb(width, m) / (2**width - 1) for m in range(1, width + 1)}
    parts = {m: log_chi2(sigma_w2, width, m) for m in weights}
    first = sum(weights[m] * parts[m][0] for m in weights)
    second = sum(weights[m] * parts[m][1] for m in weights)
    mean, variance = theory.relu_log_gain(width, sigma_w2)
    assert mean == pytest.approx(float(first), rel=1e-12)
    assert variance == pytest.approx(float(second - first**2), rel=1e-12)


def test_relu_log_gain_forward_and_backward_against_simulation():
    width, samples = 6, 40_000
    rng = np.random.default_rng(1)
    w = rng.normal(0, math.sqrt(2 / width), (samples, width, width))
    x = rng.normal(size=width)
    v = rng.normal(size=(samples, width))
    h = w @ x
    mask = h > 0
    alive = mask.any(1)
    dying = theory.relu_dying_probability(width)
    assert 1 - alive.mean() == pytest.approx(dying, abs=5 * math.sqrt(dying / samples))
    law = theory.relu_log_gain(width, 2.0)
    forward = np.log((np.where(mask, h, 0) ** 2).sum(1)[alive] / (x @ x))
    backward = np.log((np.einsum("sij,si->sj", w, mask * v)[alive] ** 2).sum(1) / (v[alive] ** 2).sum(1))
    agrees(forward, *law)
    agrees(backward, *law)


@pytest.mark.parametrize("width", [256, 4096, 10**6])
def test_relu_log_gain_tends_to_its_asymptote_at_the_next_order(width):
    mean, variance = theory.relu_log_gain(width, 2.0)
    assert mean == pytest.approx(-5 / (2 * width), abs=20 / width**2)
    assert variance == pytest.approx(5 / width, abs=60 / width**2)


@pytest.mark.parametrize("width", [1, 5, 300])
def test_log_gains_shift_with_the_weights(width):
    for law in (theory.relu_log_gain, theory.linear_log_gain):
        one, four = law(width, 1.0), law(width, 4.0)
        assert four.mean - one.mean == pytest.approx(math.log(4), rel=1e-12)
        assert four.variance == pytest.approx(one.variance, rel=1e-12)


def test_dying_in_one_of_many_layers():
    assert theory.relu_dying_probability(1) == 0.5
    assert theory.relu_dying_probability(3, depth=10) == pytest.approx(1 - (7 / 8) ** 10, rel=1e-14)
    assert theory.relu_dying_probability(5000) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_linear_log_gain_against_simulation(n):
    rng = np.random.default_rng(n)
    agrees(np.log(1.3 / n * rng.chisquare(n, 100_000)), *theory.linear_log_gain(n, 1.3))


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_top_exponent_is_the_growth_of_a_vector(n):
    exponents = theory.lyapunov_exponents(n, 0.37)
    assert exponents.shape == (n,)
    assert np.all(np.diff(exponents) < 0)
    assert exponents[0] == pytest.approx(theory.log_norm_growth(n, 0.37).mean, rel=1e-13)
    assert theory.lyapunov_exponents(n, theory.critical_sigma(n))[0] == pytest.approx(0, abs=1e-14)
    assert theory.critical_sigma(n) > 1 / math.sqrt(n)
    # the sum of all is the mean of ln|det|, a sum of independent ln(chi^2) (Bartlett)
    total = sum(theory.linear_log_gain(k, k * 0.37**2).mean / 2 for k in range(1, n + 1))
    assert exponents.sum() == pytest.approx(total, rel=1e-12)


def test_one_by_one_products_are_scalars():
    """E ln|z| = -(gamma + ln 2) / 2."""
    assert theory.lyapunov_exponents(1, 1.0)[0] == pytest.approx(-(np.euler_gamma + math.log(2)) / 2, rel=1e-14)


def test_exponents_against_products_of_matrices():
    """QR by QR over 20,000 factors; increments of neighbouring factors are independent, so errors are plain."""
    n, factors, sigma = 4, 20_000, 0.6
    rng = np.random.default_rng(0)
    q = np.eye(n)
    logs = np.empty((factors, n))
    for k in range(factors):
        q, r = np.linalg.qr(rng.normal(0, sigma, (n, n)) @ q)
        logs[k] = np.log(np.abs(np.diag(r)))
    expected = theory.lyapunov_exponents(n, sigma)
    for i in range(n):
        # the i-th diagonal entry of R is sigma chi_(n-i)
        variance = theory.linear_log_gain(n - i, 1.0).variance / 4
        agrees(logs[:, i], expected[i], variance)


@pytest.mark.parametrize(("phi", "v"), [("relu", 5), ("identity", 2)])
def test_asymptotic_law_has_the_known_coefficients(phi, v):
    law = theory.asymptotic_log_gain(phi, 1.7, 0.3, 1000)
    share = 0.5 if phi == "relu" else 1
    assert law.variance == pytest.approx(v / 1000, rel=1e-12)
    assert law.mean == pytest.approx(math.log(1.7**2 * share) - v / 2000, rel=1e-12)


@pytest.mark.parametrize(("phi", "q"), [("tanh", 2.0), ("gelu", 0.7)])
def test_asymptotic_law_against_simulation_of_one_layer(phi, q):
    width, samples = 400, 20_000
    rng = np.random.default_rng(3)
    h = rng.normal(0, math.sqrt(q), (samples, width))
    g = rng.normal(0, 1.2 / math.sqrt(width), (samples, width))
    log_gain = np.log(((theory.activation(phi).slope(h) * g) ** 2).sum(1))
    law = theory.asymptotic_log_gain(phi, 1.2, q, width)
    # what is left out is of order (v/n)^2; v < 8 here
    slack = 3 * (8 / width) ** 2
    assert log_gain.mean() == pytest.approx(law.mean, abs=5 * math.sqrt(law.variance / samples) + slack)
    assert log_gain.var() == pytest.approx(law.variance, abs=5 * law.variance * math.sqrt(2.5 / samples) + slack)


@pytest.mark.parametrize(
    ("phi", "sigma_w", "sigma_b"),
    [("elu", 1.2, 0.3), ("tanh", 1.6, 0.2), ("relu", math.sqrt(2), 0.0), ("identity", 1.0, 0.5)],
)
def test_signal_law_against_networks(phi, sigma_w, sigma_b):
    """Narrow and many, so that what is of first order in 1/width stands out from the sampling error.

    For ELU the mean would be 12 standard errors off without the term for the reuse of weights.
    """
    width, depth, nets, q_0 = 32, 8, 10_000, 0.8
    generator = torch.Generator().manual_seed(5)
    activation = theory.activation(phi)
    h = torch.randn(nets, width, generator=generator) * math.sqrt(q_0)
    forward, weights, slopes = [h], [], []
    for _ in range(depth):
        w = torch.randn(nets, width, width, generator=generator) * (sigma_w / math.sqrt(width))
        slopes.append(torch.from_numpy(activation.slope(h.double().numpy())).float())
        h = torch.einsum("sij,sj->si", w, activation(h)) + sigma_b * torch.randn(nets, width, generator=generator)
        weights.append(w)
        forward.append(h)
    g = torch.randn(nets, width, generator=generator)
    start = (g**2).sum(1)
    backward = [torch.zeros(nets)]
    for w, slope in zip(reversed(weights), reversed(slopes), strict=True):
        g = torch.einsum("sij,si->sj", w, g) * slope
        backward.append(torch.log((g**2).sum(1) / start))
    law = theory.signal_law(phi, sigma_w, sigma_b, q_0, depth, width=width)
    for layer in range(depth + 1):
        order = (1 + max(layer, depth - layer)) / width  # what is left out is of the square of this
        for sample, mean, std in (
            (torch.log((forward[layer] ** 2).mean(1)), law.forward_mean[layer], law.forward_std[layer]),
            (backward[depth - layer], law.backward_mean[layer], law.backward_std[layer]),
        ):
            assert sample.mean().item() == pytest.approx(mean, abs=5 * std / math.sqrt(nets) + 0.3 * order**2)
            assert sample.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * nets) + order / 2)


def test_signal_law_of_relu_is_the_random_walk_of_the_exact_law():
    depth, width = 30, 5000
    law = theory.signal_law("relu", math.sqrt(2), 0.0, 1.0, depth, width=width)
    exact = theory.relu_log_gain(width, 2.0)
    assert law.backward_std[0] ** 2 == pytest.approx(depth * exact.variance, rel=20 / width)
    assert law.backward_mean[0] == pytest.approx(depth * exact.mean, rel=20 / width)
    assert (law.backward_mean[depth], law.backward_std[depth]) == (0, 0)
    # forward: `depth` layers of ReLU and the 2/n of measuring the last on n units
    assert law.forward_std[depth] ** 2 == pytest.approx(depth * 5 / width + 2 / width, rel=1e-9)


def test_signal_law_of_what_overflows_is_unknown_there():
    law = theory.signal_law("relu", 1e3, 0.0, 1.0, 60, width=100)
    assert np.isfinite(law.forward_mean[:20]).all()
    assert np.isnan(law.forward_mean[-1])
    assert np.isnan(law.backward_mean[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.lyapunov_exponents(0, 1.0), "n is 0"),
        (lambda: theory.lyapunov_exponents(2, -1.0), "sigma is -1.0"),
        (lambda: theory.relu_log_gain(2.5, 2.0), "width is 2.5"),
        (lambda: theory.relu_log_gain(True, 2.0), "width is True"),
        (lambda: theory.linear_log_gain(4, math.nan), "sigma_w2 is nan"),
        (lambda: theory.asymptotic_log_gain("tanh", 1.0, -1.0, 4), "q is -1.0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_signal_along_a_jump_has_no_part_of_the_jump():
    """E[h phi phi'] of h where h > 1/2 and 0 elsewhere is E[h^2; h > 1/2]; the variance's rate has the jump's part."""
    q = np.array([0.3, 1.7])
    found = moments(theory.activation(torch.nn.Threshold(0.5, 0.0)), q)
    np.testing.assert_allclose(found.along, found.value2, rtol=1e-12)
    density = np.exp(-(0.5**2) / (2 * q)) / np.sqrt(2 * np.pi * q)
    np.testing.assert_allclose(found.value2_rate, found.along / q + 0.5**3 * density / (2 * q), rtol=1e-7)


@pytest.mark.parametrize(("sigma_w", "sigma_b", "known"), [(1.5, 0.5, True), (1.3, 0.3, False)])
def test_signal_law_behind_jumps_is_right_or_unknown(sigma_w, sigma_b, known):
    """Where the gradient turns toward the signal, the first order would be 217 nats, where mean field has -15."""
    phi = torch.nn.Threshold(0.5, 0.0)
    law = theory.signal_law(phi, sigma_w, sigma_b, sigma_w**2 + sigma_b**2, 20, width=128)
    field = np.log(theory.gradient_trajectory(phi, sigma_w, sigma_b, sigma_w**2 + sigma_b**2, 20))
    assert np.isfinite(law.forward_mean).all()
    assert np.isfinite(law.backward_mean[0]) == np.isfinite(law.backward_std[0]) == known
    assert np.isfinite(law.backward_mean[-4:]).all()
    if known:
        assert abs(law.backward_mean[0] - field[0]) < 0.5
    else:
        shallow = np.isfinite(law.backward_mean)
        assert (np.diff(shallow.astype(int)) >= 0).all()
        assert np.abs((law.backward_mean - field)[shallow]).max() < 0.5
