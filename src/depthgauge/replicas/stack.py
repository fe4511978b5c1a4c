"""Many copies of one model as one set of stacked tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from depthgauge.architecture import RESETS, own_parameters, reset, unmade
from depthgauge.copies import copied
from depthgauge.nested import scores
from depthgauge.restoring import random_states_kept, unrepeated
from depthgauge.seeding import Purpose, generator, seed_globals

Initialize = Callable[..., object]
Places = Mapping[str, str]


@dataclass(frozen=True)
class Stack:
    """R copies of one model.

    Attributes:
        template: the architecture; its own weights mean nothing.
        parameters: name -> (R, *shape).
        buffers: name -> (R, *shape).
        seeds: each replica's own; its weights, its data order and its dropout come from nothing else.
    """

    template: nn.Module
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    seeds: tuple[int, ...]

    @cached_property
    def places(self) -> Places:
        """Return the place of each tensor in the template."""
        return places(self.template)

    def member(self, replica: int) -> dict[str, Tensor]:
        """Parameters and copies of the buffers of one replica, by name."""
        parameters = {name: tensor[replica] for name, tensor in self.parameters.items()}
        return parameters | {name: tensor[replica].clone() for name, tensor in self.buffers.items()}

    def __len__(self) -> int:
        return len(self.seeds)

    def module(self, replica: int) -> nn.Module:
        """One replica as a module of its own, on the CPU."""
        module = copied(self.template)
        load(module, self, replica)
        return module

    def clone(self) -> Stack:
        """The same numbers in memory of their own."""
        return Stack(
            self.template,
            {name: tensor.clone() for name, tensor in self.parameters.items()},
            {name: tensor.clone() for name, tensor in self.buffers.items()},
            self.seeds,
        )

    def fresh(self) -> Stack:
        """The same replicas over a template of their own, which may be run: code may keep what it has seen."""
        return Stack(copied(self.template, own_tensors=False), self.parameters, self.buffers, self.seeds)

    def part(self, rows: slice) -> Stack:
        """Some neighbouring replicas, sharing this stack's memory."""
        return Stack(
            self.template,
            {name: tensor[rows] for name, tensor in self.parameters.items()},
            {name: tensor[rows] for name, tensor in self.buffers.items()},
            self.seeds[rows],
        )


def call(module: nn.Module, values: Mapping[str, Tensor], inputs: Tensor, where: Places | None = None) -> Tensor:
    """The scores that a module gives (`nested.scores`) with other parameters and buffers in it.

    Args:
        module: it stays as it is.
        values: by name, shared ones once.
        inputs: the module's inputs.
        where: `places(module)`, where it is at hand.
    """
    # Left to itself, `functional_call` restores a module that stands in two places to what it put there.
    placed = {place: values[name] for place, name in (places(module) if where is None else where).items()}
    return scores(functional_call(module, placed, (inputs,), tie_weights=False))


def places(module: nn.Module) -> Places:
    """Every place that holds a parameter or buffer -> the name that `tensors` knows it by; shared modules once."""
    names = {id(tensor): name for group in tensors(module) for name, tensor in group.items()}
    return {
        f"{prefix}.{name}" if prefix else name: names[id(tensor)]
        for prefix, part in module.named_modules()
        for name, tensor in (*own_parameters(part).items(), *part.named_buffers(recurse=False))
    }


