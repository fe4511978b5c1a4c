"""The user's batches as tensors: inputs and targets told apart, over as many batches as time and memory allow."""

from __future__ import annotations

import time
from collections.abc import Sequence
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


@dataclass(frozen=True, eq=False)
class Column:
    """One tensor of every batch.

    Attributes:
        place: where it lies in a batch: `0`, `input_ids`; empty for a batch that is one tensor.
        values: of all batches, (examples, ...).
        target: whether it is what the output is held against.
        sure: whether a term of the loss was handed these very values.
    """

    place: str
    values: Tensor
    target: bool
    sure: bool

    @property
    def continuous(self) -> bool:
        """Whether its numbers are measured ones, and no tokens, indices or flags: floating point, or bytes."""
        return self.values.is_floating_point() or self.values.dtype is torch.uint8

    @property
    def flat(self) -> Tensor:
        """(examples, numbers) in float32."""
        return self.values.reshape(len(self.values), -1).float()

    @property
    def called(self) -> str:
        """`inputs`, `targets`, or `batch["x"]`."""
        if self.place and not self.place.replace(".", "").isdecimal():
            return f"`{self.place}`"
        return "the targets" if self.target else "the inputs"


@dataclass(frozen=True, eq=False)
class Batches:
    """What the batches hold.

    Attributes:
        columns: their tensors; none where they are of a form that cannot be read.
        count: batches that were looked at.
    """

    columns: tuple[Column, ...]
    count: int

    @property
    def inputs(self) -> tuple[Column, ...]:
        """Those that are no targets."""
        return tuple(column for column in self.columns if not column.target)

    @property
    def targets(self) -> tuple[Column, ...]:
        """Those that are."""
        return tuple(column for column in self.columns if column.target)

    @property
    def examples(self) -> int:
        """How many there are of the first column."""
        return len(self.columns[0].values) if self.columns else 0


def read(subject: Subject) -> Batches:
    """Read the first batches."""
    batches = _taken(subject)
    parts = [dict(nested.tensors(batch)) for batch in batches]
    places = [place for place, tensor in parts[0].items() if tensor.dim() and not tensor.is_sparse]
    columns = [_column(place, [part.get(place) for part in parts]) for place in places]
    kept = [(place, values) for place, values in zip(places, columns, strict=True) if values is not None]
    terms = subject.seen.graph.terms
    return Batches(tuple(_told(place, values, parts[0], terms, batches[0]) for place, values in kept), len(batches))


def is_target(place: str | None, first: Tensor, terms: Sequence[Term]) -> bool:
    """Whether a term of the loss was handed these values as its targets."""
    del place
    return any(_same(first, term.targets) for term in terms)


def _taken(subject: Subject) -> list[Any]:
    start = time.perf_counter()
    few = subject.batches(5)
    each = (time.perf_counter() - start) / len(few)
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in nested.tensors(few[0]))
    count = min(subject.clock.count(each, MOST, SHARE), BYTES // max(1, size))
    return subject.batches(count) if count > len(few) else few


def _column(place: str | None, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """All batches' values; those of the first alone where the others have another shape."""
    del place
    first = tensors[0]
    assert first is not None
    alike = [each for each in tensors if each is not None and each.shape[1:] == first.shape[1:] and each.dim()]
    return torch.cat([each.detach().cpu() for each in alike]) if not first.is_complex() else None


def _told(place: str | None, values: Tensor, first: dict[str | None, Tensor], terms: Sequence[Term], batch: Any) -> Column:
    name = place or ""
    sure = is_target(place, first[place], terms)
    pair = isinstance(batch, list | tuple) and len(batch) == 2 and name == "1"
    another = any(is_target(key, tensor, terms) for key, tensor in first.items() if key != place)
    guessed = name.rpartition(".")[2].lower() in TARGETS or (pair and not another)
    alone = len(first) == 1  # an autoencoder's targets are its inputs
    return Column(name, values, (sure or guessed) and not alone, sure and not alone)


def _same(tensor: Tensor, targets: Tensor) -> bool:
    flat = tensor.detach().reshape(-1)
    if len(flat) != len(targets):
        return False
    return torch.equal(flat.to(targets.device, torch.float64), targets.double())
