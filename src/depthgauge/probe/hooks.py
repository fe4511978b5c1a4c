"""Hooks of a probe on others' objects: none survives in a copy, and no torch warning speaks of one."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch

from depthgauge.probe.tensors import is_uninitialized

_KEY = "depthgauge.probe.paused"
pauses: list[None] = []  # of all threads, as a look at the thread's own costs more
_tls: Any = torch._C  # what lies there follows a backward pass to the threads of its devices


@contextmanager
def paused() -> Iterator[None]:
    """Have nothing recorded of what this thread runs within the block, in whichever `track` blocks it lies."""
    outer = _tls._is_key_in_tls(_KEY)
    pauses.append(None)
    if not outer:
        _tls._stash_obj_in_tls(_KEY, True)
    try:
        yield
    finally:
        pauses.pop()
        if not outer:
            _tls._remove_obj_from_tls(_KEY)


def is_paused() -> bool:
    """Tell whether what runs now is recorded by no block."""
    return bool(pauses) and _tls._is_key_in_tls(_KEY)


class Hook:
    """A function that is a no-op in copies and pickles of whatever holds it, also where depthgauge is not installed."""

    __slots__ = ("_function",)
    __torch_unserializable__ = True  # torch.save leaves it out without a warning

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> None:
        """Call the function, outside of a pause."""
        if not is_paused():
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


_blocks = itertools.count()


def _silence_torch(undo: ExitStack) -> None:
    """Every call of a module from torch.compile would warn of global hooks; where warnings are errors, it would end."""
    filters: Any = warnings.filters  # a list, although typed as a sequence
    number = next(_blocks)  # in a comment of the pattern: Python takes equal filters for one, and blocks may overlap
    warnings.filterwarnings(
        "ignore", message=rf"Using `torch\.compile\(module\)` when there are global hooks(?#{number})"
    )
    ours = filters[0]
    undo.callback(lambda: filters.remove(ours) if ours in filters else None)


# The dictionaries that torch makes for hooks of a tensor stay, empty: to take one away frees what the backward pass of
# another thread may be running.


def watch_gradient(parameter: torch.Tensor, function: Callable[[Any], None], undo: ExitStack) -> None:
    """Have a function called with a parameter whenever a backward pass has added to its gradient."""
    watched: Any = parameter
    undo.callback(watched.register_post_accumulate_grad_hook(Hook(function)).remove)


def watch_first(parameters: Sequence[torch.Tensor] | None, function: Callable[[Any], None], undo: ExitStack) -> None:
    """Have a function called when a backward pass reaches parameters: the one that the first pass reaches first."""
    differentiable = [each for each in parameters or () if each.requires_grad and not is_uninitialized(each)]
    handles: dict[int, Any] = {}

    def keep(*chosen: int) -> None:
        for key in [key for key in handles if key not in chosen]:
            handles.pop(key).remove()

    def reached(key: int, gradient: Any) -> None:
        keep(key)
        function(gradient)

    undo.callback(keep)
    for key, each in {id(each): each for each in differentiable}.items():
        register: Any = each.register_hook
        handles[key] = register(Hook(partial(reached, key)))
