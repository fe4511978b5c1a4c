"""One step of any optimizer; what it draws from and writes into."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimizer's step cannot be made without a function that evaluates the loss anew."""
    try:
        taken = inspect.signature(type(optimizer).step).parameters.get("closure")
    except (TypeError, ValueError, AttributeError):
        return False
    return taken is not None and taken.default is inspect.Parameter.empty


def clear(optimizer: Any) -> None:
    """Clear its gradients; a user's own `zero_grad` may take no argument."""
    try:
        taken = inspect.signature(optimizer.zero_grad).parameters
    except (TypeError, ValueError):
        taken = MappingProxyType({})
    if "set_to_none" in taken:
        optimizer.zero_grad(set_to_none=True)
    else:
        optimizer.zero_grad()


def update(optimizer: Any, loss: Callable[[], Tensor]) -> None:
    """Make a step on the gradients that are there; one that takes a closure, as L-BFGS, evaluates the loss itself."""
    if not takes_closure(optimizer):
        optimizer.step()
        return

    def closure() -> Tensor:
        clear(optimizer)
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value

    optimizer.step(closure)


def copy_of(tensor: Tensor) -> Tensor:
    """The same numbers in memory of their own, as a leaf."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def version(tensor: Tensor) -> int:
    """A number that grows with each change in place."""
    return 0 if tensor.is_inference() else tensor._version


def generators_of(batches: object) -> list[torch.Generator]:
    """List the generators of a DataLoader, or of its sampler."""
    sampler, batch_sampler = (getattr(batches, name, None) for name in ("sampler", "batch_sampler"))
    holders = (batches, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    held = (getattr(holder, "generator", None) for holder in holders)
    return [each for each in held if isinstance(each, torch.Generator)]
