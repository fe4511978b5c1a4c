"""Parameters of a training: their names, which of them an optimizer holds, how their format is called."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def names_of(model: nn.Module) -> dict[int, str]:
    """The names of a model's parameters, by `id`."""
    return {id(each): name for name, each in model.named_parameters()}


def held_by(optimizer: Any) -> list[Any]:
    """The tensors in an optimizer's groups; none without one."""
    return [] if optimizer is None else [each for group in optimizer.param_groups for each in group["params"]]


def format_of(tensor: Tensor) -> str:
    """`float32`: a tensor's format without torch's prefix."""
    return spelled(tensor.dtype)


def spelled(dtype: torch.dtype) -> str:
    """The name of a format without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def of_a_package(module: nn.Module) -> bool:
    """Tell whether a module's class is an installed package's: what such a model leaves out is not the user's code."""
    try:
        place = inspect.getfile(type(module))
    except (TypeError, OSError):
        return False
    return ("site-packages" in place or "dist-packages" in place) and not type(module).__module__.startswith("torch.")
