"""Shards of a batch, one a rank, and the batches of a training that a comparison takes.

shards({"x": x, "y": y}, 2)       # each tensor split along dimension 0, as torch.tensor_split does
chosen(training, 2)               # the first two batches, and the first of every other size
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from depthgauge import nested
from depthgauge.foreign import describe_error
from depthgauge.parallel.naming import ParallelError
from depthgauge.workload import Training

LOOKED, LOOKING = 1000, 10.0  # batches looked at for their size, and seconds, where looking loads them
LISTED = 100_000  # where it does not
FURTHER = 3  # batches of other sizes that are compared

Split = Callable[[Any, int], Sequence[Any]]
"""`split(batch, parts)`: a batch in so many parts."""


def examples(batch: Any) -> int:
    """The number of examples of a batch: the first dimension that its tensors share; of graphs, their number.

    A tensor whose first dimension is 1 belongs to all examples, as one without dimensions does.

    Raises:
        ParallelError: its tensors share none.
    """
    if _of_graphs(batch):
        return int(batch.num_graphs)
    lengths = {tensor.shape[0] for tensor in tensors(batch) if tensor.dim()}
    if not lengths:
        raise ParallelError(
            f"a batch of type {type(batch).__name__} holds no tensor that could be split along dimension 0: give"
            " same(..., split=split), a function split(batch, parts)"
        )
    if len(lengths) > 1:
        lengths -= {1}
    if len(lengths) > 1:
        found = ", ".join(map(str, sorted(lengths)))
        raise ParallelError(
            f"the tensors of a batch have the first dimensions {found}, so that dimension 0 is not that of the"
            " examples: give same(..., split=split), a function split(batch, parts)"
        )
    return lengths.pop()


def shards(batch: Any, parts: int) -> list[Any]:
    """A batch in so many parts, along dimension 0 of every tensor; the first parts are longer where it is uneven.

    Lists without tensors, tuples of texts and arrays of NumPy that are as long as the batch are split likewise; graphs
    of PyTorch Geometric by graph, None for a part without one; all else is in every part.

    Raises:
        ParallelError: as `examples`.
    """
    length = examples(batch)
    edges = [part * (length // parts) + min(part, length % parts) for part in range(parts + 1)]
    if _of_graphs(batch):
        graphs = batch.to_data_list()
        spans = itertools.pairwise(edges)
        return [type(batch).from_data_list(graphs[start:stop]) if start < stop else None for start, stop in spans]
    return [taken(batch, slice(start, stop), length) for start, stop in itertools.pairwise(edges)]


def permuted(batch: Any, order: Tensor) -> Any:
    """The same examples in another order."""
    if _of_graphs(batch):
        graphs = batch.to_data_list()
        return type(batch).from_data_list([graphs[place] for place in order.tolist()])
    return taken(batch, order, len(order))


def taken(batch: Any, which: slice | Tensor, length: int) -> Any:
    """Some examples of a batch of that length."""

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            if not value.dim() or value.shape[0] != length:
                return value
            if value.layout is not torch.strided:
                return value.index_select(0, torch.arange(length, device=value.device)[which])
            return value[which if isinstance(which, slice) else which.to(value.device)]
        if np.shape(value)[:1] != (length,) if isinstance(value, np.ndarray) else len(value) != length:
            return value
        if isinstance(which, slice):
            return value[which]
        return value[which.numpy()] if isinstance(value, np.ndarray) else type(value)(value[i] for i in which.tolist())

    return _mapped(batch, take)


def changed(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same batch with every tensor changed."""
    if _of_graphs(batch):
        return batch.clone().apply(change)
    return _mapped(batch, lambda value: change(value) if isinstance(value, Tensor) else value)


def tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch."""
    for _, tensor in nested.tensors(batch):
        yield tensor


def _of_graphs(batch: Any) -> bool:
    return all(hasattr(batch, name) for name in ("to_data_list", "from_data_list", "num_graphs"))


def _of_rows(value: Any) -> bool:
    """Tell whether it is a list without tensors, or a tuple of texts, such as a DataLoader makes of them."""
    if type(value) is tuple:
        return bool(value) and all(isinstance(item, str | bytes) for item in value)
    return isinstance(value, list) and not any(True for _ in nested.tensors(value))


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure with a function applied to every tensor or array, and to every list that holds none."""
    if isinstance(value, Tensor | np.ndarray) or _of_rows(value):
        return function(value)
    if isinstance(value, Mapping):
        again = copy(value) if isinstance(value, dict | UserDict) else dict(value)
        for key, item in value.items():
            again[key] = _mapped(item, function)
        return again
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, function) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, function) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: _mapped(getattr(value, name), function) for name in names})
    return value


# -- which batches -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """A batch that is compared.

    Attributes:
        place: in the order of the loader, from 0.
        examples: its number of examples.
        batch: what the loader gave.
        last: whether it is known to be the loader's last.
    """

    place: int
    examples: int
    batch: Any
    last: bool = False

    def __str__(self) -> str:
        """`the last batch (7 examples)`."""
        name = f"batch {self.place + 1}" if self.place else "the first batch"
        if self.last and self.place:
            name = "the last batch"
        return f"{name} ({self.examples} example{'s' if self.examples != 1 else ''})"


def chosen(training: Training, count: int, size: Callable[[Any], int] = examples) -> tuple[list[Chosen], int]:
    """The first batches of a training, and the first of every other size; and how many were looked at.

    Of a list, and of a DataLoader's batch sampler, all are looked at; of another iterable, or an iterator, which is
    consumed, the first 1,000, or those of 10 seconds.

    Raises:
        ParallelError: a batch cannot be split, or not be read.
    """
    number = _length(training.batches)
    found = [Chosen(i, size(batch), batch, i + 1 == number) for i, batch in enumerate(training.first(count))]
    sizes = {each.examples for each in found}
    looked, most = len(found), len(found) + FURTHER
    try:
        for place, length, load in _further(training.batches, size, len(found)):
            looked = max(looked, place + 1)
            if length not in sizes and len(found) < most:
                sizes.add(length)
                found.append(Chosen(place, length, load(), place + 1 == number))
    except ParallelError:
        raise
    except Exception as error:
        raise ParallelError(f"its batches cannot be read: {describe_error(error)}") from error
    return found, looked


def _length(batches: Any) -> int | None:
    try:
        return len(batches)
    except (TypeError, NotImplementedError):
        return None


def _further(batches: Any, size: Callable[[Any], int], taken: int) -> Iterator[tuple[int, int, Callable[[], Any]]]:
    """(place, examples, how to load it) of each batch; of an iterator, of those after the ones that were taken."""
    sampled = isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset)
    if sampled and batches.batch_sampler is not None:
        for place, indices in enumerate(itertools.islice(batches.batch_sampler, LISTED)):
            listed = list(indices)
            yield place, len(listed), lambda listed=listed: _collated(batches, listed)  # type: ignore[misc] # mypy: no default
        return
    in_memory, until = isinstance(batches, Sequence), time.monotonic() + LOOKING
    first = taken if isinstance(batches, Iterator) else 0
    for place, batch in enumerate(itertools.islice(batches, LISTED if in_memory else LOOKED), first):
        yield place, size(batch), lambda batch=batch: batch  # type: ignore[misc] # mypy: as above
        if not in_memory and time.monotonic() > until:
            return


def _collated(loader: DataLoader[Any], indices: list[Any]) -> Any:
    several = getattr(loader.dataset, "__getitems__", None)
    rows = several(indices) if several else [loader.dataset[index] for index in indices]
    return loader.collate_fn(rows)


def cloned(tensor: Tensor) -> Tensor:
    """A copy that shares nothing; a step may change it in place."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def doubled(tensor: Tensor) -> Tensor:
    """The same in float64, or complex128, where its numbers are rounded."""
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor
