"""Gaussian expectations against closed forms, and against mpmath at 30 digits where there are none."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthgauge import theory
from depthgauge.theory.activation import activation
from depthgauge.theory.expectation import correlated, moments, second_moment

QS = [1e-12, 1e-3, 1.0, 37.0, 1e4, 1e8]


def one(phi, q):
    return theory.layer_moments(phi, q)


@pytest.mark.parametrize("q", QS)
def test_relu_moments(q):
    found = one("relu", q)
    assert found.value == pytest.approx(math.sqrt(q / (2 * math.pi)), rel=1e-13)
    assert found.value2 == pytest.approx(q / 2, rel=1e-13)
    assert found.value4 == pytest.approx(3 * q**2 / 2, rel=1e-13)
    assert found.slope2 == pytest.approx(0.5, rel=1e-13)
    assert found.mixed == pytest.approx(q / 2, rel=1e-13)
    assert found.value2_rate == pytest.approx(0.5, rel=1e-13)


@pytest.mark.parametrize("q", QS)
def test_erf_moments(q):
    """E[erf(u)^2] = (2/pi) asin(2q / (1 + 2q)) (Williams 1997); E[erf'(u)^2] = (4/pi) / sqrt(1 + 4q)."""
    found = one(torch.erf, q)
    assert found.value2 == pytest.approx(2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=2e-12)
    assert found.slope2 == pytest.approx(4 / math.pi / math.sqrt(1 + 4 * q), rel=2e-12)
    rate = 4 / math.pi / ((1 + 2 * q) * math.sqrt(1 + 4 * q))
    assert found.value2_rate == pytest.approx(rate, rel=2e-12)
    bend = -8 / math.pi / (1 + 4 * q) ** 1.5
    assert found.slope2_rate == pytest.approx(bend, rel=1e-11 + 1e-15 / q)  # z^2 - 1 cancels at small q


@pytest.mark.parametrize("q", [1e-3, 0.3, 1.0, 9.0, 1e4])
def test_tanh_against_mpmath(q):
    with mpmath.workdps(30):
        s = mpmath.sqrt(mpmath.mpf(q))
        points = sorted(
            {mpmath.mpf(0), *(mpmath.mpf(2) ** k / s for k in range(-1, 6)), *(mpmath.mpf(k) for k in (1, 3, 6, 14))}
        )
        points = [p for p in points if p <= 14]

        def mean(f):
            return 2 * mpmath.quad(lambda z: f(s * z) * mpmath.npdf(z), points)

        value2 = mean(lambda u: mpmath.tanh(u) ** 2)
        slope2 = mean(lambda u: mpmath.sech(u) ** 4)
    found = one("tanh", q)
    assert found.value2 == pytest.approx(float(value2), rel=1e-12)
    assert found.slope2 == pytest.approx(float(slope2), rel=1e-12)


@pytest.mark.parametrize("bound", [0.3, 1.0, math.pi])
@pytest.mark.parametrize("q", [1e-2, 1.0, 1e4])
def test_hardtanh_moments(bound, q):
    found = one(torch.nn.Hardtanh(-bound, bound), q)
    x = bound / math.sqrt(q)
    inside = math.erf(x / math.sqrt(2))
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    assert found.slope2 == pytest.approx(inside, rel=1e-12)
    assert found.value2 == pytest.approx(
        q * (inside - 2 * x * density) + bound**2 * math.erfc(x / math.sqrt(2)), rel=1e-11
    )


@pytest.mark.parametrize("q", [1e-3, 0.1, 1.0, 50.0])
def test_hardshrink_jumps(q):
    found = one("hardshrink", q)
    x = 0.5 / math.sqrt(q)
    outside = math.erfc(x / math.sqrt(2))
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    assert found.slope2 == pytest.approx(outside, rel=1e-12)
    assert found.value2 == pytest.approx(q * (outside + 2 * x * density), rel=1e-11)
    # d/dq of the line above; the jumps are in it
    assert found.value2_rate == pytest.approx(outside + 2 * x * density + x**3 * density, rel=1e-9)


def test_oscillation_that_can_be_resolved_is_and_other_is_refused():
    assert one(torch.sin, 100.0).value2 == pytest.approx((1 - math.exp(-200)) / 2, rel=1e-11)
    with pytest.raises(ValueError, match="too fast"):
        one(lambda u: torch.sin(1e4 * u), 100.0)


@pytest.mark.parametrize("c", [-1.0, -0.999, -0.4, 0.0, 0.3, 0.9, 0.9999, 1 - 1e-10, 1.0])
@pytest.mark.parametrize("pair", [(1.0, 1.0), (0.5, 3.0), (1e-6, 1e4)])
def test_relu_pair_is_the_arc_cosine_kernel(c, pair):
    """Cho and Saul (2009), eq. 1 and 6, at half their normalization."""
    q_a, q_b = pair
    angle = math.acos(c)
    value, slope = correlated(theory.activation("relu"), q_a, q_b, c)
    scale = math.sqrt(q_a * q_b)
    assert value == pytest.approx(
        scale * (math.sin(angle) + (math.pi - angle) * c) / (2 * math.pi), rel=1e-11, abs=1e-15 * scale
    )
    assert slope == pytest.approx((math.pi - angle) / (2 * math.pi), rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("c", [-1.0, -0.7, 0.0, 0.5, 0.99, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("pair", [(1.0, 1.0), (0.5, 3.0), (100.0, 100.0), (1e4, 1e4), (1e-4, 1e2)])
def test_erf_pair_is_williams_kernel(c, pair):
    q_a, q_b = pair
    value, slope = correlated(theory.activation(torch.erf), q_a, q_b, c)
    k = c * math.sqrt(q_a * q_b)
    expected = 2 / math.pi * math.asin(2 * k / math.sqrt((1 + 2 * q_a) * (1 + 2 * q_b)))
    assert value == pytest.approx(expected, rel=1e-10, abs=1e-14)
    expected = 4 / math.pi / math.sqrt((1 + 2 * q_a) * (1 + 2 * q_b) - 4 * k * k)
    assert slope == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["elu", "gelu", "hardtanh", "hardshrink", "softsign", "silu"])
@pytest.mark.parametrize("q", [0.2, 1.0, 30.0])
def test_pairs_agree_with_single_expectations_at_the_ends(name, q):
    phi = theory.activation(name)
    found = one(name, q)
    assert correlated(phi, q, q, 1.0)[0] == pytest.approx(found.value2, rel=1e-12)
    assert correlated(phi, q, q, 1.0)[1] == pytest.approx(found.slope2, rel=1e-12)
    assert correlated(phi, q, q, 0.0)[0] == pytest.approx(found.value**2, rel=1e-10, abs=1e-14)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["tanh", "gelu", "elu", "softplus"]), st.floats(1e-3, 1e3), st.floats(-0.95, 0.95))
def test_the_slope_is_the_derivative_of_the_pair(name, q, c):
    """d E[phi phi] / dc = q E[phi' phi'] (Price 1958), by a central difference."""
    phi = theory.activation(name)
    step = 1e-3
    low, high = (correlated(phi, q, q, c + k * step)[0] for k in (-1, 1))
    low2, high2 = (correlated(phi, q, q, c + 2 * k * step)[0] for k in (-1, 1))
    numerical = (8 * (high - low) - (high2 - low2)) / (12 * step)
    size = theory.layer_moments(name, q).value2
    assert q * correlated(phi, q, q, c)[1] == pytest.approx(numerical, rel=2e-5, abs=1e-9 * size)


def test_many_variances_at_once_are_what_each_is_alone():
    q = np.array([0.0, 1e-6, 1.0, 50.0])
    together = moments(theory.activation("gelu"), q)
    for k, alone in enumerate(q):
        np.testing.assert_allclose(
            [field[k] for field in together],
            [field[0] for field in moments(theory.activation("gelu"), alone[None])],
            rtol=1e-11,
            atol=1e-200,
        )


def asks_autograd(x):
    """x / cosh(x)^2, for which gradients must be recorded."""
    (slope,) = torch.autograd.grad(x.tanh().sum(), x, create_graph=True)
    return slope * x


PHIS = {
    "relu": "relu",
    "gelu": "gelu",
    "mish": "mish",
    "prelu": torch.nn.PReLU(init=0.1),
    "arctan": np.arctan,
    "asks": asks_autograd,
}


@pytest.mark.parametrize("phi", PHIS.values(), ids=PHIS)
def test_the_second_moment_alone_is_that_of_all_moments_to_the_bit(phi):
    phi = activation(phi)
    assert second_moment(phi, np.array(QS)).tobytes() == moments(phi, np.array(QS)).value2.tobytes()
