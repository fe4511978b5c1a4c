"""The tensors inside a module's output, each with its place."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from depthgauge.nested import items

_UNSET = object()


class HandedOn:
    """Outputs of modules in this step: a container that hands one on has no activation of its own."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}

    def has(self, tensor: torch.Tensor, *, by_container: bool) -> bool:
        """Tell whether a container's output is one that a module inside returned, unchanged; note it if not."""
        try:
            version = tensor._version
        except RuntimeError:  # an inference tensor has none
            version = 0
        if by_container:
            earlier = self._seen.get(id(tensor))
            if earlier is not None and earlier[0]() is tensor and earlier[1] == version:
                return True
        self._seen[id(tensor)] = (weakref.ref(tensor), version)
        return False

    def clear(self) -> None:
        """Forget the outputs of the step before."""
        self._seen.clear()


def tensors_of(output: Any) -> Iterator[tuple[str | None, torch.Tensor]]:
    """The tensors of a structured output with their places: `"0"`, `"1.0"`, `"hidden"`; None for a tensor itself.

    Mappings, sequences, named tuples and dataclasses are looked into, each once, whatever refers back to it. Of another
    object, the attributes are looked at if it is the output itself. Fields that are not set are left out.
    """
    if isinstance(output, torch.Tensor):
        yield None, output
        return
    seen: dict[int, Any] = {}
    taken: set[str] = set()
    open_items = [("", iter(_items(output, whole=True)))]
    seen[id(output)] = output
    while open_items:
        place, rest = open_items[-1]
        key, value = next(rest, (_UNSET, _UNSET))
        if value is _UNSET:
            open_items.pop()
            continue
        at = f"{place}.{key}" if place else str(key)
        if isinstance(value, torch.Tensor):
            while at in taken:  # keys 1 and "1"
                at += "'"
            taken.add(at)
            yield at, value
        elif id(value) not in seen:
            seen[id(value)] = value  # kept, so that no other object gets its id
            open_items.append((at, iter(_items(value))))


def _items(value: Any, *, whole: bool = False) -> Iterable[tuple[Any, Any]]:
    held = items(value)
    opaque = held == () and not isinstance(value, type | torch.nn.Module)
    return list(getattr(value, "__dict__", {}).items()) if whole and opaque else held
