"""Units of the replicas of a multilayer perceptron: the dead, the saturated, and the moments of the first layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from depthgauge import theory
from depthgauge.replicas.signals import Floats
from depthgauge.replicas.stack import Stack
from depthgauge.seeding import Purpose, generator
from depthgauge.theory.activation import Phi


@dataclass(frozen=True)
class Units:
    """Shares of the hidden units of R replicas, over all layers and units alike, each of shape (R,).

    Attributes:
        dead: units whose slope phi'(z) is exactly zero on every example: no gradient passes them.
        saturated: units whose root-mean-square slope over the examples is small, the dead among them.
    """

    dead: Floats
    saturated: Floats


@torch.no_grad()
def units(stack: Stack, inputs: Tensor, activation: Phi, *, saturated: float = 0.1) -> Units | None:
    """Look at the slopes of every hidden unit on some examples.

    Args:
        stack: replicas of an MLP whose hidden layers are a `linear` and the `activation` after it, as those of
            `models.build("mlp")` without normalization and shortcuts; each may have an activation of its own (PReLU).
        inputs: (N, ...) examples, the same for all; flattened.
        activation: the units' activation, as `theory.activation` takes it.
        saturated: a unit is, whose root-mean-square slope is below this share of the root-mean-square slope that
            `activation` has at pre-activations N(0, 1).

    Returns:
        The shares; None for a model whose hidden layers are of another kind, or that has none.
    """
    blocks = _blocks(stack.template)
    if not blocks:
        return None
    bound = saturated / theory.gain(activation).backward
    like = next(iter(stack.parameters.values()))
    h = inputs.to(like.device).flatten(1).expand(len(stack), -1, -1)
    dead, small = [], []
    for name in blocks:
        weight, bias = (stack.parameters.get(f"{name}.linear.{kind}") for kind in ("weight", "bias"))
        assert weight is not None
        z = torch.bmm(h, weight.mT) if bias is None else torch.baddbmm(bias[:, None], h, weight.mT)
        prefix = f"{name}.activation."
        parameters = {n.removeprefix(prefix): p for n, p in stack.parameters.items() if n.startswith(prefix)}
        h, slope = _value_and_slope(stack.template.get_submodule(f"{name}.activation"), parameters, z)
        dead.append((slope == 0).all(1))
        small.append(slope.square().mean(1).sqrt() < bound)
    shares = (torch.stack(layers, 1).double().mean((1, 2)).cpu().numpy() for layers in (dead, small))
    return Units(*shares)


def first_layer_moments(stack: Stack, size: float, activation: Phi) -> dict[str, Floats]:
    """Second moments of R first layers on orthogonal inputs of norm `size`, meaned over inputs and units.

    Over orthogonal inputs the pre-activations of Gaussian weights are independent and exactly Gaussian, so that the
    means are those of `theory.layer_moments` but for sampling.

    Args:
        stack: replicas of a model whose first parameter is the weight of a linear layer.
        size: norm of each input.
        activation: as `theory.activation` takes it.

    Returns:
        `value2`, mean of phi(z)^2, and `slope2`, mean of phi'(z)^2: shape (R,) each.
    """
    weight = next(iter(stack.parameters.values()))
    basis, _ = torch.linalg.qr(torch.randn(weight.shape[-1], weight.shape[-1], generator=generator(0, Purpose.INPUTS)))
    value, slope = theory.activation(activation).both((weight @ (size * basis.to(weight))).cpu().numpy())
    return {"value2": np.square(value).mean((1, 2)), "slope2": np.square(slope).mean((1, 2))}


def _blocks(template: nn.Module) -> list[str]:
    """Names of the hidden layers, in order; none where one is not a linear and then an activation."""
    parents = dict(template.named_modules())
    blocks = [name.removesuffix(".linear") for name in parents if name.endswith(".linear")]
    return blocks if all(_is_plain(parents[name]) for name in blocks) else []


def _is_plain(block: nn.Module) -> bool:
    parts = {name: part for name, part in block.named_children() if name == "activation" or not _vanishes(part)}
    return list(parts) == ["linear", "activation"] and type(parts["linear"]) is nn.Linear


def _vanishes(part: nn.Module) -> bool:
    # a join whose scale is None has no shortcut: it hands on its branch
    joins_nothing = getattr(part, "scale", part) is None
    return joins_nothing or type(part) is nn.Identity or (isinstance(part, nn.Dropout) and part.p == 0)


def _value_and_slope(module: nn.Module, parameters: Mapping[str, Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        if parameters:
            value = vmap(lambda values, at: functional_call(module, values, (at.clone(),)))(dict(parameters), z)
        else:
            value = module(z.clone())  # it may work in place
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope
