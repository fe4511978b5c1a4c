"""The optimizers behind an argument: one, a wrapper around one or more, or several."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

DEPTH = 4  # wrappers around each other
# The code of a `step()` that runs hooks, the same for all classes.
_STEP = Optimizer.profile_hook_step(lambda *_: None).__code__


def members_of(optimizer: Any) -> list[list[Optimizer]]:
    """The optimizers whose steps make up one step, in order; each followed by those inside of it.

    An `Optimizer` whose `step` runs hooks stands for itself. A wrapper whose own `step` runs none (it has not called
    `Optimizer.__init__`, or is no `Optimizer`) stands for those that its attributes hold; a list or mapping for those
    in it.

    Raises:
        ValueError: there is none.
    """
    members = list(_members(optimizer, DEPTH, set()))
    if not members:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} holds no torch.optim.Optimizer whose step() can be watched: pass the"
            " one that updates the weights, or a list of them"
        )
    return members


def is_nested(optimizer: Optimizer) -> bool:
    """Tell whether the `step()` that runs hooks now was called by another one of the same optimizer.

    A subclass may call its parent's. Torch lets that one run the hooks too if anybody has made an optimizer of the
    parent class before.
    """
    return _depth(optimizer, most=2) == 2


def is_stepping(optimizer: Optimizer) -> bool:
    """Tell whether this thread is within the `step()` of an optimizer: one that has raised is over."""
    return _depth(optimizer, most=1) == 1


def _depth(optimizer: Optimizer, most: int) -> int:
    """How many steps of an optimizer this thread is within, counted up to `most`."""
    frame, steps = sys._getframe(), 0
    while frame.f_back is not None and steps < most:
        frame = frame.f_back
        steps += frame.f_code is _STEP and frame.f_locals.get("self") is optimizer
    return steps


def _members(optimizer: Any, depth: int, seen: set[int]) -> Iterator[list[Optimizer]]:
    if depth == 0 or id(optimizer) in seen:
        return
    seen.add(id(optimizer))
    if _runs_hooks(optimizer):
        inner = [each for part in _parts(optimizer) for group in _members(part, depth - 1, seen) for each in group]
        yield [optimizer, *inner]
        return
    for part in _parts(optimizer):
        yield from _members(part, depth - 1, seen)


def _runs_hooks(optimizer: Any) -> bool:
    return (
        isinstance(optimizer, Optimizer)
        and "_optimizer_step_pre_hooks" in vars(optimizer)
        and bool(getattr(type(optimizer).step, "hooked", False))
    )


def _parts(holder: Any) -> Iterator[Any]:
    if isinstance(holder, Mapping):
        yield from holder.values()
    elif isinstance(holder, list | tuple):
        yield from holder
    else:
        for value in list(getattr(holder, "__dict__", {}).values()):
            if _may_hold(value):
                yield value


def _may_hold(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_steps(each) for each in value)
    if isinstance(value, dict):
        return any(_steps(each) for each in value.values())
    return _steps(value)


def _steps(value: Any) -> bool:
    kind = type(value)
    return (
        not isinstance(value, nn.Module | torch.Tensor)
        and callable(getattr(kind, "step", None))
        and callable(getattr(kind, "zero_grad", None))
    )


def parameters_in(optimizer: Optimizer) -> set[int]:
    """The ids of the parameters that an optimizer updates now."""
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
