"""The storage of a layer's weight: a parameter of its name, or a parametrization that computes it.

Parametrizations are those of `torch.nn.utils.parametrize` (weight_norm, spectral_norm, orthogonal, a user's own) and
the older hooks of `torch.nn.utils.weight_norm` and `spectral_norm`. Weights are set through them, by `right_inverse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from depthgauge.architecture import own_parameters, unmade
from depthgauge.copies import copied
from depthgauge.seeding import Purpose, generator

Hook = WeightNorm | SpectralNorm


def stored_weights(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Parameter, ...]]]:
    """The tensors of two or more dimensions that a module computes with: name, and the parameters they come from.

    A parameter that is not made yet (lazy layers) is among them, as its dimensions are not known.
    """
    hooks = _hooks(module)
    behind = {f"{name}_{part}" for name in hooks for part in ("g", "v", "orig")}
    for name, parameter in own_parameters(module).items():
        if name not in behind and (unmade(parameter) or parameter.dim() > 1):
            yield name, (parameter,)
    for name, sources in _parametrized(module):
        if any(source.dim() > 1 for source in sources):
            yield name, sources
    parameters = own_parameters(module)
    for name in hooks:
        yield name, tuple(parameters[f"{name}_{part}"] for part in ("g", "v", "orig") if f"{name}_{part}" in parameters)


def opened(module: nn.Module, name: str) -> tuple[Tensor, Callable[[], None]]:
    """Return writable values of a weight, and a function that then stores them in the layer."""
    hook = _hooks(module).get(name)
    weight = getattr(module, name).detach()
    if hook is None and not parametrize.is_parametrized(module, name):
        return weight, lambda: None
    values = weight.clone()
    return values, lambda: _bring(module, name, values)


def refusal(module: nn.Module, name: str, sources: tuple[nn.Parameter, ...]) -> str:
    """Give the reason why a weight cannot be set; empty where it can. `holds_back` covers a further case."""
    reason = next((reason for reason in map(_unfit, sources) if reason), "")
    if not reason and parametrize.is_parametrized(module, name) and _trial(module, name) is None:
        return f"{_named(module, name)} takes no weights"
    return reason


def _unfit(source: nn.Parameter) -> str:
    """Give the reason why no numbers can be drawn into a parameter; empty where they can."""
    quantized = not source.is_floating_point() or source.dtype.itemsize < torch.float16.itemsize
    held = str(source.dtype).removeprefix("torch.")
    checks = {
        "not initialized yet, which one forward pass does": unmade(source),
        f"complex, held as {held}": source.is_complex(),
        f"quantized, held as {held}": quantized,
        f"held as a {type(source).__name__}": type(source) is not nn.Parameter,
        "on the meta device, without numbers": source.is_meta,
        "frozen": not source.requires_grad,
    }
    return next((reason for reason, wrong in checks.items() if wrong), "")


def holds_back(module: nn.Module, name: str) -> str:
    """Say that a parametrization changes the weights it is given, as spectral_norm does; empty where it keeps them."""
    hook = _hooks(module).get(name)
    if isinstance(hook, SpectralNorm):
        return "spectral_norm makes other weights of those it is given"
    if not parametrize.is_parametrized(module, name):
        return ""
    pair = _trial(module, name)
    if pair is not None and torch.allclose(pair[0].double(), pair[1].double(), rtol=0.02, atol=1e-3):
        return ""
    return f"{_named(module, name)} makes other weights of those it is given"


def _trial(module: nn.Module, name: str) -> tuple[Tensor, Tensor] | None:
    """N(0, 1) as set on a copy of the layer, and as it comes back; None where they cannot be set."""
    try:
        trial = copied(module)
        weight = getattr(trial, name).detach()
        values = torch.randn(weight.shape, generator=generator(0, Purpose.WEIGHTS, "trial")).to(weight)
        _bring(trial, name, values)
        return values, getattr(trial, name).detach()
    except Exception:  # noqa: BLE001 - a parametrization is code of anyone's; without right_inverse torch raises one
        return None


@torch.no_grad()
def _bring(module: nn.Module, name: str, values: Tensor) -> None:
    hook = _hooks(module).get(name)
    layer: Any = module
    if hook is None:
        inner: Any = layer.parametrizations[name]
        norm = type(inner[0]).__name__ == "_WeightNorm"
        if not norm and not values.any():
            return  # the norm of zeros, or a basis of theirs, is none
        setattr(module, name, values.clone())
        if norm:
            _point(inner.original0, inner.original1)
    elif isinstance(hook, WeightNorm):
        length, direction = getattr(layer, f"{name}_g"), getattr(layer, f"{name}_v")
        length.copy_(torch.norm_except_dim(values, 2, hook.dim))
        direction.copy_(values)
        _point(length, direction)
        setattr(module, name, hook.compute_weight(module))
    elif values.any():
        getattr(layer, f"{name}_orig").copy_(values)
        setattr(module, name, hook.compute_weight(module, do_power_iteration=False))


def _point(length: Tensor, direction: Tensor) -> None:
    """A weight of length 0 needs some direction too: length times 0/0 would be NaN."""
    direction.copy_(torch.where(length == 0, torch.ones_like(direction), direction))


def _hooks(module: nn.Module) -> dict[str, Hook]:
    return {hook.name: hook for hook in module._forward_pre_hooks.values() if isinstance(hook, Hook)}


def _parametrized(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Parameter, ...]]]:
    if parametrize.is_parametrized(module):
        every: Any = module.parametrizations
        for name, inner in every.items():
            yield name, tuple(own_parameters(inner).values())


def _named(module: nn.Module, name: str) -> str:
    """`spectral_norm`, or the class of someone's own."""
    every: Any = module.parametrizations
    known = {"_WeightNorm": "weight_norm", "_SpectralNorm": "spectral_norm", "_Orthogonal": "orthogonal"}
    kinds = [type(each).__name__ for each in every[name]]
    return " after ".join(known.get(kind, kind) for kind in reversed(kinds))
