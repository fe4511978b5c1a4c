"""Parameters of a training: their names, which of them an optimizer holds, how their format is called."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.modules import is_installed


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
    return is_installed(Path(place)) and not type(module).__module__.startswith("torch.")


def is_normal(weight: Tensor) -> bool:
    """Tell whether numbers have the mean, variance and fourth moment of N(0, 1), within 3 standard errors."""
    values = weight[weight.any(1)].double()  # without the row of padding
    count = values.numel()
    if count < 100:
        return False
    moments = ((values.mean(), 0.0, 1.0), (values.square().mean(), 1.0, 2.0), (values.pow(4).mean(), 3.0, 96.0))
    return all(abs(found.item() - wanted) < 3 * math.sqrt(spread / count) for found, wanted, spread in moments)
