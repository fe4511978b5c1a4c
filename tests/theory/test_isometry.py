"""The Jacobian's spectrum against closed forms, and against networks whose singular values are computed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthgauge import theory


def squared_singular_values(
    phi: str, sigma_w: float, depth: int, n: int, draws: int, *, orthogonal: bool
) -> np.ndarray:
    """(draws, n), for networks without biases whose input has second moment 1."""
    generator = np.random.default_rng(0)
    jacobian, h = np.broadcast_to(np.eye(n), (draws, n, n)), generator.standard_normal((draws, n, 1))
    h *= math.sqrt(n) / np.linalg.norm(h, axis=1, keepdims=True)
    for _ in range(depth):
        weights = sigma_w * generator.standard_normal((draws, n, n)) / math.sqrt(n)
        if orthogonal:
            q, r = np.linalg.qr(weights)
            weights = sigma_w * q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
        h = weights @ h
        value, slope = theory.activation(phi).both(h)
        h, jacobian = value, slope * (weights @ jacobian)
    return np.linalg.svd(jacobian, compute_uv=False) ** 2


def assert_mean(values: np.ndarray, predicted: float, *, more: float = 0.0) -> None:
    """Within five standard errors, and `more` as a share of the prediction where theory is a limit."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert values.mean() == pytest.approx(predicted, abs=5 * error + more * predicted)


@pytest.mark.parametrize(
    ("phi", "weights", "a_layer"),
    [("identity", "gaussian", 1), ("identity", "orthogonal", 0), ("relu", "gaussian", 2), ("relu", "orthogonal", 1)],
)
def test_variance_grows_by_whole_numbers_where_the_slope_is_0_or_1(phi: str, weights: str, a_layer: int) -> None:
    """mu_2 / mu_1^2 is 1 for the identity and 2 for ReLU; Gaussian weights add 1."""
    sigma_w = theory.gain(phi).backward
    for depth in (1, 7):
        spectrum = theory.jacobian_spectrum(phi, sigma_w, 1.0, depth, weights=weights)
        assert spectrum == pytest.approx((1.0, a_layer * depth), rel=1e-12)


def test_tanh_is_isometric_in_the_limit_of_small_signals() -> None:
    """tanh'(h)^2 = 1 - 2 h^2 + O(h^4), so that mu_2 / mu_1^2 - 1 = 8 q^2 + O(q^3) from the variance of h^2, 2 q^2."""
    for q in (1e-2, 1e-3):
        sigma_w = theory.layer_moments("tanh", q).slope2 ** -0.5
        spectrum = theory.jacobian_spectrum("tanh", sigma_w, q, 10, weights="orthogonal")
        assert spectrum.mean == pytest.approx(1.0, rel=1e-10)
        assert spectrum.variance == pytest.approx(10 * 8 * q**2, rel=20 * q)


def test_layers_of_different_variance_add_up() -> None:
    parts = [theory.jacobian_spectrum("tanh", 1.3, q, 1) for q in (0.3, 0.8)]
    both = theory.jacobian_spectrum("tanh", 1.3, (0.3, 0.8), 2)
    assert both.mean == pytest.approx(parts[0].mean * parts[1].mean, rel=1e-12)
    relative = sum(part.variance / part.mean**2 for part in parts)
    assert both.variance == pytest.approx(both.mean**2 * relative, rel=1e-12)


def test_one_gaussian_layer_of_finite_width() -> None:
    """A Wishart matrix: E[tr A^2] / n = 2 + 1/n and E[(tr A)^2] / n^2 = 1 + 2/n^2."""
    for n in (1, 5, 64):
        spectrum = theory.jacobian_spectrum("identity", 1.0, 1.0, 1, width=n)
        assert spectrum == pytest.approx((1.0, 1 + 1 / n - 2 / n**2), rel=1e-12)


@pytest.mark.parametrize("phi", ["identity", "relu"])
def test_finite_width_tends_to_infinite(phi: str) -> None:
    sigma_w = theory.gain(phi).backward
    wide = theory.jacobian_spectrum(phi, sigma_w, 1.0, 8, width=10**7)
    assert wide == pytest.approx(theory.jacobian_spectrum(phi, sigma_w, 1.0, 8), rel=1e-5)


@pytest.mark.parametrize("phi", ["identity", "relu"])
def test_finite_width_is_exact(phi: str) -> None:
    """At width 12, where the limit is off by a third; 3,000 networks."""
    sigma_w = theory.gain(phi).backward
    values = squared_singular_values(phi, sigma_w, 3, 12, 3000, orthogonal=False)
    exact = theory.jacobian_spectrum(phi, sigma_w, 1.0, 3, width=12)
    assert_mean(values.mean(1), exact.mean)
    assert_mean(values.var(1), exact.variance)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_tanh_networks_have_the_predicted_spectrum(orthogonal: bool) -> None:
    """At width 150 and depth 4; what the limit leaves out is of order depth / width."""
    sigma_w, depth, n = 1.4, 4, 150
    q = theory.variance_trajectory("tanh", sigma_w, 0.0, sigma_w**2, depth - 1)
    weights = "orthogonal" if orthogonal else "gaussian"
    predicted = theory.jacobian_spectrum("tanh", sigma_w, q, depth, weights=weights)
    values = squared_singular_values("tanh", sigma_w, depth, n, 20, orthogonal=orthogonal)
    assert_mean(values.mean(1), predicted.mean, more=depth / n)
    assert_mean(values.var(1), predicted.variance, more=depth / n)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"weights": "uniform"}, "'gaussian' or 'orthogonal', not 'uniform'"),
        ({"q": (1.0, 2.0)}, "q has 2 variances for 3 layers"),
        ({"width": 8}, "not for tanh under gaussian ones; leave the width out"),
    ],
)
def test_what_is_not_known_ends_in_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        theory.jacobian_spectrum(**{"phi": "tanh", "sigma_w": 1.0, "q": 1.0, "depth": 3, **arguments})


def test_critical_sigmas_keep_the_variance_and_the_gradient() -> None:
    for phi, q in (("tanh", 0.01), ("tanh", 1.0), ("gelu", 1.0)):
        sigma_w, sigma_b = theory.critical_sigmas(phi, q)
        assert theory.chi(phi, sigma_w, q) == pytest.approx(1.0, rel=1e-12)
        np.testing.assert_allclose(theory.variance_trajectory(phi, sigma_w, sigma_b, q, 20), q, rtol=1e-9)
    assert theory.critical_sigmas("relu", 1.0) == (pytest.approx(math.sqrt(2)), 0.0)
    with pytest.raises(ValueError, match=r"softplus has no critical point of variance 0\.01$"):
        theory.critical_sigmas("softplus", 0.01)
