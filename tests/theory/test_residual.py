"""Residual stacks against closed forms, and against the law of one unit, drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from depthgauge import theory


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_relu_before_the_branch_grows_by_one_factor_a_block(scale: float) -> None:
    q = theory.residual_trajectory("relu", 1.7, scale, 6, q_0=2.0)
    np.testing.assert_allclose(q, 2.0 * (1 + scale**2 * 1.7**2 / 2) ** np.arange(7), rtol=1e-12)


def test_one_over_the_root_of_the_depth_bounds_the_growth_at_any_depth() -> None:
    ends = [theory.residual_trajectory("relu", math.sqrt(2), depth**-0.5, depth)[-1] for depth in (4, 64, 4096)]
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(math.e, rel=1e-3)  # (1 + 1/L)^L = e (1 - 1/(2L) + ...)


def test_a_normalized_branch_grows_in_a_straight_line() -> None:
    q = theory.residual_trajectory("gelu", 1.2, 0.5, 9, order="pre-norm", q_0=3.0)
    np.testing.assert_allclose(q, 3.0 + np.arange(10) * (0.5 * 1.2) ** 2 * theory.layer_moments("gelu", 1.0).value2)


def test_the_identity_grows_alike_in_both_orders() -> None:
    for order in ("pre", "post"):
        q = theory.residual_trajectory("identity", 1.0, 0.5, 8, order=order)
        np.testing.assert_allclose(q, 1.25 ** np.arange(9), rtol=1e-9)


def test_the_first_block_after_relu_is_known() -> None:
    """E[relu(x)^2] = q / 2 of the Gaussian start."""
    q = theory.residual_trajectory("relu", 1.7, 0.6, 1, order="post", q_0=3.0)
    assert q[1] == pytest.approx(1.5 * (1 + 0.6**2 * 1.7**2), rel=1e-10)


@pytest.mark.parametrize(
    ("phi", "sigma_w", "scale"), [("relu", 2**0.5, 1.0), ("relu", 2**0.5, 0.3), ("tanh", 1.5, 0.7)]
)
def test_the_law_of_a_unit_is_followed(phi: str, sigma_w: float, scale: float) -> None:
    """A million independent units, whose branch has the second moment that all of them have; five standard errors."""
    units, depth = 1_000_000, 6
    generator = np.random.default_rng(0)
    x = generator.standard_normal(units)
    q = theory.residual_trajectory(phi, sigma_w, scale, depth, order="post")
    for block in range(depth):
        value = theory.activation(phi).value(x)
        x = value + scale * sigma_w * math.sqrt(float(np.mean(value**2))) * generator.standard_normal(units)
        error = np.std(x**2) / math.sqrt(units)
        # The error of one block's second moment is handed on by the next; at most each adds its own.
        assert np.mean(x**2) == pytest.approx(q[block + 1], abs=5 * error * math.sqrt(block + 1))


def test_without_a_branch_relu_is_taken_once() -> None:
    for branch in ({"scale": 0.0, "sigma_w": 1.0}, {"scale": 1.0, "sigma_w": 0.0}):
        q = theory.residual_trajectory("relu", depth=3, order="post", **branch)
        np.testing.assert_allclose(q, [1.0, 0.5, 0.5, 0.5], rtol=1e-10)
    assert not theory.residual_trajectory("relu", 1.0, 0.0, 2, order="post", q_0=0.0).any()


def test_growth_beyond_a_doubles_range_is_infinite() -> None:
    q = theory.residual_trajectory("relu", math.sqrt(2), 1.0, 1100)
    assert q[900] == pytest.approx(2.0**900, rel=1e-12)
    assert q[-1] == math.inf


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"order": "both"}, "'pre', 'post' or 'pre-norm', not 'both'"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"order": "post", "scale": 1e-3}, "too small against its shortcut"),
    ],
)
def test_what_cannot_be_followed_ends_in_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        theory.residual_trajectory(**{"phi": "relu", "sigma_w": 1.0, "scale": 1.0, "depth": 3, **arguments})
