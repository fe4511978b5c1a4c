import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from depthgauge import theory
from depthgauge.theory.mean_field import _variances

SMOOTH = ["tanh", "sigmoid", "gelu", "silu", "elu", "softplus"]


def erf_map(q, sigma_w, sigma_b):
    return sigma_w**2 * 2 / math.pi * math.asin(2 * q / (1 + 2 * q)) + sigma_b**2


def test_he_and_xavier_gains():
    for gain in (theory.gain("relu").forward, theory.gain("relu").backward):
        assert gain == pytest.approx(math.sqrt(2), rel=1e-14)
    for gain in (theory.gain("identity").forward, theory.gain("identity").backward):
        assert gain == pytest.approx(1, rel=1e-14)
    assert theory.gain(torch.nn.LeakyReLU(0.2)).backward == pytest.approx(math.sqrt(2 / 1.04), rel=1e-7)  # 0.2 in float


def test_selu_keeps_unit_variance():
    """Klambauer et al. (2017) chose its two constants for that, to the digits of a double."""
    assert theory.gain("selu").forward == pytest.approx(1, abs=1e-12)


def test_no_gain_revives_a_constant():
    with pytest.raises(ValueError, match="zero almost everywhere"):
        theory.gain(torch.sign)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 6), st.floats(0, 1.5))
def test_erf_network_against_closed_forms(sigma_w, sigma_b):
    """Williams (1997): every figure of the fixed point from arcsines alone."""
    assume(abs(sigma_w**2 * 4 / math.pi - 1) > 1e-3 or sigma_b > 1e-3)  # at the edge the error is amplified by xi
    assume(sigma_b == 0 or sigma_b > 1e-3)
    field = theory.mean_field(torch.erf, sigma_w, sigma_b)
    q = field.q_star
    assert erf_map(q, sigma_w, sigma_b) == pytest.approx(q, rel=1e-11, abs=1e-30)
    chi_1 = sigma_w**2 * 4 / math.pi / math.sqrt(1 + 4 * q)
    assert field.chi_1 == pytest.approx(chi_1, rel=1e-9)
    rate = sigma_w**2 * 4 / math.pi / ((1 + 2 * q) * math.sqrt(1 + 4 * q))
    assert field.xi_q == pytest.approx(-1 / math.log(rate), rel=1e-7)
    c = field.c_star
    if chi_1 < 1:
        assert c == 1
        assert field.xi_c == pytest.approx(-1 / math.log(chi_1), rel=1e-7)
    else:
        kernel = 2 / math.pi * math.asin(2 * q * c / (1 + 2 * q))
        assert (sigma_w**2 * kernel + sigma_b**2) / q == pytest.approx(c, rel=1e-9, abs=1e-12)
        slope = sigma_w**2 * 4 / math.pi / math.sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)
        assert slope < 1
        assert field.xi_c == pytest.approx(-1 / math.log(slope), rel=1e-5)


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(0.7, 0.2), (1.4, 0.05), (1.0, 1.0)])
def test_relu_is_ordered_with_a_known_fixed_point(sigma_w, sigma_b):
    field = theory.mean_field("relu", sigma_w, sigma_b)
    chi_1 = sigma_w**2 / 2
    assert field.q_star == pytest.approx(sigma_b**2 / (1 - chi_1), rel=1e-11)
    assert field.chi_1 == pytest.approx(chi_1, rel=1e-13)
    assert field.c_star == 1
    assert field.xi_q == pytest.approx(-1 / math.log(chi_1), rel=1e-10)
    assert field.xi_c == pytest.approx(-1 / math.log(chi_1), rel=1e-10)


@pytest.mark.parametrize(("phi", "sigma_w"), [("relu", math.sqrt(2)), ("identity", 1.0)])
def test_where_every_variance_is_fixed_it_is_that_of_the_start(phi, sigma_w):
    field = theory.mean_field(phi, sigma_w, 0.0)
    assert field.q_star == 1
    assert field.chi_1 == pytest.approx(1, rel=1e-14)
    assert field.xi_q == field.xi_c == math.inf
    assert field.c_star == 1


