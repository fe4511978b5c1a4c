"""Reading of the batches themselves: repeated, sorted by class, smaller than they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.words import percent
from depthgauge.seeding import Purpose, generator

REPEATS = 3  # equal batches in a row, from which on it is no chance
SORTED = 0.5  # of the way from a shuffled order (0) to batches of one class each (1); shuffled ones stay below 0.1,
# batches of 4 classes with 8 examples each at 0.25
PERMUTATIONS = 200  # of the labels, none of which may be as sorted
FEWEST_BATCHES, FEWEST_EXAMPLES = 4, 4  # below which an order cannot be told from chance
LABELS = ("labels", "label", "targets", "target", "y")

KINDS = {
    "same_batch": Kind("fault", f"the first {REPEATS} batches or more hold the same numbers, and they hold examples"),
    "sorted": Kind(
        "fault",
        f"consecutive batches hold one class each: their purity lies {percent(SORTED)} of the way or more from that of"
        f" the shuffled labels to 1, and none of {PERMUTATIONS} random orders is as pure",
    ),
    "small_set": Kind("property", "the data set holds no more examples than a batch"),
}


def read(batches: Sequence[Any], loader: Any) -> Iterator[Finding]:
    """Find what is wrong with the first batches.

    Args:
        batches: the first ones.
        loader: what they come from.
    """
    if repeated := _repeated(batches):
        yield repeated
    elif ordered := _sorted(batches):
        yield ordered
    examples, size = (getattr(loader, name, None) for name in ("dataset", "batch_size"))
    try:
        count = len(examples)  # type: ignore[arg-type]  # what has no length raises
    except Exception:  # noqa: BLE001 - a stranger's data set
        return
    if isinstance(size, int) and 0 < count <= size and count > 1:
        yield Finding(
            "small_set", Status.LOOK,
            f"the data set holds {count} examples, no more than a batch of {size}: every step sees all of it",
            f"set batch_size below {count} where noise of the gradient is wanted", "", ("batches",),
            Measure("examples of the data set", count, unit="examples"),
        )  # fmt: skip


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    plain = one.layout is two.layout is torch.strided and not (one.is_nested or two.is_nested)
    return torch.equal(one, two) if plain else one is two


def _repeated(batches: Sequence[Any]) -> Finding | None:
    if len(batches) < REPEATS or nested.rows(batches[0]) is None:
        return None
    for first, second in pairwise(batches):
        one, two = ([tensor for _, tensor in nested.tensors(batch)] for batch in (first, second))
        if not one or len(one) != len(two) or not all(map(_equal, one, two)):
            return None
    return Finding(
        "same_batch", Status.BROKEN,
        f"the first {len(batches)} batches are all the same: the training sees {nested.rows(batches[0])} examples"
        f" and no"
        " others",
        "make one iterator of the loader and go on with it; `next(iter(loader))` begins anew each"
        " time", "steps see other"
        " examples", ("batches",), Measure("different batches", 1, unit=f"of {len(batches)}"),
    )  # fmt: skip


def _sorted(batches: Sequence[Any]) -> Finding | None:
    return sorted_by([labels for batch in batches if (labels := labels_of(batch)) is not None])


def sorted_by(columns: Sequence[Tensor]) -> Finding | None:
    """Tell whether the class numbers (n,) of consecutive batches come in the order of the classes."""
    if len(columns) < FEWEST_BATCHES or min(map(len, columns)) < FEWEST_EXAMPLES:
        return None
    pooled, sizes = torch.cat(list(columns)), [len(each) for each in columns]
    classes, codes = torch.unique(pooled, return_inverse=True)
    if len(classes) < 2 or len(classes) > len(pooled) // 2:
        return None
    seen = _purity(codes, sizes)
    draws = generator(0, Purpose.RESAMPLES)
    others = [_purity(codes[torch.randperm(len(codes), generator=draws)], sizes) for _ in range(PERMUTATIONS)]
    mean = sum(others) / len(others)
    way = (seen - mean) / max(1 - mean, 1e-9)
    if seen <= max(others) or way < SORTED:
        return None
    return Finding(
        "sorted", Status.BROKEN,
        f"the examples come sorted by class: in {len(columns)} batches in a row {percent(seen)} of a batch's pairs are"
        f" of one"
        f" class, where a random order has {percent(mean)}",
        "shuffle the examples: DataLoader(..., shuffle=True)", "the steps no longer go from one class to the next, each"
        " undoing the last", ("batches",), Measure("purity of batches", seen, method=f"{PERMUTATIONS} permutations"),
    )  # fmt: skip


def _purity(codes: Tensor, sizes: Sequence[int]) -> float:
    """Share of the pairs of examples of one batch that are of one class, an example with itself left out."""
    same = pairs = 0
    for part in torch.split(codes, list(sizes)):
        counts = torch.bincount(part)
        same += int((counts * (counts - 1)).sum())
        pairs += len(part) * (len(part) - 1)
    return same / max(pairs, 1)


def labels_of(batch: Any) -> Tensor | None:
    """The class numbers (n,) of a batch's examples; None where it has none."""
    if isinstance(batch, Mapping):
        label = next((batch[name] for name in LABELS if name in batch), None)
    else:
        label = batch[-1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    if not isinstance(label, Tensor) or label.is_floating_point() or label.is_complex():
        return None
    flat = label.detach().reshape(-1)
    return flat.cpu() if len(flat) == nested.rows(batch) else None
