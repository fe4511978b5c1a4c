"""Trainable tensors that a module holds without having registered them, and their names."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from depthgauge.workload import Training

DEEPEST = 6  # containers and objects inside each other
MOST = 20_000  # objects that are looked at


def unregistered(training: Training) -> dict[str, Tensor]:
    """By name, as it would be were it registered: leaves that train, held by modules, by the loss or its closure."""
    known = {id(each) for module in training.modules for each in module.parameters()}
    walk = _Walk(known)
    for root in training.modules:
        for name, module in root.named_modules():
            walk.object(f"{name}." if name else "", vars(module), 0)
    if not isinstance(training.loss, nn.Module):
        for name, value in within(training.loss):
            walk.value(f"loss.{name}", value, 0)
    return walk.found


@contextmanager
def gradients_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put back what `.grad` held of tensors that `Training.untouched` does not know; in the block it begins as None."""
    kept = [(each, each.grad) for each in tensors]
    try:
        for each, _ in kept:
            each.grad = None
        yield
    finally:
        for each, gradient in kept:
            each.grad = gradient


def within(loss: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function has closed over or was bound to."""
    if isinstance(loss, functools.partial):
        yield from loss.keywords.items()
        yield from ((str(place), value) for place, value in enumerate(loss.args))
        loss = loss.func
    if (owner := getattr(loss, "__self__", None)) is not None:
        yield "self", owner
    code, cells = getattr(loss, "__code__", None), getattr(loss, "__closure__", None) or ()
    if code is not None:
        for name, cell in zip(code.co_freevars, cells, strict=False):
            try:
                yield name, cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        around = getattr(loss, "__globals__", {})
        yield from ((name, around[name]) for name in code.co_names if isinstance(around.get(name), Tensor | nn.Module))
    elif loss is not None and not isinstance(loss, type):
        yield from getattr(loss, "__dict__", {}).items()


class _Walk:
    """A walk through attributes and containers; each object is met once."""

    def __init__(self, known: set[int]) -> None:
        self.found: dict[str, Tensor] = {}
        self._known = known
        self._met: set[int] = set()

    def object(self, prefix: str, content: Mapping[str, Any], depth: int) -> None:
        for name, value in content.items():
            if not name.startswith("__") and name not in _OF_TORCH:
                self.value(f"{prefix}{name}", value, depth)

    def value(self, name: str, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            if value.is_leaf and value.requires_grad and id(value) not in self._known:
                self._known.add(id(value))
                self.found[name] = value
            return
        if depth > DEEPEST or len(self._met) > MOST or id(value) in self._met or isinstance(value, _PLAIN):
            return
        self._met.add(id(value))
        if isinstance(value, nn.Module):
            for inner, parameter in value.named_parameters():
                self.value(f"{name}.{inner}", parameter, depth + 1)
        elif isinstance(value, Mapping):
            for key, item in list(value.items()):
                self.value(f"{name}.{key}", item, depth + 1)
        elif isinstance(value, list | tuple | set | frozenset):
            for place, item in enumerate(value):
                self.value(f"{name}.{place}", item, depth + 1)
        elif type(value).__module__.partition(".")[0] not in _OTHERS and hasattr(value, "__dict__"):
            self.object(f"{name}.", vars(value), depth + 1)


_OF_TORCH = frozenset(vars(nn.Module())) - {"training"}
"""What torch keeps in each module: its parameters, buffers and hooks; they are walked by name."""
_PLAIN = (str, bytes, int, float, complex, type(None), type)
_OTHERS = {"torch", "numpy", "builtins", "functools", "types", "pandas", "logging", "threading", "_io"}