def tensors(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers by name, shared ones once."""
    return dict(module.named_parameters()), dict(module.named_buffers())


@torch.no_grad()
def load(module: nn.Module, stack: Stack, replica: int) -> None:
    """Set a module's parameters and buffers to those of one replica."""
    parameters, buffers = tensors(module)
    for group, stacked in ((parameters, stack.parameters), (buffers, stack.buffers)):
        for name, tensor in group.items():
            tensor.copy_(stacked[name][replica])


@torch.no_grad()
def store(module: nn.Module, stack: Stack, replica: int) -> None:
    """Set one replica to a module's parameters and buffers."""
    parameters, buffers = tensors(module)
    for group, stacked in ((parameters, stack.parameters), (buffers, stack.buffers)):
        for name, tensor in group.items():
            stacked[name][replica].copy_(tensor)


@torch.no_grad()
def stack(
    template: nn.Module,
    seeds: Sequence[int],
    initialize: Initialize | None = None,
    *,
    device: str | torch.device = "cpu",
    **columns: Sequence[Any],
) -> Stack:
    """R copies of a model, each drawn from its own seed.

    Args:
        template: any module; it stays as it is.
        seeds: one a replica.
        initialize: `f(module, generator, **parameters)` that sets weights in place, from the template's on; without
            it every submodule's own `reset_parameters` draws them, inner ones first. The global generators of PyTorch's
            CPU, NumPy and Python get streams of the seed's own, for draws that take no generator, and are put back.
        device: the stack's device.
        **columns: parameters of `initialize` that differ between replicas: one value a replica, by name.

    Raises:
        ValueError: no replica, a column of another length, or a template without memory (on the meta device) or sizes.
    """
    if not seeds:
        raise ValueError("a stack needs at least one replica: pass one seed for each")
    for name, column in columns.items():
        if len(column) != len(seeds):
            raise ValueError(f"{name!r} has {len(column)} values for {len(seeds)} replicas; give one a replica")
    if any(unmade(tensor) for group in tensors(template) for tensor in group.values()):
        raise ValueError("a template with lazy layers has no sizes yet; call it once, and then stack it")
    if initialize is None:
        _check_resets(template)
    if columns and initialize is None:
        raise ValueError(f"{', '.join(columns)}: parameters of `initialize`, of which there is none")
    if any(tensor.is_meta for group in tensors(template) for tensor in group.values()):
        raise ValueError("a template on the meta device cannot be drawn from; build it on the CPU")
    template = _own_memory(copied(template).to("cpu"))
    parameters, buffers = tensors(template)
    empty = [
        {name: torch.empty((len(seeds), *tensor.shape), dtype=tensor.dtype) for name, tensor in group.items()}
        for group in (parameters, buffers)
    ]
    made = Stack(template, empty[0], empty[1], tuple(seeds))
    # Every replica starts from the template as it came, not from what its neighbour left in it.
    fresh = [(tensor, tensor.clone()) for group in (parameters, buffers) for tensor in group.values()]
    drawn: dict[Hashable, int] = {}
    with random_states_kept():
        for replica, seed in enumerate(seeds):
            own_parameters = {name: column[replica] for name, column in columns.items()}
            twin = drawn.setdefault(_draw_key(seed, own_parameters), replica)
            if twin != replica:
                _copy_replica(made, twin, replica)
                continue
            for tensor, first in fresh:
                tensor.copy_(first)
            seed_globals(seed, Purpose.MODULES)
            if initialize is None:
                reset(template)
            else:
                initialize(template, generator(seed, Purpose.WEIGHTS), **own_parameters)
            store(template, made, replica)
    moved = [{name: rows.to(device) for name, rows in part.items()} for part in (made.parameters, made.buffers)]
    return Stack(template, moved[0], moved[1], made.seeds)


def _own_memory(module: nn.Module) -> nn.Module:
    """The module, its expanded tensors with memory for each number."""
    for group in tensors(module):
        for tensor in group.values():
            if unrepeated(tensor) is not tensor:
                tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return module


def _draw_key(seed: int, parameters: Mapping[str, Any]) -> Hashable:
    """What a replica's weights follow from: equal where two replicas draw the same; unequal where that is unknown."""
    key = (seed, tuple((name, type(value), value) for name, value in parameters.items()))
    try:
        hash(key)
    except TypeError:
        return object()
    return key


def _copy_replica(made: Stack, source: int, target: int) -> None:
    for group in (made.parameters, made.buffers):
        for rows in group.values():
            rows[target].copy_(rows[source])


# Modules whose reset draws the parameters of the modules in them as well.
_DEEP = (nn.MultiheadAttention, nn.Transformer)


def _check_resets(module: nn.Module) -> None:
    """Refuse a template that would silently give every replica the same weights."""
    reset: set[int] = set()
    for part in module.modules():
        if any(hasattr(part, name) for name in RESETS):
            drawn = part.parameters() if isinstance(part, _DEEP) else own_parameters(part).values()
            reset.update(map(id, drawn))
    for name, parameter in module.named_parameters():
        if id(parameter) not in reset:
            raise ValueError(f"no module's reset_parameters draws {name!r}; pass `initialize` to draw it")
