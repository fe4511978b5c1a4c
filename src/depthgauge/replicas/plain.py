"""Plain networks at initialization: one draw of the weights serves every activation and every sigma.

    networks = plain.Networks.draw(width=100, depth=30, init="gaussian", seeds=range(20))
    seen = plain.propagate(networks, "tanh", [(1.0, 0.0), (1.5, 0.1)])
    seen["second_moment", "backward"]               # (2, 20, 30): pairs of sigmas, networks, layers

    members = [plain.Member(seed, "tanh", sigma_w) for sigma_w in (1.0, 1.5) for seed in range(20)]
    plain.measure(100, 30, "gaussian", members)[0]["correlation", "forward"]         # (30,): layers of the first

Members of `replicas.signals` own their weights and share their inputs. Here pairs of sigmas share a draw of the weights
(common random numbers: their difference carries no noise of the draw), and each draw has inputs of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from depthgauge import stats, theory
from depthgauge.replicas.signals import Floats
from depthgauge.seeding import Purpose, generator
from depthgauge.theory.activation import Phi
from depthgauge.theory.isometry import Weights

INPUT_OVERLAP = 0.5
"""Correlation of the first two inputs of every network."""

INPUT_SCALE = 1.5
"""Second moment of the third input, which is a multiple of the first."""

Metric = tuple[str, Literal["forward", "backward"]]


@dataclass(frozen=True)
class Networks:
    """Weights of S plain networks, their inputs and the gradients that they send back; float64.

    Attributes:
        weights: one tensor of shape (S, width, width) a layer, to be multiplied by sigma_w.
        biases: one tensor of shape (S, 1, width) a layer, to be multiplied by sigma_b.
        inputs: shape (S, 3, width): a and b of second moment 1 and overlap INPUT_OVERLAP, and a multiple of a of second
            moment INPUT_SCALE.
        cotangent: shape (S, 1, width), the gradient with respect to the last layer's pre-activations.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    inputs: Tensor
    cotangent: Tensor

    @staticmethod
    def draw(width: int, depth: int, init: str, seeds: Sequence[int]) -> Networks:
        """Draw one network a seed; each depends on its own seed, the width and `init` alone.

        Args:
            width: units of every layer, and of the input.
            depth: weight layers.
            init: `gaussian`: weights N(0, 1/width), biases N(0, 1); `torch`: both uniform in +-1/sqrt(width), as
                `torch.nn.Linear` draws them, so that sigma_w = sigma_b = 1 is PyTorch's default.
            seeds: one a network.

        Raises:
            ValueError: no such `init`.
        """
        if init not in _LAYERS:
            raise ValueError(f"no init {init!r}; there is {', '.join(_LAYERS)}")
        drawn = []
        for seed in seeds:
            draws = generator(seed, Purpose.WEIGHTS)
            weights, biases = zip(*(_LAYERS[init](width, draws) for _ in range(depth)), strict=True)
            start = generator(seed, Purpose.COTANGENT)
            cotangent = torch.randn(1, width, generator=start, dtype=torch.float64)
            drawn.append((weights, biases, _inputs(width, generator(seed, Purpose.INPUTS)), cotangent))
        every_weight, every_bias, inputs, cotangents = zip(*drawn, strict=True)
        return Networks(
            tuple(torch.stack(layer).double() for layer in zip(*every_weight, strict=True)),
            tuple(torch.stack(layer).double()[:, None] for layer in zip(*every_bias, strict=True)),
            torch.stack(inputs),
            torch.stack(cotangents),
        )

    def to(self, device: str) -> Networks:
        """The same networks on another device."""
        return Networks(
            tuple(weight.to(device) for weight in self.weights),
            tuple(bias.to(device) for bias in self.biases),
            self.inputs.to(device),
            self.cotangent.to(device),
        )


