"""Bytes of the tensors that are alive, counted as operations make them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counter of what the operations within its block make, and of what is left of it.

    Attributes:
        now: bytes of the tensors that were made and are held by something.
        peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it makes."""
        result = func(*args, **(kwargs or {}))
        given = {id(storage) for storage in storages((args, kwargs))}
        for storage in storages(result):
            if id(storage) not in given and id(storage) not in self._sizes:
                self._sizes[id(storage)] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, id(storage))
        return result

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


def storages(value: Any) -> list[Any]:
    """List the memory of a value's tensors, of a sparse one that of its parts; what several share comes as often."""
    dense = [part for each in tree_leaves(value) if isinstance(each, Tensor) for part in _parts(each)]
    return [each.untyped_storage() for each in dense]


def _parts(tensor: Tensor) -> list[Tensor]:
    """The dense tensors that a sparse one is made of, or itself."""
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]  # those of a tensor that is not coalesced, too
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return [tensor] if tensor.layout is torch.strided else []
