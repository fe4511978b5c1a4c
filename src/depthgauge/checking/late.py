"""Layers that a model makes in its first forward pass: there while a check goes on, and taken out at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Made = tuple[tuple[nn.Module, str, Any], ...]

_NONE = object()


def names(model: nn.Module) -> list[tuple[nn.Module, frozenset[str]]]:
    """Each part of a model, with the names of its layers and parameters."""
    return [(part, _names(part)) for part in model.modules() if not isinstance(part, torch.jit.ScriptModule)]


def made(before: list[tuple[nn.Module, frozenset[str]]]) -> Made:
    """List the layers and parameters that train and were not there: part, name and what it is."""
    new = ((part, name, getattr(part, name)) for part, known in before for name in sorted(_names(part) - known))
    return tuple((part, name, value) for part, name, value in new if _trains(value))


@contextmanager
def kept(made: Made) -> Iterator[None]:
    """Put them in for the block."""
    plain = [(part, name, vars(part).get(name, _NONE)) for part, name, _ in made]
    for part, name, value in made:
        setattr(part, name, value)
    try:
        yield
    finally:
        for part, name, value in plain:
            delattr(part, name)
            if value is not _NONE:
                vars(part)[name] = value


def _names(part: nn.Module) -> frozenset[str]:
    return frozenset((*part._modules, *part._parameters))


def _trains(value: Any) -> bool:
    tensors = value.parameters() if isinstance(value, nn.Module) else [value]
    return any(each is not None and each.requires_grad for each in tensors)
