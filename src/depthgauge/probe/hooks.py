"""What a probe hangs on others' objects: nothing of it survives in a copy, and no torch warning speaks of it."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from depthgauge.probe.tensors import is_uninitialized


class Hook:
    """A function that is a no-op in copies and pickles of whatever holds it, also where depthgauge is not installed."""

    __slots__ = ("_function",)
    __torch_unserializable__ = True  # torch.save leaves it out without a warning

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        """Call the function."""
        self._function(*arguments)

    def __copy__(self) -> Callable[..., None]:
        return _nothing

    def __deepcopy__(self, _memo: object) -> Callable[..., None]:
        return _nothing

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything, does nothing, and every Python has it


_nothing: Callable[..., None] = contextlib.nullcontext().__exit__


def on_every_module(after: Callable[..., None], before: Callable[..., None] | None, undo: ExitStack) -> None:
    """Have functions called with every module that runs: `after(module, inputs, output)`, `before(module, inputs)`.

    These are torch's global hooks. Hooks of the modules themselves would be copied and saved with a model. Where
    `torch.compile` traces the functions, they must return at once (`torch.compiler.is_dynamo_compiling`).
    """
    modules = torch.nn.modules.module
    undo.callback(modules.register_module_forward_hook(after).remove)
    if before is not None:
        undo.callback(modules.register_module_forward_pre_hook(before).remove)
    _silence_torch(undo)


def _silence_torch(undo: ExitStack) -> None:
    """Every call of a module from torch.compile would warn of global hooks; where warnings are errors, it would end."""
    filters: Any = warnings.filters  # a list, although typed as a sequence
    before = list(filters)
    warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
    ours = filters[0]
    if ours not in before:
        undo.callback(lambda: filters.remove(ours) if ours in filters else None)


class Watch:
    """A hook on the gradient of a tensor that no operation made; removed, the tensor is as it was."""

    def __init__(self, leaf: torch.Tensor, function: Callable[[Any], None]) -> None:
        watched: Any = leaf
        self._leaf = weakref.ref(watched)
        self._before = watched._backward_hooks
        self._handle = watched.register_hook(Hook(function))

    def remove(self) -> None:
        """Also the empty dictionary that torch would leave behind."""
        self._handle.remove()
        leaf = self._leaf()
        if leaf is not None and self._before is None and not leaf._backward_hooks:
            leaf._backward_hooks = None  # what torch starts with


def watch_gradient(parameter: torch.Tensor, function: Callable[[Any], None], undo: ExitStack) -> None:
    """Have a function called with a parameter whenever a backward pass has added to its gradient."""
    watched: Any = parameter
    before = watched._post_accumulate_grad_hooks
    handle = watched.register_post_accumulate_grad_hook(Hook(function))

    def remove() -> None:
        """Also the empty dictionary that torch would leave behind."""
        handle.remove()
        if before is None and not watched._post_accumulate_grad_hooks:
            watched._post_accumulate_grad_hooks = None  # what torch starts with

    undo.callback(remove)


def watch_first(parameters: Sequence[torch.Tensor] | None, function: Callable[[Any], None], undo: ExitStack) -> None:
    """Have a function called when a backward pass reaches parameters: the one that the first pass reaches first."""
    ready = [each for each in parameters or () if each.requires_grad and not is_uninitialized(each)]
    watches: dict[int, Watch] = {}

    def reached(key: int, gradient: Any) -> None:
        for other in [each for each in watches if each != key]:
            watches.pop(other).remove()
        function(gradient)

    for each in {id(each): each for each in ready}.values():
        watches[id(each)] = Watch(each, partial(reached, id(each)))

    def remove() -> None:
        for watch in watches.values():
            watch.remove()

    undo.callback(remove)
