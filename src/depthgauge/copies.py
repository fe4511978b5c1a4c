"""Copies of modules that hold what they have computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Module = TypeVar("_Module", bound=nn.Module)


class _Detaching(TorchFunctionMode):
    """Has `copy.deepcopy` copy a tensor's numbers where torch's own refuses to, as it has been computed."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copied(module: _Module, *, own_tensors: bool = True) -> _Module:
    """A deep copy of a module; tensors that it has computed and kept, wherever it holds them, lose their graph.

    Args:
        module: it stays as it is.
        own_tensors: whether parameters and buffers are copied, too; else the copy holds the module's own.

    Raises:
        Exception: what else the module holds cannot be copied.
    """
    shared = [] if own_tensors else [*module.parameters(), *module.buffers()]
    with _Detaching():
        return copy.deepcopy(module, {id(each): each for each in shared})