@pytest.mark.parametrize(
    ("phi", "sigma_w", "sigma_b"),
    [("relu", 1.5, 0.0), ("relu", math.sqrt(2), 0.1), ("identity", 1.0, 0.5), ("gelu", 2.0, 0.0), ("relu", 100.0, 0.0)],
)
def test_what_grows_without_bound_has_no_fixed_point(phi, sigma_w, sigma_b):
    with pytest.raises(theory.NoFixedPoint, match="no fixed point"):
        theory.mean_field(phi, sigma_w, sigma_b)


def test_tanh_dies_out_below_one_and_is_critical_at_one():
    field = theory.mean_field("tanh", 0.8, 0.0)
    assert (field.q_star, field.c_star) == (0.0, 1.0)
    assert field.chi_1 == pytest.approx(0.64, rel=1e-13)
    assert field.xi_q == pytest.approx(-1 / math.log(0.64), rel=1e-10)
    critical = theory.mean_field("tanh", 1.0, 0.0)
    assert (critical.q_star, critical.chi_1, critical.xi_c) == (0.0, 1.0, math.inf)


@pytest.mark.parametrize("excess", [1e-2, 1e-3, 1e-4])
def test_tanh_just_above_critical(excess):
    """tanh(u)^2 = u^2 - 2u^4/3 + 17u^6/45: q* = (1 - 1/s)/2 + O(excess^2), s = sigma_w^2."""
    field = theory.mean_field("tanh", math.sqrt(1 + excess), 0.0)
    assert field.q_star == pytest.approx(excess / 2, rel=5 * excess)
    assert field.c_star == 0


def test_tanh_at_large_sigma_is_a_sign():
    """q* = sigma_w^2 + sigma_b^2 - O(sigma_w) and the correlation map tends to (2/pi) asin."""
    field = theory.mean_field("tanh", 1e4, 0.0)
    q = field.q_star
    assert q == pytest.approx(1e8, rel=1e-3)
    # E[1 - tanh^2] = E[sech^2] -> 2 / sqrt(2 pi q), E[sech^4] -> (4/3) / sqrt(2 pi q): both up to 1/q
    assert 1e8 - q == pytest.approx(1e8 * 2 / math.sqrt(2 * math.pi * q), rel=1e-6)
    assert field.chi_1 == pytest.approx(1e8 * 4 / 3 / math.sqrt(2 * math.pi * q), rel=1e-6)


def test_the_fixed_point_returned_is_the_one_that_one_flows_to():
    for phi, sigma_w, sigma_b in [("silu", 1.4, 0.5), ("gelu", 1.4, 0.3), ("elu", 1.1, 0.1), ("softplus", 0.9, 0.3)]:
        q = theory.variance_trajectory(phi, sigma_w, sigma_b, 1.0, 400)[-1]
        assert theory.mean_field(phi, sigma_w, sigma_b).q_star == pytest.approx(q, rel=1e-8)


def test_a_jump_keeps_similar_inputs_apart():
    def step(u):
        return torch.where(u > 0, 1.0, -1.0) + 0 * u

    field = theory.mean_field(step, 1.0, 0.5)
    assert field.chi_1 == 0
    # correlation map of the sign: (2/pi) asin(c) weighed with the bias
    c, q = field.c_star, 1.25
    assert field.q_star == pytest.approx(q, rel=1e-12)
    assert c < 0.99
    assert (2 / math.pi * math.asin(c) + 0.25) / q == pytest.approx(c, abs=1e-9)
    slope = 2 / math.pi / math.sqrt(1 - c * c) / q
    assert field.xi_c == pytest.approx(-1 / math.log(slope), rel=1e-5)


@pytest.mark.parametrize(
    ("phi", "sigma_b", "expected"),
    [("relu", 0.0, math.sqrt(2)), ("tanh", 0.0, 1.0), ("identity", 0.0, 1.0), ("gelu", 0.0, 2.0)],
)
def test_known_critical_weights(phi, sigma_b, expected):
    assert theory.critical_sigma_w(phi, sigma_b) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("phi", "weight", "bias"), [("silu", 1.988, 0.555), ("gelu", 1.983, 0.173)])