def _gaussian(width: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.randn(width, width, generator=draws) / math.sqrt(width)
    return weight, torch.randn(width, generator=draws)


def _uniform(width: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    bound = 1 / math.sqrt(width)
    weight = (torch.rand(width, width, generator=draws) * 2 - 1) * bound
    return weight, (torch.rand(width, generator=draws) * 2 - 1) * bound


_LAYERS = {"gaussian": _gaussian, "torch": _uniform}


def _inputs(width: int, draws: torch.Generator) -> Tensor:
    basis, _ = torch.linalg.qr(torch.randn(width, 2, generator=draws, dtype=torch.float64))
    a, orthogonal = basis.T * math.sqrt(width)
    b = INPUT_OVERLAP * a + math.sqrt(1 - INPUT_OVERLAP**2) * orthogonal
    return torch.stack([a, b, a * math.sqrt(INPUT_SCALE)])


def propagate(networks: Networks, activation: Phi, sigmas: Sequence[tuple[float, float]]) -> dict[Metric, Floats]:
    """Signals of all networks, forward and backward, for C pairs (sigma_w, sigma_b); z_1 .. z_L are pre-activations.

    Args:
        networks: S of them, of L layers.
        activation: a name of torch's, a module, or the `theory.Activation` of one.
        sigmas: pairs of factors of weights and biases.

    Returns:
        (metric, direction) -> shape (C, S, L), layer 1 first. Forward: `second_moment` of the first input,
        `correlation` of the first two (their mean product over their root mean squares), `log_ratio_scaled`, the
        logarithm of the third input's second moment over the first's. Backward: `second_moment` of the gradient with
        respect to z of the first input. NaN where a signal of zero has no angle and no ratio.

    Raises:
        TypeError: an activation that is a plain function; wrap it in a module.
    """
    device, seeds, count = networks.inputs.device, len(networks.inputs), len(sigmas)
    phi = theory.activation(activation).module().double().to(device)
    sigma_w, sigma_b = torch.tensor(sigmas, dtype=torch.float64, device=device).T[:, None, :, None, None]
    h = networks.inputs[:, None].expand(-1, count, -1, -1)  # (S, C, 3, width)
    q, correlation, log_ratio, slopes = [], [], [], []
    for weight, bias in zip(networks.weights, networks.biases, strict=True):
        wx = torch.bmm(h.reshape(seeds, -1, h.shape[-1]), weight.mT).view(seeds, count, -1, h.shape[-1])
        z = (sigma_w * wx + sigma_b * bias[:, None]).requires_grad_()
        h = phi(z)
        (slope,) = torch.autograd.grad(h[:, :, 0].sum(), z)
        h, z = h.detach(), z.detach()
        slopes.append(slope[:, :, 0].clone())  # a view would keep all three inputs
        square = z.square().mean(dim=3)
        q.append(square[..., 0])
        correlation.append((z[:, :, 0] * z[:, :, 1]).mean(dim=2) / (square[..., 0] * square[..., 1]).sqrt())
        log_ratio.append((square[..., 2] / square[..., 0]).log())
    by_layer: dict[Metric, Sequence[Tensor]] = {
        ("second_moment", "forward"): q,
        ("second_moment", "backward"): _back(networks, sigma_w[:, :, 0], slopes),
        ("correlation", "forward"): correlation,
        ("log_ratio_scaled", "forward"): log_ratio,
    }
    return {key: torch.stack(list(values)).permute(2, 1, 0).cpu().numpy() for key, values in by_layer.items()}


def _back(networks: Networks, sigma_w: Tensor, slopes: Sequence[Tensor]) -> list[Tensor]:
    """Second moments (S, C) of the gradient, layer 1 first; slopes are phi'(z), (S, C, width) a layer."""
    gradient = networks.cotangent.expand(-1, sigma_w.shape[1], -1)  # (S, C, width)
    g = [gradient.square().mean(dim=2)]
    for weight, slope in zip(networks.weights[:0:-1], slopes[-2::-1], strict=True):
        gradient = sigma_w * torch.bmm(gradient, weight) * slope
        g.append(gradient.square().mean(dim=2))
    return g[::-1]


def settled(
    layers: Floats, second_moment: Floats, correlation: Floats, log_ratio: Floats, c_star: float
) -> dict[str, stats.Estimate]:
    """The fixed point at which the signal of networks settles, and how fast: the measured side of `theory.mean_field`.

    Args:
        layers: shape (k,), ascending.
        second_moment: shape (n, k), forward, one row a network.
        correlation: likewise.
        log_ratio: likewise, `log_ratio_scaled`.
        c_star: the correlation that it settles at.

    Returns:
        `q` and `c`, mean over the deeper half of the layers; `xi_q_fit` and `xi_c_fit`, the depth scales
        (`stats.decay_length`) at which `log_ratio` decays, and the correlation's distance from `c_star`.
    """
    deep = layers > layers[-1] / 2
    return {
        "q": stats.mean(second_moment[:, deep].mean(axis=1)),
        "c": stats.mean(correlation[:, deep].mean(axis=1)),
        "xi_q_fit": stats.decay_length(layers, log_ratio),
        "xi_c_fit": stats.decay_length(layers, correlation - c_star),
    }


@dataclass(frozen=True)
class Member:
    """One network to be measured: a draw of the weights, and what is made of it.

    Attributes:
        seed: of the draw; members of one seed share it.
        activation: as in `propagate`.
        sigma_w: what weights are multiplied by.
        sigma_b: what biases are multiplied by.
    """

    seed: int
    activation: Phi
    sigma_w: float = 1.0
    sigma_b: float = 0.0


def measure(
    width: int, depth: int, init: str, members: Sequence[Member], device: str = "cpu"
) -> list[dict[Metric, Floats]]:
    """Signals of each member, in their order: those of `propagate`, of shape (L,).

    One draw for each seed serves every activation and every pair of sigmas that its members have: differences between
    them carry no noise of the weights.

    Args:
        width: as in `Networks.draw`.
        depth: as in `Networks.draw`.
        init: as in `Networks.draw`.
        members: whom to measure.
        device: where.

    Raises:
        ValueError: no such `init`.
        TypeError: an activation that is a plain function.
    """
    seeds = list(dict.fromkeys(member.seed for member in members))
    networks = Networks.draw(width, depth, init, seeds).to(device)
    sigmas: dict[Phi, dict[tuple[float, float], int]] = {}
    for member in members:
        pairs = sigmas.setdefault(member.activation, {})
        pairs.setdefault((member.sigma_w, member.sigma_b), len(pairs))
    signals = {activation: propagate(networks, activation, list(pairs)) for activation, pairs in sigmas.items()}
    return [
        {
            key: values[sigmas[member.activation][member.sigma_w, member.sigma_b], seeds.index(member.seed)]
            for key, values in signals[member.activation].items()
        }
        for member in members
    ]


def squared_singular_values(
    width: int, depths: Sequence[int], weights: Weights, network: Member, q: float, *, device: str = "cpu"
) -> Floats:
    """Squared singular values of the Jacobian D_l W_l ... D_1 W_1 of one network at one input, in float64.

    D_l = diag phi'(z_l). Layers are drawn one after another, so that a deeper network continues a shallower one.

    Args:
        width: units of every layer, and of the input.
        depths: numbers of layers l, in increasing order.
        weights: `gaussian`: N(0, sigma_w^2 / width); `orthogonal`: sigma_w times uniformly drawn orthogonal matrices.
            Biases are N(0, sigma_b^2).
        network: its seed, activation and sigmas.
        q: mean square that the input gives the first layer's pre-activations, in expectation; above sigma_b^2.
        device: where.

    Returns:
        shape (len(depths), width), each row in decreasing order.
    """
    sigma_w, sigma_b, phi = network.sigma_w, network.sigma_b, theory.activation(network.activation)
    h = torch.randn(width, dtype=torch.float64, generator=generator(network.seed, Purpose.INPUTS))
    h = (h * math.sqrt((q - sigma_b**2) / sigma_w**2) * math.sqrt(width) / h.norm()).to(device)
    draws = generator(network.seed, Purpose.WEIGHTS)
    jacobian = torch.eye(width, dtype=torch.float64, device=device)
    squares = []
    for layer in range(1, max(depths) + 1):
        weight, bias = (drawn.to(device) for drawn in _square(width, weights, draws))
        weight = sigma_w * weight
        value, slope = phi.both((weight @ h + sigma_b * bias).cpu().numpy())
        h = torch.from_numpy(value).to(device)
        jacobian = torch.from_numpy(slope).to(device)[:, None] * (weight @ jacobian)
        if layer in depths:
            squares.append(torch.linalg.svdvals(jacobian).square().cpu())
    return torch.stack(squares).numpy()


def _square(width: int, weights: Weights, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.randn(width, width, dtype=torch.float64, generator=draws) / math.sqrt(width)
    bias = torch.randn(width, dtype=torch.float64, generator=draws)
    if weights == "orthogonal":
        weight, triangle = torch.linalg.qr(weight)
        weight = weight * triangle.diagonal().sign()
    return weight, bias
