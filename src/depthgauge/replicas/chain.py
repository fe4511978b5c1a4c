"""Stacks of plain chains, linear layers with elementwise activations between, run by hand.

No autograd graph is built: a layer is one batched matrix product forward and two backward, and a parameter moves as
soon as its gradient is known and its value is no longer needed, while both are still in the cache.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from depthgauge.copies import copied

_aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """An elementwise function, and its vector-Jacobian product from (cotangent, input, output)."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]


def _by_autograd(forward: Callable[[Tensor], Tensor]) -> Activation:
    def backward(cotangent: Tensor, inputs: Tensor, _outputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(forward(leaf), leaf, cotangent)
        return gradient

    return Activation(forward, backward)


_TANH = Activation(torch.tanh, lambda g, _, a: _aten.tanh_backward(g, a))
_RELU = Activation(torch.relu, lambda g, _, a: _aten.threshold_backward(g, a, 0))
_SIGMOID = Activation(torch.sigmoid, lambda g, _, a: _aten.sigmoid_backward(g, a))
_SILU = Activation(functional.silu, lambda g, z, _: _aten.silu_backward(g, z))
_MODULES: Mapping[type[nn.Module], Activation] = {
    nn.Tanh: _TANH,
    nn.ReLU: _RELU,
    nn.Sigmoid: _SIGMOID,
    nn.SiLU: _SILU,
}
_OF_FUNCTIONAL = (
    *("celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish", "relu6"),
    *("selu", "softplus", "softsign"),
)
_OF_TORCH = ("abs", "atan", "cos", "erf", "exp", "sin", "square")
_FUNCTIONS: Mapping[Any, Activation] = {
    torch.tanh: _TANH,
    torch.relu: _RELU,
    functional.relu: _RELU,
    torch.sigmoid: _SIGMOID,
    functional.silu: _SILU,
    **{getattr(functional, name): _by_autograd(getattr(functional, name)) for name in _OF_FUNCTIONAL},
    **{getattr(torch, name): _by_autograd(getattr(torch, name)) for name in _OF_TORCH},
}
_METHODS: Mapping[str, Activation] = {"tanh": _TANH, "relu": _RELU, "sigmoid": _SIGMOID}
_ELEMENTWISE = frozenset(
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name not in {"GLU", "LogSoftmax", "MultiheadAttention", "PReLU", "RReLU", "Softmax", "Softmax2d", "Softmin"}
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Dense:
    """A linear layer, and the activations that follow it.

    Attributes:
        name: the module's.
        weight: index of the weight (R, out, in) among the stack's parameters.
        bias: index of the bias (R, out), None where there is none.
        activations: applied to the pre-activation, first to last.
    """

    name: str
    weight: int
    bias: int | None
    activations: tuple[Activation, ...]


@dataclass(frozen=True)
class Chain:
    """A model that is a chain.

    Attributes:
        layers: first to last.
        flatten: whether the model flattens its input itself.
    """

    layers: tuple[Dense, ...]
    flatten: bool

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor, *, keep: bool = False) -> Pass:
        """Outputs of R replicas for inputs (R, B, ...); with `keep` all that `backward` needs."""
        hidden = inputs.flatten(2) if self.flatten else inputs
        stages: list[tuple[Tensor, ...]] = []
        for layer in self.layers:
            incoming = hidden
            weight = parameters[layer.weight].transpose(1, 2)
            if layer.bias is None:
                hidden = torch.bmm(hidden, weight)
            else:
                hidden = torch.baddbmm(parameters[layer.bias].unsqueeze(1), hidden, weight)
            stage = [incoming, hidden]
            for activation in layer.activations:
                hidden = activation.forward(hidden)
                stage.append(hidden)
            if keep:
                stages.append(tuple(stage))
        return Pass(hidden, tuple(stages))

    def backward(
        self,
        parameters: Sequence[Tensor],
        done: Pass,
        cotangent: Tensor,
        *,
        weight: Callable[[int, Tensor, Tensor], None] | None = None,
        bias: Callable[[int, Tensor], None] | None = None,
        watch: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        """Run back from the outputs' cotangent (R, B, classes).

        Args:
            parameters: as they were in `forward`.
            done: the forward pass.
            cotangent: gradient with respect to the outputs.
            weight: receives each weight's index and the two factors, (R, out, B) and (R, B, in), whose product is its
                gradient, when the weight may be changed.
            bias: receives each bias's index and gradient, likewise.
            watch: receives each layer's index and the gradient with respect to its pre-activation (R, B, out).
        """
        gradient = cotangent
        for index in range(len(self.layers) - 1, -1, -1):
            layer, (incoming, *stage) = self.layers[index], done.stages[index]
            for place in range(len(layer.activations) - 1, -1, -1):
                gradient = layer.activations[place].backward(gradient, stage[place], stage[place + 1])
            if watch is not None:
                watch(index, gradient)
            here = gradient
            if index:
                gradient = torch.bmm(here, parameters[layer.weight])
            if weight is not None:
                weight(layer.weight, here.transpose(1, 2), incoming)
            if bias is not None and layer.bias is not None:
                bias(layer.bias, here.sum(1))

    def gradients(self, parameters: Sequence[Tensor], done: Pass, cotangent: Tensor) -> dict[int, Tensor]:
        """Index -> gradient of every parameter."""
        gradients: dict[int, Tensor] = {}

        def weight(index: int, left: Tensor, right: Tensor) -> None:
            gradients[index] = torch.bmm(left, right)

        self.backward(parameters, done, cotangent, weight=weight, bias=gradients.__setitem__)
        return gradients


@dataclass(frozen=True)
class Pass:
    """A forward pass.

    Attributes:
        outputs: (R, B, classes).
        stages: a layer's (input, pre-activation, activation, ...), first layer to last.
    """

    outputs: Tensor
    stages: tuple[tuple[Tensor, ...], ...]


class _NoChainError(Exception):
    """Signal that a model is not a chain."""


def chain(model: nn.Module) -> Chain | None:
    """Return the model as a chain; None where it is not one, or not provably one."""
    try:
        return _chain(model)
    except _NoChainError:
        return None


def _chain(model: nn.Module) -> Chain:
    modules = dict(model.named_modules())
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    layers: list[Dense] = []
    flatten = False
    for node in _nodes(model):
        module = modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, nn.Linear) and type(module) is nn.Linear:
            weight, bias = places.get(id(module.weight)), places.get(id(module.bias))
            if weight is None or (bias is None and module.bias is not None):  # a tensor computed from others
                raise _NoChainError
            layers.append(Dense(str(node.target), weight, bias, ()))
        elif _flattens(node, module) and not layers:
            flatten = True
        elif not _vanishes(node, module):
            activation = _activation(node, module)
            if activation is None or not layers:
                raise _NoChainError
            layers[-1] = replace(layers[-1], activations=(*layers[-1].activations, activation))
    used = sorted(place for layer in layers for place in (layer.weight, layer.bias) if place is not None)
    if used != list(range(len(places))) or not all(parameter.requires_grad for parameter in model.parameters()):
        raise _NoChainError
    return Chain(tuple(layers), flatten)


def _nodes(model: nn.Module) -> list[fx.Node]:
    """The calls between input and output, each of which takes what the one before it gives, and nothing else."""
    if any(getattr(module, kind, None) for module in model.modules() for kind in _HOOKS):
        raise _NoChainError
    try:
        nodes = list(fx.Tracer().trace(copied(model, own_tensors=False)).nodes)  # it keeps what its code assigns
    except Exception as error:  # tracing runs the model's code on stand-ins: anything may be raised
        raise _NoChainError from error
    if nodes[-1].args != (nodes[-2],):
        raise _NoChainError
    if any(node.all_input_nodes != [previous] for previous, node in pairwise(nodes)):
        raise _NoChainError
    return nodes[1:-1]


def _flattens(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    named = node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten")
    return named and (node.args[1:], dict(node.kwargs)) in [((1,), {}), ((), {"start_dim": 1}), ((1, -1), {})]


def _vanishes(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Dropout):
        return not module.training or module.p == 0.0
    return type(module) is nn.Identity or node.target is operator.pos


def _activation(node: fx.Node, module: nn.Module | None) -> Activation | None:
    if module is not None:
        if type(module) not in _ELEMENTWISE:
            return None
        if type(module) in _MODULES:
            return _MODULES[type(module)]
        if getattr(module, "inplace", False):
            module = copy.copy(module)
            vars(module)["inplace"] = False
        return _by_autograd(module)
    if len(node.args) != 1 or any(key != "inplace" or value for key, value in node.kwargs.items()):
        return None
    return _FUNCTIONS.get(node.target) if node.op == "call_function" else _METHODS.get(str(node.target))
