"""Modules, optimizers and random generators, left as they were after a block that uses them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def random_states_kept(others: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Restore the global generators of torch, NumPy and Python, and others, at the end of the block."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - what a user's code may draw from
    states = [(generator, generator.get_state()) for generator in others]
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if in_use else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002 - as above
            for generator, state in states:
                generator.set_state(state)


@contextmanager
def restored(
    modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None = None, *others: object
) -> Iterator[None]:
    """Undo the block's changes to weights, gradients, buffers, modes, flags and hooks of modules, and to an optimizer.

    A lazy layer that gets its sizes within the block keeps them.

    Args:
        modules: each part is put back once.
        optimizer: with those that it holds.
        others: further optimizers, and schedulers.
    """
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    places = _Places()
    open_ = [part for part in parts if not (isinstance(part, torch.jit.ScriptModule) or has_no_sizes(part))]
    for part in open_:  # parts of the others cannot be replaced, or will be
        for name in _DICTIONARIES:
            places.add(vars(part).get(name))
    loose = [
        (part, name, value) for part in parts for name, value in vars(part).items() if isinstance(value, Tensor)
    ]  # such as `weight` under torch.nn.utils.weight_norm, which each call computes anew
    flags = [(part, _flags(part)) for part in open_]
    plain = [(part, {name: value for name, value in vars(part).items() if name not in _DICTIONARIES}) for part in open_]
    modes = [(part, part.training) for part in parts]
    owned = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for stepped in (each for given in (optimizer, *others) for each in _steppers(given)):
        places.add(getattr(stepped, "param_groups", None))
        places.add(getattr(stepped, "state", None))
        places.add(vars(stepped))  # hooks, and what schedulers leave there; a scheduler's numbers
    tensors = {id(each): each for each in (*owned, *places.tensors)}
    hooks = [(each, name, dict(getattr(each, name) or {})) for each in tensors.values() for name in _TENSOR_HOOKS]
    snapshots = [Snapshot.of(each) for each in tensors.values() if not (nn.parameter.is_lazy(each) or each.is_meta)]
    try:
        yield
    finally:
        places.restore()
        for part, attributes in plain:
            _unassign(part, attributes)
        for part, name, value in loose:
            vars(part)[name] = value
        for part, before in flags:
            for name in _flags(part).keys() - before.keys():
                del vars(part)[name]
            vars(part).update(before)
        for part, training in modes:
            part.training = training
        for each, name, content in hooks:
            if (now := getattr(each, name)) is not None:
                now.clear()
                now.update(content)
        with torch.no_grad():
            for snapshot in snapshots:
                snapshot.restore()


@contextmanager
def buffers_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what the block does to buffers, such as running statistics, also where it puts others in their places.

    Values that are written back count as no change for graphs that the block has made.
    """
    parts = [each for module in modules for each in module.modules() if not isinstance(each, torch.jit.ScriptModule)]
    places = [(each._buffers, dict(each._buffers)) for each in parts]
    held = {id(each): each for module in modules for each in module.buffers()}
    values = [(each, each.detach().clone()) for each in held.values()]
    try:
        yield
    finally:
        for now, before in places:
            now.clear()
            now.update(before)
        with torch.no_grad():
            for buffer, value in values:
                _write(buffer.data, value)


def _unassign(part: nn.Module, before: dict[str, Any]) -> None:
    """Undo that a plain attribute, such as None, became a layer or a parameter, or one of these a plain attribute."""
    now = vars(part)
    for name in {name for held in _HOLDERS for name in now[held]} & now.keys() - before.keys():
        del now[name]
    now.update({name: before[name] for name in before.keys() - now.keys()})


def _steppers(given: object, seen: set[int] | None = None) -> Iterator[object]:
    """The optimizer or scheduler, and those that it holds and steps, however deep."""
    seen = set() if seen is None else seen
    if given is None or id(given) in seen:
        return
    seen.add(id(given))
    yield given
    for value in list(vars(given).values()):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        for each in parts:
            if isinstance(each, torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
                yield from _steppers(each, seen)


def has_no_sizes(part: nn.Module) -> bool:
    """Tell whether a module has weights without sizes, which its first call gives it."""
    return isinstance(part, nn.modules.lazy.LazyModuleMixin) and part.has_uninitialized_params()


def _flags(part: nn.Module) -> dict[str, bool]:
    """What a module notes of itself as done: hooks that its first call added, weights that it drew from its data."""
    return {name: value for name, value in vars(part).items() if isinstance(value, bool)}


_DICTIONARIES = tuple(name for name, value in vars(nn.Module()).items() if isinstance(value, dict))
"""What torch keeps in each module: its parameters, buffers, modules, and hooks of every kind."""


_HOLDERS = ("_parameters", "_buffers", "_modules")
"""Those of them in which an attribute's name is looked for where the module itself has none."""


_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")


class _Places:
    """Snapshot of nested dictionaries and lists, and the tensors in them.

    Attributes:
        tensors: in the order in which they were found; one may be there twice.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._content: dict[int, tuple[Any, Any]] = {}

    def add(self, value: Any) -> None:
        """Add a container's present content; other objects are ignored."""
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, dict | list | tuple) and id(value) not in self._content:
            inner = list(value.values()) if isinstance(value, dict) else list(value)
            self._content[id(value)] = value, dict(value) if isinstance(value, dict) else inner
            for each in inner:
                self.add(each)

    def restore(self) -> None:
        """Restore the content."""
        for holder, content in self._content.values():
            if isinstance(holder, dict):
                holder.clear()
                holder.update(content)
            elif isinstance(holder, list):
                holder[:] = content


@dataclass(frozen=True)
class Snapshot:
    """Snapshot of a tensor: its values and its gradient."""

    tensor: Tensor
    value: Tensor
    requires_grad: bool
    gradient: Snapshot | None

    @staticmethod
    def of(tensor: Tensor) -> Snapshot:
        """Copy it."""
        gradient = tensor.grad if tensor.is_leaf else None
        return Snapshot(
            tensor, tensor.detach().clone(), tensor.requires_grad, None if gradient is None else Snapshot.of(gradient)
        )

    def restore(self) -> None:
        """Put values, format, device and gradient back; within `torch.no_grad()`."""
        tensor, value = self.tensor, self.value
        if tensor.is_leaf:
            tensor.grad = None  # its format may be another than the tensor's until both are put back
        if (tensor.dtype, tensor.device, tensor.shape) != (value.dtype, value.device, value.shape):
            tensor.data = value
        elif tensor.layout is not torch.strided or not torch.equal(tensor, value):
            _write(tensor, value)
        if tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if self.gradient is not None:
            self.gradient.restore()
            tensor.grad = self.gradient.tensor


def _write(tensor: Tensor, value: Tensor) -> None:
    target = unrepeated(tensor)
    target.copy_(value if target is tensor else value[tuple(map(slice, target.shape))])


def unrepeated(tensor: Tensor) -> Tensor:
    """A tensor without the repetitions of an expanded one, which share memory; itself where there are none."""
    if tensor.layout is not torch.strided:
        return tensor
    for dim, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if length > 1 and not stride:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor
