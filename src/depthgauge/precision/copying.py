"""Deep copies of any structure with other tensors in it, and the tensors that count among its members."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from depthgauge import nested


class _Copying(TorchFunctionMode):
    """Makes `copy.deepcopy` take a function of a tensor for its copy; torch's own refuses what has a gradient."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.found: list[Tensor] = []
        self._function = function

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.take(tensor)

    def of(self, tensor: Tensor) -> Tensor:
        """The function's result."""
        self.found.append(self._function(tensor))
        return self.found[-1]


class _Memo(dict[int, object]):
    """What `copy.deepcopy` has copied; parameters, which copy themselves past any mode, are handled as it asks."""

    def __init__(self, mode: _Copying, kept: Mapping[int, object]) -> None:
        super().__init__()
        self._mode = mode
        self._kept = kept

    def take(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor, made once."""
        if id(tensor) not in self:
            self[id(tensor)] = self._mode.of(tensor)
        copy_of: Any = self[id(tensor)]
        return copy_of  # type: ignore[no-any-return]  # it is a tensor's

    def get(self, key: int, default: Any = None) -> Any:
        """As deepcopy asks for everything that it meets."""
        if key in self:
            return self[key]
        kept = self._kept.get(key, default)
        return self.take(kept) if isinstance(kept, Tensor) else kept


def copied(value: Any, function: Callable[[Tensor], Tensor], kept: Mapping[int, object]) -> tuple[Any, list[Tensor]]:
    """A deep copy of any structure with a function of each of its tensors in that tensor's place.

    Args:
        value: tuples, mappings, dataclasses, other objects; what cannot be copied stays what it is.
        function: called once a tensor; places that hold one tensor hold one result.
        kept: ids -> modules, which are not copied, and their parameters, which are.

    Returns:
        The copy, and the function's results in the order of the places.
    """
    mode = _Copying(function)
    memo = _Memo(mode, kept)

    def copy_of(part: Any) -> Any:
        try:
            with mode:
                return copy.deepcopy(part, memo)
        except Exception:  # noqa: BLE001 - an object may refuse by any exception
            if isinstance(part, list) or type(part) is tuple:
                return type(part)(copy_of(each) for each in part)
            if type(part) is dict:
                return {key: copy_of(each) for key, each in part.items()}
            return part

    return copy_of(value), mode.found


def items(arguments: Any) -> dict[Any, Any]:
    """Arguments by position or name."""
    args, kwargs = arguments
    return {**dict(enumerate(args)), **kwargs}


def placed(value: Any) -> dict[str, Tensor]:
    """The tensors in tuples, lists, mappings and dataclasses by place, each once; of any object where there are none.

    An object beside tensors, such as a cache of keys, holds a module's state, and is none of its inputs or outputs.
    """
    found = {id(tensor): (place or "", tensor) for place, tensor in reversed(list(nested.tensors(value)))}
    if found:
        return dict(reversed(found.values()))
    inside = copied(value, lambda tensor: tensor, {})[1]
    return {str(number): tensor for number, tensor in enumerate(inside)}
