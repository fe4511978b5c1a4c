"""Growth under batch normalization against closed forms, and against real networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from depthgauge import theory


@pytest.mark.parametrize("batch", [2, 4, 5, 7, 32, 1000])
def test_linear_layers_grow_by_two_less_over_three_less(batch):
    """Yang et al. (2019); no gradient passes a batch of two, whose normalized values are +1 and -1."""
    assert theory.batch_norm_growth("identity", batch) == pytest.approx((batch - 2) / (batch - 3), rel=1e-10)


def test_a_batch_of_three_has_no_mean_and_a_batch_of_two_no_gradient():
    for name in ("relu", "tanh", "sigmoid"):
        assert theory.batch_norm_growth(name, 3) == math.inf
        assert theory.batch_norm_growth(name, 2) == 0


def test_relu_in_a_large_batch_is_that_of_yang_et_al():
    assert theory.batch_norm_growth("relu", math.inf) == pytest.approx(math.pi / (math.pi - 1), rel=1e-12)
    large = theory.batch_norm_growth("relu", 10**5)
    assert large == pytest.approx(math.pi / (math.pi - 1), rel=1e-4)
    assert large > math.pi / (math.pi - 1)


@pytest.mark.parametrize("batch", [4, 5, 6, 9, 64])
def test_relu_against_the_arc_cosine_kernel(batch):
    """Norm and direction of a Gaussian vector are independent, so that moments on the sphere are those of Cho and Saul.

    For a pair of correlation c = -1 / (B - 1): E[phi phi] = (sqrt(1 - c^2) + c (pi - acos c)) / 2 pi,
    E[phi' phi'] = (pi - acos c) / 2 pi, and z phi'(z) = phi(z).
    """
    c = -1 / (batch - 1)
    angle = math.pi - math.acos(c)
    product, both = (math.sqrt(1 - c * c) + c * angle) / (2 * math.pi), angle / (2 * math.pi)
    expected = ((batch - 1) / 2 - 1 / 2 + both + product) / ((batch - 3) * (1 / 2 - product))
    assert theory.batch_norm_growth("relu", batch) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["hardtanh", "hardshrink", "tanh", "softplus"])
def test_a_batch_of_four_against_a_brute_force_integral(name):
    """On the sphere of three dimensions: z_1 = sqrt(3) cos a is uniform, the second direction turns about the first."""
    phi = theory.activation(name)

    heights, turns = (np.arange(400) + 0.5) / 200 - 1, (np.arange(400) + 0.5) * math.pi / 400
    height, turn = np.meshgrid(heights, turns)
    z_1 = math.sqrt(3) * height
    z_2 = math.sqrt(3) * (-height / 3 + math.sqrt(8 / 9) * np.sqrt(1 - height**2) * np.cos(turn))
    (v_1, d_1), (v_2, d_2) = phi.both(z_1), phi.both(z_2)
    slope2, steep2 = np.mean(d_1**2), np.mean((z_1 * d_1) ** 2)
    pair, spread = np.mean(d_1 * d_2 * (1 + z_1 * z_2)), np.mean(v_1**2 - v_1 * v_2)
    expected = (3 * slope2 - steep2 + pair) / spread
    # the midpoint rule on 400 x 400 cells misses a kink by one cell in 400 at the most
    assert theory.batch_norm_growth(name, 4) == pytest.approx(expected, rel=5e-3)


def test_small_batches_explode_faster():
    for name in ("relu", "tanh", "gelu", "sigmoid", "identity"):
        growth = [theory.batch_norm_growth(name, batch) for batch in (4, 5, 6, 8, 16, 64, 1024, math.inf)]
        assert all(a > b for a, b in itertools.pairwise(growth)), name


@pytest.mark.parametrize(("batch", "why"), [(1, "whole number >= 2"), (2.5, "whole number >= 2"), (0, "whole number")])
def test_a_batch_is_a_number_of_examples(batch, why):
    with pytest.raises(ValueError, match=why):
        theory.batch_norm_growth("relu", batch)


def test_a_constant_cannot_be_normalized():
    with pytest.raises(ValueError, match="is constant"):
        theory.batch_norm_growth(torch.ones_like, 8)
    with pytest.raises(ValueError, match="is constant"):
        theory.batch_norm_growth(torch.ones_like, math.inf)


@pytest.mark.parametrize(("batch", "ranks"), [(4, 2), (5, 2), (6, 4), (6, 1), (5, 5), (6, 3)])
def test_the_bias_of_a_shard_is_its_mean_over_every_split(batch, ranks):
    """All orders of a batch of fixed values, split as torch splits it."""
    x = np.array([0.0, 1.0, 3.0, -2.0, 10.0, 0.5])[:batch]
    ratios = [
        np.mean([np.var(shard) for shard in np.array_split(np.array(order), ranks)]) / np.var(x)
        for order in itertools.permutations(x)
    ]
    assert theory.batch_norm_shard_bias(batch, ranks) == pytest.approx(np.mean(ratios), rel=1e-12, abs=1e-14)
    assert [len(part) for part in np.array_split(x, ranks)] == [
        len(part) for part in torch.tensor_split(torch.tensor(x), ranks)
    ]


def test_equal_shards_have_a_closed_form():
    for batch, ranks in ((64, 1), (64, 2), (64, 32), (64, 64), (10**6, 500)):
        assert theory.batch_norm_shard_bias(batch, ranks) == pytest.approx((batch - ranks) / (batch - 1), rel=1e-12)


@pytest.mark.parametrize(("batch", "ranks"), [(1, 1), (4, 5), (4, 0), (4, 2.5), (4.5, 2)])
def test_every_rank_has_an_example(batch, ranks):
    with pytest.raises(ValueError, match=r"whole number|without an example"):
        theory.batch_norm_shard_bias(batch, ranks)


WIDTH, LAYERS, NETWORKS = 512, 6, 10


@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("kind", [nn.Identity, nn.ReLU, nn.Tanh, nn.GELU])
def test_growth_in_networks_of_torch(kind, batch):
    """Linear, BatchNorm1d, activation, as a user builds them: mean growth over networks within 4 standard errors."""
    logs = []
    for seed in range(NETWORKS):
        torch.manual_seed(seed)
        layers = [(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH, eps=1e-12), kind()) for _ in range(LAYERS)]
        h, kept = torch.randn(batch, WIDTH), []
        for linear, norm, phi in layers:
            z = linear(h)
            kept.append(z)
            h = phi(norm(z))
        cotangent = torch.randn(batch, WIDTH)
        # the first layer's inputs are not yet what an activation gives
        _, second, *_, last = torch.autograd.grad((h * cotangent).sum(), kept)
        logs.append(math.log(float(second.square().sum() / last.square().sum())) / (LAYERS - 2))
    measured, error = np.mean(logs), np.std(logs, ddof=1) / math.sqrt(NETWORKS)
    predicted = math.log(theory.batch_norm_growth(kind.__name__, batch))
    # finite width: a logarithm's mean lies below by half the variance a layer, of order 1 / width
    assert abs(measured - predicted) < 4 * error + 4 / WIDTH
    assert error < 0.02
