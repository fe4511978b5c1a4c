"""Tensors inside nested inputs and outputs: tuples, mappings, dataclasses, Hugging Face's ModelOutput."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch


class NoTensorError(TypeError):
    """Output without a floating-point tensor; the message names its type."""


def tensors(value: object, place: str = "") -> Iterator[tuple[str | None, torch.Tensor]]:
    """The tensors of a structured value, depth first, each with its place: `"0"`, `"1.0"`, `"hidden"`.

    Fields of a dataclass that are not set, and what refers back to itself, are passed over.
    """
    yield from _walk(value, place, ())


def _walk(value: object, place: str, above: tuple[int, ...]) -> Iterator[tuple[str | None, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place or None, value
    elif id(value) not in above:
        for key, item in items(value):
            yield from _walk(item, f"{place}.{key}" if place else str(key), (*above, id(value)))


def inexact(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's numbers are rounded: floating-point or complex ones."""
    return tensor.is_floating_point() or tensor.is_complex()


def real(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor; of a complex one its real and imaginary parts, (..., 2)."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def items(value: object) -> Iterable[tuple[Any, Any]]:
    """Yield the members of a mapping, sequence, named tuple or dataclass by key, place or name, without unset fields.

    Nothing of any other value.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=False)
    if isinstance(value, list | tuple):
        return enumerate(value)
    if is_dataclass(value) and not isinstance(value, type):
        return ((field.name, getattr(value, field.name)) for field in fields(value) if hasattr(value, field.name))
    return ()


def mapped(
    value: Any, function: Callable[[torch.Tensor], torch.Tensor], other: Callable[[Any], Any] = lambda value: value
) -> Any:
    """The same structure with a function applied to every tensor, in containers of its own.

    Dictionaries keep their type, other mappings become dictionaries, the rest stays, or is what `other` makes of it.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, Mapping):
        changed = {key: mapped(item, function, other) for key, item in value.items()}
        if type(value) is dict or not isinstance(value, dict | UserDict):  # whose copies share nothing with them
            return changed
        again = copy(value)
        for key, item in changed.items():
            again[key] = item
        return again
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function, other) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, function, other) for item in value)
    return other(value)


def copied(value: Any, function: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor) -> Any:
    """The same tensors in containers and objects of their own: what is taken out or assigned there stays there.

    An object that holds tensors is one of its own where it can be copied and has attributes (a frozen dataclass has
    none to assign); what it refers to stays, but tensors, containers and objects that hold tensors.

    Args:
        value: a batch.
        function: is applied to every tensor, those of objects too.
    """
    return _Copying(function).whole(value)


def held(value: Any) -> list[torch.Tensor]:
    """All tensors of a batch, those that its objects hold among them."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    copied(value, note)
    return found


class _Copying:
    """Copies of the objects in one batch; one that is there twice is one copy."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function = function
        self._made: dict[int, Any] = {}

    def whole(self, value: Any) -> Any:
        """A value, or its copy."""
        return mapped(value, self._function, self._object)

    def _object(self, value: Any) -> Any:
        if id(value) in self._made:
            return self._made[id(value)]
        self._made[id(value)] = value  # where it refers to itself
        if not _holds(value, OBJECTS):
            return value
        try:
            again = self._made[id(value)] = copy(value)
            for content in _contents(again):
                for name, item in list(content.items()):
                    if type(item) in (dict, list, tuple) or _holds(item, OBJECTS - 1):
                        content[name] = self.whole(item)
        except Exception:  # noqa: BLE001 - a user's class may refuse in any way, and is handed on as it is then
            self._made[id(value)] = again = value
        return again


OBJECTS = 3  # within each other, that are looked into for tensors
_OF_OTHERS = {"builtins", "collections", "numpy", "torch", "weakref"}


def _contents(value: Any) -> list[Any]:
    """Where an object keeps its attributes: its own dictionary, or those of the stores of a graph (PyTorch Geometric).

    Those of a frozen dataclass, a class and a module are none.
    """
    kind = type(value)
    if isinstance(value, type | torch.nn.Module | Iterator | Mapping) or not hasattr(value, "__dict__"):
        return []
    if kind.__module__.partition(".")[0] in _OF_OTHERS:
        return []
    if is_dataclass(kind) and kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # every one has them
        return []
    of_graph = any(base.__module__.startswith("torch_geometric.data") for base in kind.__mro__)
    return list(value.stores) if of_graph and hasattr(kind, "stores") else [vars(value)]


def _holds(value: Any, objects: int) -> bool:
    """Tell whether a value is or holds a tensor or an array, in containers and objects of its own."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return True
    if isinstance(value, dict | list | tuple):
        return any(_holds(item, objects - 1) for _, item in items(value)) if objects else False
    return bool(objects) and any(_holds(item, objects - 1) for content in _contents(value) for item in content.values())


def scores(output: object) -> torch.Tensor:
    """The tensor that a module's output is judged by: `logits` where it has them, else its first floating-point tensor.

    Raises:
        NoTensorError: it has none.
    """
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        return output
    floating = {place: tensor for place, tensor in tensors(output) if tensor.is_floating_point()}
    named = getattr(output, "logits", None)
    if isinstance(named, torch.Tensor) and named.is_floating_point():
        return named
    if floating:
        return floating.get("logits", next(iter(floating.values())))
    raise NoTensorError(f"it returns a {type(output).__name__} without any floating-point tensor")


def rows(value: object) -> int | None:
    """The length that all tensors of a batch have in common along their first dimension; None where they have none."""
    lengths = {len(tensor) if tensor.dim() and not tensor.is_nested else None for _, tensor in tensors(value)}
    return next(iter(lengths)) if len(lengths) == 1 else None


def examples(value: object) -> int:
    """Length of the first tensor's first dimension, which is a batch's as a rule; 1 where there is none."""
    return next((len(tensor) for _, tensor in tensors(value) if tensor.dim()), 1)


def first(value: Any, count: int) -> Any:
    """The first examples of a batch; the whole where its tensors do not share a first dimension longer than that."""
    length = rows(value)
    return value if length is None or length <= count else mapped(value, lambda tensor: tensor[:count])


def describe(value: object) -> str:
    """`float32 64 x 1 x 28 x 28`, `input_ids int64 3 x 5, attention_mask int64 3 x 5`."""
    descriptions = []
    for place, tensor in tensors(value):
        name = (place or "").rpartition(".")[2]
        parts = (
            "" if name.isdecimal() else name,
            str(tensor.dtype).removeprefix("torch."),
            " x ".join(map(str, tensor.shape)),
        )
        descriptions.append(" ".join(filter(None, parts)))
    return ", ".join(descriptions)
