"""Modules with a method `backward` of their own, which autograd never calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge.checking.answers import Finding, Status
from depthgauge.checking.parameters import of_a_package
from depthgauge.checking.subject import Subject


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield modules without weights that hand on what they get, or cut its gradient off, and define `backward`."""
    training = subject.training
    own = {name: module for name, module in training.model.named_modules() if _has_own(module)}
    if not own:
        return
    idle: dict[str, bool] = {}
    with training.untouched(), ExitStack() as hooks:
        for name, module in own.items():
            hooks.callback(module.register_forward_hook(_compared(idle, name)).remove)
        training.value(subject.seen.batch)
    for name in (name for name, found in idle.items() if found):
        yield Finding(
            "unused_backward", Status.BROKEN,
            f"`{name}` defines backward, which autograd never calls for a module: its gradient is that of its forward",
            "write it as a torch.autograd.Function (forward and backward static), and call its apply in forward",
            "the gradient is the one that backward returns", (name, "model"),
        )  # fmt: skip


def _has_own(module: nn.Module) -> bool:
    """Tell whether a class of the user's has a method that torch's modules lack, and the module has no weights."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    named = not scripted and callable(getattr(type(module), "backward", None))
    return named and not any(True for _ in module.parameters()) and not of_a_package(module)


def _compared(idle: dict[str, bool], name: str) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given = next((each for each in args if isinstance(each, Tensor)), None)
        if given is None or not isinstance(output, Tensor) or output.shape != given.shape or not given.requires_grad:
            return
        function = output.grad_fn is not None and isinstance(output.grad_fn, torch.autograd.function.BackwardCFunction)
        same = not output.requires_grad or torch.equal(output, given)
        idle[name] = idle.get(name, True) and same and not function

    return hook
