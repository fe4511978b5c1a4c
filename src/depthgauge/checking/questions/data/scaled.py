"""Inputs scaled by numbers of their own batch: what an example is depends on which others it was drawn with.

A largest number, a length or a mean of a batch is another in each, but where each was scaled by its own: then it is the
same to the last bits in all of them, while examples and batches differ in all else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from depthgauge import nested
from depthgauge.checking.answers import Finding, Kind, Status
from depthgauge.checking.questions.data.batches import Batches, Column
from depthgauge.checking.questions.data.seeing import handed
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent

BATCHES = 6  # or more, of which each has the same
FEWEST = 4  # examples of a batch
GAP = 1e-3  # of the largest number, by which the next example's is below it, in half of the batches
SAME = 1e-5  # of the numbers' size, by which a statistic that was set differs from batch to batch: rounding
VARIES = 1e-2  # of it, by which the same statistic differs from example to example, and others from batch to batch

KINDS = {
    "scaled_by_batch": Kind(
        "fault",
        f"{BATCHES} batches or more have the same largest number, to the last bit, held by one of its examples alone"
        f" and {GAP:g} above the others', or the same length, or the mean 0 and one spread, to {SAME:g} of their size,"
        " while examples and the batches' mean cubes differ"
        f" by {percent(VARIES)}: each was scaled by its own",
    ),
}


def findings(subject: Subject, read: Batches) -> Iterator[Finding]:
    """Yield the finding where what the model gets was scaled batch by batch."""
    for column in read.inputs:
        parts = _parts(column, read.sizes)
        if parts is None or (what := _set(parts)) is None or not _entered(subject, column):
            continue
        yield Finding(
            "scaled_by_batch", Status.BROKEN,
            f"{what} of {column.called} is the same in each of {len(parts)} batches: each was scaled by its own"
            " numbers, and what an example is depends on the others of its batch",
            "scale by numbers of the whole training set, which you keep for later, or each example by its own",
            "an example has the same inputs in any batch", ("batches", *filter(None, [column.place])),
        )  # fmt: skip
        return


def _parts(column: Column, sizes: Sequence[int]) -> list[Tensor] | None:
    """(examples, numbers) of each batch, in float64."""
    numbers = column.numbers
    if not numbers.is_floating_point() or sum(sizes) != len(numbers) or len(sizes) < BATCHES or min(sizes) < FEWEST:
        return None
    flat = numbers.reshape(len(numbers), -1)
    if not flat.shape[1] or not bool(flat.isfinite().all()):
        return None
    return [part.double() for part in torch.split(flat, list(sizes))]


def _set(parts: Sequence[Tensor]) -> str | None:
    """The statistic that was set; None where none was."""
    size = torch.stack([part.square().mean().sqrt() for part in parts]).mean().item()
    cubes = [part.pow(3).mean() for part in parts]
    if not size > 0 or not _differ(cubes, size**3, VARIES):
        return None
    if any(_has_one_largest(each) for each in (parts, [part.abs() for part in parts])):
        return "the largest number"
    if _of_all(parts, size, lambda part: part.square().mean(-1).sqrt()):
        return "the root mean square"
    zero = torch.stack([part.mean(0) for part in parts])
    if parts[0].shape[1] > 1 and bool((zero.abs() <= SAME * size).all()):
        spread = torch.stack([part.square().mean(0).sqrt() for part in parts])
        if bool((spread.amax(0) - spread.amin(0) <= SAME * size).all()):
            return "the mean, 0, and the spread of each feature"
    return None


def _of_all(parts: Sequence[Tensor], size: float, statistic: Callable[[Tensor], Tensor]) -> bool:
    """Tell whether a statistic over all numbers is the same in each batch, and differs from row to row."""
    rows = torch.cat([statistic(part) for part in parts])
    whole = [statistic(part.reshape(1, -1))[0] for part in parts]
    return _alike(whole, size) and _differ(list(rows), size, VARIES)


def _has_one_largest(parts: Sequence[Tensor]) -> bool:
    """Tell whether the largest number is the same to the last bit, and one example's, above those of the others.

    The largest of many numbers that have a bound, such as a sine's, is near it, and so are those after it.
    """
    largest = [part.amax(1).sort(descending=True).values for part in parts]
    gaps = torch.stack([1 - rows[1] / rows[0] for rows in largest])
    same = all(rows[0] == largest[0][0] for rows in largest) and largest[0][0] > 0
    return bool(same and (gaps > 0).all() and gaps.median() > GAP)


def _alike(values: Sequence[Tensor], size: float) -> bool:
    return not _differ(values, size, SAME)


def _differ(values: Sequence[Tensor], size: float, by: float) -> bool:
    every = torch.stack(list(values))
    return bool(every.amax() - every.amin() > by * size)


def _entered(subject: Subject, column: Column) -> bool:
    """Tell whether the model gets these numbers, as they are, of the first batch."""
    training, batch = subject.training, subject.seen.batch
    first = dict(nested.tensors(batch)).get(column.place or None)
    if isinstance(training.model, torch.jit.ScriptModule) or first is None:
        return False
    with training.untouched():
        given = [each for each in handed(training, batch) if each.numel() == first.numel()]
    return any(torch.equal(each.reshape(-1), first.reshape(-1)) for each in given)
