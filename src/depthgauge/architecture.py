"""The places of a model: its weight layers, its residual branches, and the layers that end them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


def layers(model: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    """The weight layers of a model, (name, module), in forward order; any module will do.

    A weight layer itself holds a parameter of two or more dimensions: linear, convolution, embedding; behind a
    parametrization (weight_norm) too. Its name is the one that `named_modules` uses. The models of `depthgauge.models`
    register their layers in the order in which they run, a projected shortcut after the branch beside it; of other
    modules the order is that of registration.
    """
    return tuple(
        (name, module)
        for name, module in model.named_modules()
        if ".parametrizations." not in f".{name}." and any(map(_weighs, _sources(module)))
    )


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a module itself holds, by name, each once.

    As `named_parameters(recurse=False)`, also of a module that overrides `named_parameters` or `parameters`.
    """
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name, each in module._parameters.items():
        if each is not None:
            found.setdefault(id(each), (name, each))
    return dict(found.values())


def _sources(module: nn.Module) -> Iterable[nn.Parameter]:
    """A module's own parameters, and those from which `torch.nn.utils.parametrize` computes them."""
    yield from own_parameters(module).values()
    if "parametrizations" in module._modules:
        for inner in module.parametrizations.children():  # type: ignore[union-attr]  # a ModuleDict, by torch's contract
            yield from own_parameters(inner).values()


RESETS = ("reset_parameters", "_reset_parameters")
"""Methods by which torch's modules, and those of others, draw their own parameters anew."""


def reset(module: nn.Module) -> None:
    """Have every part of a module draw its parameters anew, inner parts first, as when it was built.

    An outer part may change what the inner ones drew: attention zeroes the bias of its last layer.
    """
    for part in _inner_first(module, set()):
        for name in RESETS:
            if callable(getattr(part, name, None)):
                getattr(part, name)()


def _inner_first(module: nn.Module, seen: set[nn.Module]) -> Iterable[nn.Module]:
    if module in seen:
        return
    seen.add(module)
    for child in module.children():
        yield from _inner_first(child, seen)
    yield module


def unmade(parameter: Tensor) -> bool:
    """Tell whether a lazy layer has yet to make the parameter or buffer, so that it has no dimensions."""
    return hasattr(parameter, "materialize")


def _weighs(parameter: nn.Parameter) -> bool:
    return unmade(parameter) or parameter.dim() > 1


def branch_ends(model: nn.Module) -> tuple[str, ...]:
    """Names of the weight layers that end a residual branch, in forward order; none without shortcuts.

    Their number is the N of schemes that scale by depth (1/sqrt(N) in GPT-2, zero in Fixup). A block names its own, in
    an attribute `branch_ends`, relative to itself; so can a block of any other model.
    """
    return tuple(
        f"{name}.{end}" if name else end
        for name, module in model.named_modules()
        for end in getattr(module, "branch_ends", ())
    )


def branches(model: nn.Module, ends: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """The weight layers of each residual branch, first to last, for the layers that end one.

    Registration order is all that there is to go by: a branch is what stands in the end's own parent, up to the end
    and after the end before it. So `conv1, conv2` of a block `conv1, conv2, shortcut` that ends in `conv2`.
    """
    names = [name for name, _ in layers(model)]
    chains: list[tuple[str, ...]] = []
    passed: set[str] = set()
    for end in ends:
        parent = end.rpartition(".")[0]
        inside = [name for name in names if not parent or name.startswith(f"{parent}.")]
        branch = tuple(name for name in inside[: inside.index(end) + 1] if name not in passed)
        passed.update(branch)
        chains.append(branch)
    return tuple(chains)
