"""Plain networks by batched draws: the shared model and autograd, and what is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthgauge import models, theory
from depthgauge.replicas import plain


def pre_activations(model: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    for layer in model.hidden:
        layer.linear.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    model(x)
    return outputs


@pytest.mark.parametrize("init", ["gaussian", "torch"])
@pytest.mark.parametrize("name", ["tanh", "relu", "silu", "prelu"])
def test_propagate_is_the_shared_model_and_autograd(init: str, name: str) -> None:
    """The same weights in `models.build("mlp")`, gradients by autograd: equal up to rounding in float64."""
    width, depth, sigmas = 24, 7, [(1.0, 1.0)] if init == "torch" else [(1.3, 0.2), (0.6, 0.0)]
    networks = plain.Networks.draw(width, depth, init, [3, 8])
    columns = plain.propagate(networks, name, sigmas)
    for i, (sigma_w, sigma_b) in enumerate(sigmas):
        for s in range(2):
            model = models.build("mlp", input_shape=(width,), depth=depth, width=width, activation=name).double()
            for layer, weight, bias in zip(model.hidden, networks.weights, networks.biases, strict=True):
                with torch.no_grad():
                    layer.linear.weight.copy_(sigma_w * weight[s])
                    layer.linear.bias.copy_(sigma_b * bias[s, 0])
            outputs = pre_activations(model, networks.inputs[s])
            gradients = torch.autograd.grad((outputs[-1][:1] * networks.cotangent[s]).sum(), outputs)
            z = torch.stack(outputs).detach()  # (depth, 3, width)
            square = z.square().mean(dim=2)
            expected = {
                ("second_moment", "forward"): square[:, 0],
                ("second_moment", "backward"): torch.stack(gradients)[:, 0].square().mean(dim=1),
                ("correlation", "forward"): (z[:, 0] * z[:, 1]).mean(dim=1) / (square[:, 0] * square[:, 1]).sqrt(),
                ("log_ratio_scaled", "forward"): (square[:, 2] / square[:, 0]).log(),
            }
            assert set(expected) == set(columns)
            for key, values in expected.items():
                np.testing.assert_allclose(columns[key][i, s], values.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("init", ["gaussian", "torch"])
def test_drawn_weights_are_what_they_are_said_to_be(init: str) -> None:
    width, depth = 64, 4
    networks = plain.Networks.draw(width, depth, init, [0, 1])
    bound = 1 / math.sqrt(width)
    variance = bound**2 if init == "gaussian" else bound**2 / 3
    weights = torch.stack(networks.weights)
    assert weights.shape == (depth, 2, width, width)
    # Var(w^2) = 2 s^4 for a Gaussian, 4/5 s^4 for a uniform law.
    error = variance * math.sqrt((2 if init == "gaussian" else 0.8) / weights.numel())
    assert abs(float(weights.square().mean()) - variance) <= 4 * error
    if init == "torch":
        reference = torch.nn.Linear(width, width)
        for drawn in (weights, torch.stack(networks.biases)):
            assert float(drawn.abs().max()) <= bound
            assert float(drawn.abs().max()) > 0.9 * bound
        assert float(reference.weight.detach().abs().max()) <= bound * (1 + 1e-6)
        sigma_w, sigma_b = theory.default_linear(width)
        assert sigma_w**2 / width == pytest.approx(variance, rel=1e-12)
        assert sigma_b**2 == pytest.approx(variance, rel=1e-12)
    inputs = networks.inputs
    overlap = torch.einsum("siw,sjw->sij", inputs, inputs) / width
    scaled = math.sqrt(plain.INPUT_SCALE)
    expected = torch.tensor(
        [
            [1.0, plain.INPUT_OVERLAP, scaled],
            [plain.INPUT_OVERLAP, 1.0, plain.INPUT_OVERLAP * scaled],
            [scaled, plain.INPUT_OVERLAP * scaled, plain.INPUT_SCALE],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(overlap, expected.expand(2, 3, 3), rtol=1e-12, atol=1e-12)


def test_a_network_depends_on_its_own_seed_alone() -> None:
    together, alone = plain.Networks.draw(16, 5, "gaussian", [4, 7]), plain.Networks.draw(16, 5, "gaussian", [7])
    for a, b in zip(together.weights + together.biases, alone.weights + alone.biases, strict=True):
        assert torch.equal(a[1:], b)
    assert torch.equal(together.inputs[1:], alone.inputs)
    assert torch.equal(together.cotangent[1:], alone.cotangent)
    deeper = plain.Networks.draw(16, 9, "gaussian", [7])
    assert all(torch.equal(a, b) for a, b in zip(deeper.weights, alone.weights, strict=False))
    assert not torch.equal(together.weights[0][0], together.weights[0][1])


def test_an_unknown_init_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no init 'orthogonal'; there is gaussian, torch"):
        plain.Networks.draw(4, 2, "orthogonal", [0])


def test_linear_networks_are_products_of_their_matrices() -> None:
    """z_L = sigma_w^L W_L .. W_1 x forward, and the cotangent times W_L .. W_2 backward."""
    networks = plain.Networks.draw(6, 3, "gaussian", [5])
    seen = plain.propagate(networks, torch.nn.Identity(), [(0.5, 0.0)])
    first, second, third = (0.5 * weight[0] for weight in networks.weights)
    z, g = third @ second @ first @ networks.inputs[0, 0], networks.cotangent[0, 0] @ third @ second
    assert seen["second_moment", "forward"][0, 0, 2] == pytest.approx(float(z.square().mean()), rel=1e-12)
    assert seen["second_moment", "backward"][0, 0, 0] == pytest.approx(float(g.square().mean()), rel=1e-12)
    np.testing.assert_allclose(seen["log_ratio_scaled", "forward"][0, 0], math.log(plain.INPUT_SCALE), rtol=1e-12)


def test_members_are_measured_as_propagate_has_them() -> None:
    """Members of one seed share its draw, in any order and of any activation."""
    members = [
        plain.Member(7, "tanh", 1.5, 0.1), plain.Member(4, "relu", 1.4), plain.Member(7, "relu", 1.4),
        plain.Member(4, "tanh", 1.0),
    ]  # fmt: skip
    found = plain.measure(8, 3, "gaussian", members)
    networks = plain.Networks.draw(8, 3, "gaussian", [4, 7])
    for member, seen in zip(members, found, strict=True):
        own = plain.propagate(networks, member.activation, [(member.sigma_w, member.sigma_b)])
        for key, values in own.items():
            np.testing.assert_allclose(seen[key], values[0, [4, 7].index(member.seed)], rtol=1e-12)


def test_orthogonal_linear_networks_are_isometries() -> None:
    """Singular values are sigma_w^l; one ReLU layer makes them sigma_w or 0, as its rows are orthonormal."""
    linear, relu = (plain.Member(3, name, sigma_w=1.1) for name in ("identity", "relu"))
    squares = plain.squared_singular_values(16, (1, 5), "orthogonal", linear, 1.0)
    np.testing.assert_allclose(squares, np.repeat([[1.1**2], [1.1**10]], 16, axis=1), rtol=1e-12)
    (squares,) = plain.squared_singular_values(16, (1,), "orthogonal", relu, 1.0)
    np.testing.assert_allclose(squares, np.where(np.arange(16) < round(squares.sum() / 1.21), 1.21, 0.0), atol=1e-12)


def test_gaussian_jacobians_have_the_predicted_mean() -> None:
    """Over networks of seeds of their own, within four standard errors, at depths 1 and 3."""
    drawn = [
        plain.squared_singular_values(12, (1, 3), "gaussian", plain.Member(seed, "relu", math.sqrt(2)), 1.0)
        for seed in range(200)
    ]
    means = np.mean(drawn, axis=2)  # (seeds, depths)
    assert (np.abs(means.mean(axis=0) - 1.0) < 4 * means.std(axis=0) / math.sqrt(len(means))).all()


def test_where_a_signal_settles_and_how_fast() -> None:
    """q = 2 and c = 0.8 + 0.1 exp(-l / 4), whose input's scale is forgotten as exp(-l / 3)."""
    layers, seeds = np.arange(1, 21), 1 + 1e-3 * np.linspace(-1, 1, 8)[:, None]
    decay = {xi: seeds * np.exp(-layers / xi) for xi in (3.0, 4.0)}
    found = plain.settled(layers, 2 * seeds + 0 * layers, 0.8 + 0.1 * decay[4.0], decay[3.0], 0.8)
    assert [found[name].value for name in ("q", "xi_q_fit", "xi_c_fit")] == pytest.approx([2.0, 3.0, 4.0], rel=1e-6)
    assert found["c"].value == pytest.approx(0.8 + 0.1 * np.exp(-layers[10:] / 4).mean(), rel=1e-9)
