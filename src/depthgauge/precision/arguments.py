"""Arguments and results of any module."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from depthgauge import nested


class Arguments(NamedTuple):
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @staticmethod
    def of(batch: Any) -> Arguments:
        """A tensor is handed over as it is, a tuple or list by position, a mapping by name."""
        if hasattr(batch, "args") and hasattr(batch, "kwargs"):
            return Arguments(tuple(batch.args), dict(batch.kwargs))
        if isinstance(batch, Mapping):
            return Arguments((), dict(batch))
        if isinstance(batch, list | tuple) and not hasattr(batch, "_fields"):
            return Arguments(tuple(batch), {})
        return Arguments((batch,), {})


def replaced(value: Any, change: Callable[[str, Tensor], Tensor], place: str = "") -> Any:
    """The same structure of the same types, its floating-point tensors changed; `change` is given place and tensor.

    Complex ones are changed too.
    """
    if isinstance(value, Tensor):
        return change(place, value) if nested.inexact(value) else value
    members = {
        key: replaced(item, change, f"{place}.{key}" if place else str(key)) for key, item in nested.items(value)
    }
    if all(members[key] is item for key, item in nested.items(value)):
        return value
    if isinstance(value, tuple):
        return type(value)(*members.values()) if hasattr(value, "_fields") else type(value)(members.values())
    new = copy.copy(value)
    for key, item in members.items():
        if dataclasses.is_dataclass(new) and not isinstance(new, Mapping):
            object.__setattr__(new, key, item)
        else:
            new[key] = item
    return new
