"""Examples that reading or the loss writes to where they are stored, so that changes add up from epoch to epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.subject import Subject
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

FEWEST = 8  # examples of a data set, of which one reading changes one
BYTES = 64 << 20  # of stored examples that are copied to be compared
READINGS = 3  # the first may fill a cache

KINDS = {
    "written_over": Kind(
        "fault",
        "reading an example of the data set changes it where it is stored, each time again; or the loss changes a"
        " batch in place, each time again, and the next epoch gets the changed one",
    ),
}
_WHAT = "whether the loss writes over stored examples"


def findings(subject: Subject) -> Iterator[Finding]:
    """Yield what writes over stored examples."""
    training = subject.training
    with random_states_kept():
        reads = _reading_changes(innermost(training.batches))
    if reads:
        yield _told("reading an example changes it in the data set itself", "__getitem__", ("batches",))
    elif training.writes and subject.fits(0, _WHAT, loads=2, copies=0) and _loss_changes(training):
        yield _told(
            "the loss changes its batch in place, and the next epoch gets it so", "the loss", ("batches", "loss")
        )


def _told(what: str, where: str, places: tuple[str, ...]) -> Finding:
    return Finding(
        "written_over", Status.BROKEN, f"{what}: what it does adds up from epoch to epoch",
        f"let {where} work on a copy (x = x.clone()), or without in-place operations (x = x + noise, not x += noise)",
        "every epoch gets the examples as they were stored", places,
    )  # fmt: skip


# -- a data set that writes --------------------------------------------------------------------------------------------


def innermost(batches: Any) -> Any:
    """The innermost data set of a loader; None where it is none that is read by number."""
    found = getattr(batches, "dataset", None)
    while (inner := getattr(found, "dataset", None)) is not None:
        found = inner
    return found if hasattr(found, "__getitem__") and hasattr(found, "__len__") else None


def _reading_changes(dataset: Any) -> bool:
    """Tell whether each reading of one example changes the numbers of one stored example, and puts them back."""
    stored = examples(dataset)
    if not stored:
        return False
    begun = [each.clone() for each in stored]
    changed = []
    try:
        for _ in range(READINGS):
            before = [each.clone() for each in stored]
            dataset[len(dataset) // 2]
            changed.append([_one_row(old, new) for old, new in zip(before, stored, strict=True)])
    except Exception:  # noqa: BLE001 - the user's code, which may not be read out of turn
        return False
    finally:
        for old, new in zip(begun, stored, strict=True):
            if not torch.equal(old, new):
                new.copy_(old)
    return any(all(each) for each in zip(*changed[1:], strict=True))


def _one_row(before: Tensor, after: Tensor) -> bool:
    """Tell whether one example has other numbers and all others the same."""
    return int((before != after).flatten(1).any(1).sum()) == 1


def examples(dataset: Any) -> list[Tensor]:
    """The tensors and arrays of a data set that hold some numbers for each of its examples; none of large ones."""
    if dataset is None or isinstance(dataset, Mapping) or not hasattr(dataset, "__dict__"):
        return []
    try:
        count = len(dataset)
    except TypeError:
        return []
    found, size = [], 0
    for value in vars(dataset).values():
        for each in value if isinstance(value, tuple) else (value,):
            tensor = torch.from_numpy(each) if isinstance(each, np.ndarray) and _is_plain(each) else each
            if isinstance(tensor, Tensor) and tensor.dim() > 1 and len(tensor) == count >= FEWEST:
                size += tensor.numel() * tensor.element_size()
                found.append(tensor.detach())
    return found if size <= BYTES else []


def _is_plain(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "fiu" and array.flags.writeable and min(array.strides, default=0) >= 0


# -- a loss that writes ------------------------------------------------------------------------------------------------


def _loss_changes(training: Training) -> bool:
    """Tell whether the loss changes a batch that the next epoch gets again, each time that it is called."""
    if training.loss is None or not _kept(training):
        return False
    batch = nested.mapped(training.first()[0], lambda each: each.clone())
    changed = []
    with training.untouched():
        for _ in range(READINGS):
            before = [each.clone() for _, each in nested.tensors(batch)]
            training.loss(training.model, batch)
            after = [each for _, each in nested.tensors(batch)]
            pairs = zip(before, after, strict=True)
            changed.append([a.is_floating_point() and not torch.equal(a, b) for a, b in pairs])
    return any(all(each) for each in zip(*changed, strict=True))


def _kept(training: Training) -> bool:
    """Tell whether two rounds over the batches hand out the same memory."""
    if isinstance(training.batches, Iterator):
        return False
    with random_states_kept():
        try:
            one, other = (next(iter(training.batches)) for _ in range(2))
        except Exception:  # noqa: BLE001 - a loader of the user's own
            return False
    pairs = zip(nested.tensors(one), nested.tensors(other), strict=False)
    return any(a.numel() and a.data_ptr() == b.data_ptr() for (_, a), (_, b) in pairs)
