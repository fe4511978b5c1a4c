"""Padding that the model reads: whether outputs of short sequences depend on how long the longest beside them is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.reproducibility import mixing
from depthgauge.checking.questions.reproducibility.calls import Event
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent

BATCHES = 8  # whose lengths are looked at
FEWEST = 4  # short sequences
READ = 0.5  # of the outputs' deviation over examples, by which they move with the padding alone

KINDS = {
    "padding_read": Kind(
        "fault",
        "batches are padded to lengths of their own, and in eval mode outputs of the shorter half of the sequences move"
        f" by {percent(READ)} or more of what tells examples apart where places are cut off that are padding in each of"
        " them: what a sequence is told to be depends on the longest beside it",
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Cut:
    """The shorter half of the sequences, and where they end.

    Attributes:
        rows: which of the batch's.
        places: that they have in the batch.
        kept: places up to the end of the longest of them.
        real: (rows, kept), true where a sequence is.
    """

    rows: Tensor
    places: int
    kept: int
    real: Tensor

    def apply(self, batch: Any, *, whole: bool) -> Any:
        """These rows of a batch, with all places or with those that are kept."""

        def cut(tensor: Tensor) -> Tensor:
            taken = tensor[self.rows.to(tensor.device)]
            has_places = taken.dim() > 1 and taken.shape[1] == self.places
            return taken if whole or not has_places else taken[:, : self.kept]

        return nested.mapped(batch, cut)


def findings(subject: Subject, place: str | None, padding: Tensor) -> Iterator[Finding]:
    """Yield the finding where outputs move with padding.

    Args:
        subject: of the check.
        place: of a tensor that the model is given.
        padding: (examples, places) of it in the first batch, true where there is none of the sequence.
    """
    training, batch = subject.training, subject.seen.batch
    cut = _cut(padding)
    if cut is None or nested.rows(batch) != len(padding) or not _varies(subject, place):
        return
    if isinstance(training.model, torch.jit.ScriptModule):  # whose calls cannot be hooked
        return
    try:
        one, other = (mixing.outputs(training, cut.apply(batch, whole=whole)) for whole in (True, False))
    except Exception:  # noqa: BLE001 - the user's code may ask for as many places, or name their number elsewhere
        return
    moved = next((each for a, b in _pairs(one, other) if math.isfinite(each := _moved(a, b, cut))), math.nan)
    if moved >= READ:
        yield Finding(
            "padding_read", Status.LOOK,
            f"outputs of {len(cut.real)} sequences move by {percent(moved)} of what tells them apart when"
            f" {cut.places - cut.kept} places of padding behind each of them are cut off: the model reads padding, and"
            " what it says of a sequence depends on the longest in its batch",
            "pack the sequences (pack_padded_sequence), or mask padding out of attention and averages",
            "a sequence's output is its own", ("batches", "model"),
            Measure("change of outputs with padding over their deviation", moved, method="eval mode, first batch"),
        )  # fmt: skip


def _cut(padding: Tensor) -> _Cut | None:
    """Where the shorter half of the sequences ends; None where padding stands first, or nothing could be cut."""
    if padding[:, 0].any():
        return None
    lengths, places = (~padding).sum(1), padding.shape[1]
    kept = int(lengths.median())
    rows = (lengths <= kept).nonzero()[:, 0]
    if len(rows) < FEWEST or kept >= places:
        return None
    return _Cut(rows, places, kept, ~padding[rows, :kept])


def _varies(subject: Subject, place: str | None) -> bool:
    """Tell whether batches are of several lengths."""
    widths = {
        tensor.shape[1]
        for batch in subject.batches(BATCHES)
        for name, tensor in nested.tensors(batch)
        if name == place and tensor.dim() > 1
    }
    return len(widths) > 1


def _pairs(one: list[Event], other: list[Event]) -> Iterator[tuple[Tensor, Tensor]]:
    """What the loss got of the model, the last call first."""
    if len(one) == len(other):
        for a, b in reversed([*zip(one, other, strict=True)]):
            if a.edge == b.edge == "out" and a.outermost:
                yield from ((x, y) for (_, x), (_, y) in zip(a.read, b.read, strict=False))


def _moved(one: Tensor, other: Tensor, cut: _Cut) -> float:
    """Root mean square of the change over the deviation over examples; NaN of what has no such places."""
    if not one.is_floating_point() or one.dim() < 2 or len(one) != len(cut.real) or len(other) != len(one):
        return math.nan
    if one.shape != other.shape:
        if one.shape[1] != cut.places or other.shape[1] != cut.kept or one.shape[2:] != other.shape[2:]:
            return math.nan
        real = cut.real.to(one.device)
        one, other = one[:, : cut.kept][real], other[real]
    deviation = (one - one.mean(0)).double().square().mean().sqrt().item()
    change = (one.double() - other.double()).square().mean().sqrt().item()
    return change / deviation if deviation > 0 else math.nan
