"""A part of the first batch that the model keeps, and takes for that of all that follow: a cache for one graph.

With what the first pass has left in attributes taken out again, a part of the second batch makes a difference to its
loss; with the first batch's left there, none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested, seeding
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.data.seeing import EQUAL, changed
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import listed
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose

MOVES = 1e-4  # of the loss: far above rounding
PARTS = 6  # of a batch, that are shuffled
PASSES = 3 * PARTS + 3
_NAMES = ("edge_index", "edge_weight", "edge_attr", "x")  # of torch_geometric's batches

KINDS = {
    "first_kept": Kind(
        "fault",
        "the first pass leaves tensors in attributes that were empty, and with these in place the numbers of a part of"
        f" the next batch may be shuffled without a change of its loss (below {EQUAL:g}); with them taken out it"
        f" changes by {MOVES:g} of it or more",
    ),
}


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield the finding where a model looks at a part of its first batch alone."""
    filled, batches = subject.seen.filled, subject.batches(2) if subject.seen.filled else []
    if len(batches) < 2 or not subject.fits(PASSES, "what a model keeps of its first batch"):
        return
    first, second = batches
    with attributes_kept(subject.training), subject.training.untouched():
        alone, after = _loss(subject, second), _loss(subject, second, first)
        if abs(after - alone) <= MOVES * abs(alone):
            return
        place = next((each for each in _places(second)[:PARTS] if _unseen(subject, first, second, each)), None)
    if place is None:
        return
    told = listed(f"{each.place}.{each.name}" for each in filled)
    what = f"`{place}`" if not place.replace(".", "").isdecimal() else f"part {place} of a batch"
    yield Finding(
        "first_kept", Status.BROKEN,
        f"{what} makes no difference to the loss once the model has seen another batch, and does to one that has not:"
        f" it goes on with what it has kept of the first ({told})",
        "keep nothing where batches differ (cached=False), or compute it anew for each batch",
        "every batch is looked at itself", tuple(dict.fromkeys((*(each.place for each in filled), "model"))),
        Measure("change of the second batch's loss by the first", abs(after - alone) / (abs(alone) or 1.0)),
    )  # fmt: skip


def _unseen(subject: Subject, first: Any, second: Any, place: str) -> bool:
    """Tell whether shuffling a part of the second batch changes its loss, and not after the first."""
    with suppress(Exception):  # the user's code may raise anything of it
        other = _shuffled(second, place)
        values = [(_loss(subject, second, *one), _loss(subject, other, *one)) for one in ((first,), ())]
        (after, after_other), (alone, alone_other) = values
        same = abs(after_other - after) <= EQUAL * abs(after)
        return same and abs(alone_other - alone) > MOVES * abs(alone)
    return False


def _loss(subject: Subject, batch: Any, *before: Any) -> float:
    """The loss of a batch, with nothing in the attributes but what other batches leave there."""
    for each in subject.seen.filled:
        each.empty()
    value = torch.zeros(())
    for one in (*before, batch):
        with random_states_kept(), attributes_kept(subject.training, draws=True):
            value = subject.training.value(one)
    return value.item()


def _places(batch: Any) -> list[str]:
    """Parts of a batch that are tensors."""
    named = [place or "" for place, tensor in nested.tensors(batch) if tensor.numel() > 1]
    return named or [name for name in _NAMES if isinstance(getattr(batch, name, None), Tensor)]


def _shuffled(batch: Any, place: str) -> Any:
    """The batch with one part's numbers in another order."""
    if any(True for _ in nested.tensors(batch)):
        return changed(batch, {place or None}, _mixed)
    other = copy.copy(batch)
    setattr(other, place, _mixed(getattr(batch, place)))
    return other


def _mixed(tensor: Tensor) -> Tensor:
    order = torch.randperm(tensor.numel(), generator=seeding.generator(0, Purpose.SAMPLE))
    return tensor.reshape(-1)[order.to(tensor.device)].reshape(tensor.shape)
