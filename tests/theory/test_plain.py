"""The law of a plain network's signal against closed forms."""

import math

import numpy as np
import pytest
from torch import nn

from depthgauge import theory

LAYERS = np.array([1, 2, 5, 20])


@pytest.mark.parametrize("width", [16, 100])
def test_critical_relu_walks_by_the_exact_law_of_its_width(width):
    law = theory.plain_signal("relu", math.sqrt(2), 0.0, width, LAYERS)
    gain = theory.relu_log_gain(width, 2.0).mean
    np.testing.assert_allclose(law.forward, math.log(2) + gain * (LAYERS - 1), rtol=1e-12)
    np.testing.assert_allclose(law.backward, gain * (20 - LAYERS), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma_w", [0.5, 1.0, 2.0])
def test_linear_layers_multiply_by_chi_square(sigma_w):
    """q_1 is given, every later layer adds ln(sigma_w^2 chi^2_n / n)."""
    law = theory.plain_signal("linear", sigma_w, 0.0, 32, LAYERS, q_1=3.0)
    gain = theory.linear_log_gain(32, sigma_w**2).mean
    np.testing.assert_allclose(law.forward, math.log(3.0) + gain * (LAYERS - 1), rtol=1e-12)
    np.testing.assert_allclose(law.backward, gain * (20 - LAYERS), rtol=1e-12, atol=1e-12)


def test_biases_of_linear_layers_add_up():
    """q_l = s (1 + w + .. ) in mean field; backward biases do not matter, and finite width is known there alone."""
    w, b = 0.8**2, 0.3**2
    q = [1.5]
    for _ in range(19):
        q.append(w * q[-1] + b)
    law = theory.plain_signal("identity", 0.8, 0.3, 64, LAYERS, q_1=1.5)
    np.testing.assert_allclose(law.forward, np.log(np.array(q)[LAYERS - 1]), rtol=1e-12)
    np.testing.assert_allclose(law.backward, theory.linear_log_gain(64, w).mean * (20 - LAYERS), rtol=1e-12, atol=1e-12)


def test_inputs_of_second_moment_1_are_the_default():
    law = theory.plain_signal("tanh", 1.3, 0.4, math.inf, LAYERS)
    assert law.forward[0] == math.log(1.3**2 + 0.4**2)


@pytest.mark.parametrize("phi", ["tanh", "gelu", "sigmoid"])
def test_infinite_width_is_mean_field_and_finite_width_the_signal_law_at_the_ends(phi):
    q_1 = 1.2**2 + 0.2**2
    field = theory.plain_signal(phi, 1.2, 0.2, math.inf, LAYERS)
    np.testing.assert_array_equal(field.forward, np.log(theory.variance_trajectory(phi, 1.2, 0.2, q_1, 19))[LAYERS - 1])
    np.testing.assert_array_equal(
        field.backward, np.log(theory.gradient_trajectory(phi, 1.2, 0.2, q_1, 19))[LAYERS - 1]
    )
    law, near = (theory.plain_signal(phi, 1.2, 0.2, width, LAYERS) for width in (100, 10**9))
    exact = theory.signal_law(phi, 1.2, 0.2, q_1, 19, width=100)
    assert law.forward[-1] == pytest.approx(exact.forward_mean[-1], rel=1e-12)
    assert law.backward[0] == pytest.approx(exact.backward_mean[0], rel=1e-12)
    np.testing.assert_allclose(near.backward, field.backward, atol=1e-6)


def test_a_large_first_order_is_left_out_on_demand():
    """Tanh at sigma_w = 16 and width 100: -0.30 a layer backward, 1/width no longer small."""
    field = theory.plain_signal("tanh", 16.0, 0.0, math.inf, LAYERS)
    assert theory.plain_signal("tanh", 16.0, 0.0, 100, LAYERS).backward[0] < field.backward[0] - 0.2 * 19
    assert theory.plain_signal("tanh", 16.0, 0.0, 100, LAYERS, largest=0.1).backward[0] == field.backward[0]


def test_a_signal_that_died_has_no_correction():
    """Softshrink is 0 on [-1/2, 1/2]: at sigma_w = 0.05 nothing passes."""
    law = theory.plain_signal("softshrink", 0.05, 0.0, 64, LAYERS)
    assert law.forward[0] == math.log(0.05**2)
    assert law.forward[-1] == -math.inf
    assert law.backward.tolist()[0] == -math.inf
    assert law.backward.tolist()[-1] == 0.0


def test_a_function_is_what_it_does_not_what_it_is_called():
    def relu(x):
        return x.tanh()

    named = theory.plain_signal("relu", 1.4, 0.0, 50, LAYERS)
    for same in (nn.ReLU(), nn.Threshold(0.0, 0.0), lambda x: x.clamp(min=0)):
        other = theory.plain_signal(same, 1.4, 0.0, 50, LAYERS)
        np.testing.assert_allclose(other.backward, named.backward, rtol=1e-9, atol=1e-12)
    tanh = theory.plain_signal("tanh", 1.4, 0.0, 50, LAYERS)
    np.testing.assert_allclose(theory.plain_signal(relu, 1.4, 0.0, 50, LAYERS).backward, tanh.backward, rtol=1e-9)


@pytest.mark.parametrize("odd", [nn.Hardshrink(0.2), nn.Threshold(0.5, 0.0), nn.Hardshrink(1e-3)])
def test_a_function_that_differs_near_zero_alone_has_a_law_of_its_own(odd):
    """Where only 0.25, 0.75, ... were looked at, these were the identity and ReLU."""
    found = theory.plain_signal(odd, 2.0, 0.1, 64, LAYERS)
    law = theory.signal_law(odd, 2.0, 0.1, 2.0**2 + 0.1**2, LAYERS[-1] - 1, width=64)
    assert found.forward[-1] == pytest.approx(law.forward_mean[-1], rel=1e-12)
    assert found.backward[0] - found.backward[-1] == pytest.approx(law.backward_mean[0], rel=1e-12)


def test_one_layer_is_what_enters():
    assert theory.plain_signal("gelu", 1.0, 0.0, 10, [1]).forward.tolist() == [0.0]


@pytest.mark.parametrize("layers", [[], [0, 1], [3, 2], [[1, 2]]])
def test_layers_ascend_from_1(layers):
    with pytest.raises(ValueError, match="ascending"):
        theory.plain_signal("relu", 1.0, 0.0, 10, layers)