def test_half_stable_points_of_the_literature(phi, weight, bias):
    """Roberts, Yaida and Hanin (2022), section 5.3.4: (C_W, C_b), given to three decimals."""
    assert theory.critical_sigma_w(phi, math.sqrt(bias)) ** 2 == pytest.approx(weight, abs=2e-3)


@pytest.mark.parametrize("phi", ["tanh", torch.erf, "hardtanh", "softsign", "sigmoid"])
@pytest.mark.parametrize("sigma_b", [0.01, 0.2, 1.0])
def test_the_critical_point_is_where_the_gradient_neither_grows_nor_shrinks(phi, sigma_b):
    try:
        sigma_w = theory.critical_sigma_w(phi, sigma_b)
    except theory.NoFixedPoint:
        assert phi == "sigmoid"
        return
    field = theory.mean_field(phi, sigma_w, sigma_b)
    assert field.chi_1 == pytest.approx(1, abs=1e-9)
    below, above = (theory.mean_field(phi, sigma_w * k, sigma_b).chi_1 for k in (0.99, 1.01))
    assert below < 1 < above


def test_relu_with_bias_has_no_critical_weight():
    with pytest.raises(theory.NoFixedPoint, match="no critical sigma_w"):
        theory.critical_sigma_w("relu", 0.1)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.2, 1.3), st.floats(0.01, 2), st.floats(0.1, 10))
def test_relu_is_homogeneous(sigma_w, sigma_b, scale):
    small, large = (theory.mean_field("relu", sigma_w, sigma_b * k) for k in (1, scale))
    assert large.q_star == pytest.approx(small.q_star * scale**2, rel=1e-9)
    assert large.chi_1 == pytest.approx(small.chi_1, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SMOOTH), st.floats(0.3, 3), st.floats(0.1, 1), st.floats(0.2, 5))
def test_scaling_the_activation_scales_the_weight(name, sigma_w, sigma_b, scale):
    inner = theory.activation(name)

    def scaled(u):
        return scale * inner(u)

    try:
        field = theory.mean_field(name, sigma_w, sigma_b)
    except theory.NoFixedPoint:
        with pytest.raises(theory.NoFixedPoint):
            theory.mean_field(scaled, sigma_w / scale, sigma_b)
        return
    other = theory.mean_field(scaled, sigma_w / scale, sigma_b)
    assume(field.xi_q < 100)
    assert other.q_star == pytest.approx(field.q_star, rel=1e-9)
    assert other.chi_1 == pytest.approx(field.chi_1, rel=1e-9)


def test_variance_trajectory_is_the_iterated_map():
    q = theory.variance_trajectory(torch.erf, 1.7, 0.3, 0.4, 30)
    assert q.shape == (31,)
    assert q[0] == 0.4
    for before, after in itertools.pairwise(q):
        assert after == pytest.approx(erf_map(before, 1.7, 0.3), rel=1e-12)


def test_exploding_variance_ends_at_infinity_and_its_gradient_is_unknown():
    q = theory.variance_trajectory("relu", 1e3, 0.0, 1.0, 60)
    np.testing.assert_allclose(q[:10], (5e5) ** np.arange(10), rtol=1e-12)
    assert q[-1] == math.inf
    gradient = theory.gradient_trajectory("relu", 1e3, 0.0, 1.0, 60)
    assert gradient[-1] == 1
    assert math.isnan(gradient[0])


def test_correlation_trajectory_of_relu_with_unequal_variances():
    c = theory.correlation_trajectory("relu", math.sqrt(2), 0.0, 0.1, 10, q_0=(0.5, 7.0))
    expected = 0.1
    for measured in c:
        assert measured == pytest.approx(expected, rel=1e-10)
        angle = math.acos(expected)
        expected = (math.sin(angle) + (math.pi - angle) * expected) / math.pi


def test_correlation_goes_to_its_fixed_point_at_its_depth_scale():
    field = theory.mean_field("tanh", 1.5, 0.3)
    c = theory.correlation_trajectory("tanh", 1.5, 0.3, 0.9, 150)
    assert c[-1] == pytest.approx(field.c_star, abs=1e-3)
    gap = c - field.c_star
    assert gap[101] / gap[100] == pytest.approx(math.exp(-1 / field.xi_c), rel=1e-2)


def test_correlation_of_what_died_out_is_unknown():
    c = theory.correlation_trajectory("identity", 0.0, 0.0, 0.5, 3, q_0=1.0)
    assert c[0] == 0.5
    assert np.isnan(c[1:]).all()


def test_gradient_trajectory_is_the_product_of_chi():
    depth, args = 12, ("tanh", 1.3, 0.2)
    q = theory.variance_trajectory(*args, 3.0, depth)
    ratio = theory.gradient_trajectory(*args, 3.0, depth)
    assert ratio[depth] == 1
    for layer in range(depth):
        assert ratio[layer] / ratio[layer + 1] == pytest.approx(theory.chi("tanh", 1.3, q[layer]), rel=1e-12)


@pytest.mark.parametrize("fan_in", [1, 7, 512])
def test_default_linear_is_what_torch_draws(fan_in):
    sigma_w, sigma_b = theory.default_linear(fan_in)
    bound = 1 / math.sqrt(fan_in)
    torch.manual_seed(fan_in)
    layer = torch.nn.Linear(fan_in, 20_000 // fan_in + 2000)
    for values, variance in ((layer.weight, sigma_w**2 / fan_in), (layer.bias, sigma_b**2)):
        x = values.detach().double()
        assert x.abs().max() <= bound
        # Var(x^2) = b^4 (1/5 - 1/9): five standard errors of the mean square
        error = 5 * bound**2 * math.sqrt((1 / 5 - 1 / 9) / x.numel())
        assert float((x**2).mean()) == pytest.approx(variance, abs=error)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.mean_field("tanh", -1.0, 0.0), "sigma_w is -1.0"),
        (lambda: theory.mean_field("tanh", 1.0, math.nan), "sigma_b is nan"),
        (lambda: theory.mean_field("tanh", 1.0, None), "sigma_b is None"),
        (lambda: theory.critical_sigma_w("tanh", math.inf), "sigma_b is inf"),
        (lambda: theory.variance_trajectory("tanh", 1.0, 0.0, -1.0, 3), "q_0 is -1.0"),
        (lambda: theory.variance_trajectory("tanh", 1.0, 0.0, 1.0, 2.5), "depth is 2.5"),
        (lambda: theory.correlation_trajectory("tanh", 1.0, 0.0, 1.5, 3), "c_0 is 1.5"),
        (lambda: theory.default_linear(0), "fan_in is 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_activation_is_a_type_error():
    with pytest.raises(TypeError, match="not int"):
        theory.gain(3)


@pytest.mark.parametrize("sigma_w", [0.5, 1.0, 1.4, 1.43, 3.0])
def test_depth_scales_of_relu_are_the_logarithm_of_half_its_variance(sigma_w):
    """chi = sigma_w^2 / 2 at every variance; without a fixed point there is no xi_c."""
    xi_c, xi_gradient = theory.depth_scales("relu", sigma_w, 0.0)
    assert xi_gradient == pytest.approx(1 / abs(math.log(sigma_w**2 / 2)), rel=1e-9)
    assert math.isnan(xi_c) == (sigma_w**2 > 2)
    assert theory.depth_scales("relu", 2**0.5, 0.0)[1] == math.inf


def test_a_gradient_that_never_passes_a_layer_has_a_depth_scale_of_zero():
    """Hardshrink is flat where its signal dies out, and so is every activation between weights of 0."""
    assert theory.depth_scales("hardshrink", 0.5, 0.0)[1] == 0.0
    assert theory.depth_scales("tanh", 0.0, 0.1)[1] == 0.0


def test_a_trajectory_is_computed_once_and_nobody_else_s_to_change():
    asked = ("tanh", 1.5, 0.1, 1.0, 20)
    first = theory.variance_trajectory(*asked)
    expected = first.copy()
    first[:] = 0.0
    computed = _variances.cache_info().misses
    np.testing.assert_array_equal(theory.variance_trajectory(*asked), expected)
    assert _variances.cache_info().misses == computed
    for place, other in enumerate(("relu", 1.6, 0.2, 0.9, 21)):
        changed = theory.variance_trajectory(*(other if k == place else value for k, value in enumerate(asked)))
        assert not np.array_equal(changed, expected)
    assert _variances.cache_info().misses == computed + len(asked)
