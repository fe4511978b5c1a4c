"""Batches that hold one example over and over, or come several times in a row: what a loader or its workers repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.data.batches import Batches
from depthgauge.checking.words import percent

# A batch that is handed out several times may be meant: data echoing (Choi et al. 2019).
NUMBERS = 8  # measured ones an example, below which equal ones are no wonder
FEWEST = 4  # examples of a batch, of which all are one
BATCHES = 8  # below which batches in a row tell nothing
IN_A_ROW = 0.4  # of the batches, that are the one before: of two workers with the same numbers half are

KINDS = {
    "copies_in_batch": Kind(
        "fault",
        f"all examples of a batch, of {FEWEST} or more, are one and the same, targets included, in every batch, and"
        " another in the next",
    ),
    "batches_in_a_row": Kind(
        "fault",
        f"{percent(IN_A_ROW)} or more of {BATCHES} or more batches are the one before, number for number, and others"
        " are not: workers that draw, or read, the same",
    ),
}  # fmt: skip


def findings(batches: Batches) -> Iterator[Finding]:
    """Yield what batches hold more than once."""
    rows = _rows(batches)
    if rows is None or len(batches.sizes) != batches.count:
        return
    parts = torch.split(rows, list(batches.sizes))
    same = [torch.equal(one, other) for one, other in pairwise(parts)]
    if all(same):  # one batch alone, or over and over
        return
    if all(len(part) >= FEWEST and bool((part == part[:1]).all()) for part in parts):
        yield Finding(
            "copies_in_batch", Status.BROKEN,
            f"the {len(parts[0])} examples of a batch are one and the same, in each of {len(parts)} batches",
            "look at the indices that a batch is gathered by, and at arrays that are filled in a loop",
            "a batch's gradient is the mean over different examples", ("batches",),
            Measure("different examples of a batch", 1.0, unit=f"of {len(parts[0])}"),
        )  # fmt: skip
    if len(parts) >= BATCHES and sum(same) >= IN_A_ROW * len(parts):
        yield Finding(
            "batches_in_a_row", Status.LOOK,
            f"{sum(same)} of {len(parts)} batches are the one before, number for number",
            "give each worker numbers, or a part of the data, of its own: seed by worker_info.seed in worker_init_fn,"
            " or take every num_workers-th example (torch.utils.data.get_worker_info); leave it where batches are"
            " echoed on purpose",
            "no step repeats the one before", ("batches",),
            Measure("batches that are the one before", sum(same) / len(parts)),
        )  # fmt: skip


def _rows(batches: Batches) -> Tensor | None:
    """All numbers of each example in one row; None where too few are measured to be equal by chance."""
    columns = [each for each in batches.columns if len(each.numbers) == sum(batches.sizes)]
    measured = sum(math.prod(each.numbers.shape[1:]) for each in columns if each.continuous)
    if measured < NUMBERS or len(columns) < len(batches.columns):
        return None
    return torch.cat([each.flat for each in columns], 1).nan_to_num()
