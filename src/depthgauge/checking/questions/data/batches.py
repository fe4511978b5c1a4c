"""The user's batches as tensors: inputs and targets told apart, over as many batches as time and memory allow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.subject import Subject
from depthgauge.checking.terms import Term

MOST = 64  # batches that are looked at
BYTES = 256 << 20  # that they may take in memory
SHARE = 0.15  # of the question's time, for reading them
TARGETS = frozenset({"label", "labels", "target", "targets", "y"})  # names in a mapping


def flags(tensor: Tensor) -> bool:
    """Tell whether a tensor holds nothing but 0 and 1."""
    return bool(((tensor == 0) | (tensor == 1)).all())


def binary(tensor: Tensor) -> bool:
    """Tell whether a tensor holds 0 and 1, both, and nothing else."""
    return tensor.numel() > 1 and flags(tensor) and bool((tensor != tensor.reshape(-1)[0]).any())


@dataclass(frozen=True, eq=False)
class Column:
    """One tensor of every batch.

    Attributes:
        place: where it lies in a batch: `0`, `input_ids`; empty for a batch that is one tensor.
        numbers: of all batches, (examples, ...).
        target: whether it is what the output is held against.
        sure: whether a term of the loss was handed these very values.
    """

    place: str
    numbers: Tensor
    target: bool
    sure: bool

    @property
    def continuous(self) -> bool:
        """Tell whether its numbers are measured ones, and no tokens, indices or flags: floating point, or bytes."""
        return self.numbers.is_floating_point() or self.numbers.dtype is torch.uint8

    @property
    def flat(self) -> Tensor:
        """(examples, numbers) in float32."""
        return self.numbers.reshape(len(self.numbers), -1).float()

    @property
    def called(self) -> str:
        """`inputs`, `targets`, or `batch["x"]`."""
        if self.place and not self.place.replace(".", "").isdecimal():
            return f"`{self.place}`"
        return "the targets" if self.target else "the inputs"


@dataclass(frozen=True, eq=False)
class Batches:
    """Contents of the batches.

    Attributes:
        columns: their tensors; none where they are of a form that cannot be read.
        count: batches that were looked at.
        sizes: examples in each, by its first tensor.
    """

    columns: tuple[Column, ...]
    count: int
    sizes: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[Column, ...]:
        """Columns that are no targets."""
        return tuple(column for column in self.columns if not column.target)

    @property
    def targets(self) -> tuple[Column, ...]:
        """Columns that are targets."""
        return tuple(column for column in self.columns if column.target)

    @property
    def examples(self) -> int:
        """Number of examples in the first column."""
        return len(self.columns[0].numbers) if self.columns else 0


def read(subject: Subject) -> Batches:
    """Read the first batches."""
    batches = _taken(subject)
    parts = [dict(nested.tensors(batch)) for batch in batches]
    places = [
        place
        for place, tensor in parts[0].items()
        if tensor.dim() and tensor.layout is torch.strided and not tensor.is_nested
    ]
    columns = [_column([part.get(place) for part in parts]) for place in places]
    kept = [(place, values) for place, values in zip(places, columns, strict=True) if values is not None]
    terms = subject.seen.graph.terms
    columns_of = tuple(_told(place, values, parts[0], terms, batches[0]) for place, values in kept)
    return Batches(columns_of, len(batches), tuple(map(nested.examples, batches)))


def targeted(place: str | None, parts: Mapping[str | None, Tensor], terms: Sequence[Term], batch: Any) -> bool:
    """Tell whether outputs are held against a tensor: a term of the loss got it, or its name or place says so."""
    if len(parts) == 1:  # an autoencoder's targets are its inputs
        return False
    given = [key for key, tensor in parts.items() if _given(tensor, terms)]
    if given:
        return place in given and len(given) < len(parts)
    pair = isinstance(batch, list | tuple) and len(batch) == 2 and place == "1"
    return pair or (place or "").rpartition(".")[2].lower() in TARGETS


def _given(tensor: Tensor, terms: Sequence[Term]) -> bool:
    """Whether a term of the loss was handed these values as its targets."""
    return any(_same(tensor, term) for term in terms)


def _taken(subject: Subject) -> list[Any]:
    few = subject.batches(5, SHARE)
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in nested.tensors(few[0]))
    count = min(MOST, BYTES // max(1, size))
    return subject.batches(count, SHARE) if count > len(few) else few


def _column(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The values of all batches that have them in the first one's shape; None of complex ones."""
    first = tensors[0]
    assert first is not None
    alike = [each for each in tensors if each is not None and each.shape[1:] == first.shape[1:] and each.dim()]
    return torch.cat([each.detach().cpu() for each in alike]) if not first.is_complex() else None


def _told(
    place: str | None, values: Tensor, parts: Mapping[str | None, Tensor], terms: Sequence[Term], batch: Any
) -> Column:
    target = targeted(place, parts, terms, batch)
    return Column(place or "", values, target, target and _given(parts[place], terms))


def _same(tensor: Tensor, term: Term) -> bool:
    """Whether a tensor holds a term's targets, of which the first are known where there are many."""
    if tensor.numel() != math.prod(term.shape):
        return False
    first = tensor.detach().reshape(-1)[: len(term.targets)]
    return torch.equal(first.to(term.targets.device, torch.float64), term.targets.double())
