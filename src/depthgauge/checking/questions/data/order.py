"""The order in which examples come: by their class, by their target, or the same ones over and over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from depthgauge.checking.answers import Finding, Kind, Measure, Status
from depthgauge.checking.questions.batch import loader
from depthgauge.checking.questions.data.batches import Batches, Column
from depthgauge.checking.subject import Subject
from depthgauge.checking.words import percent

BATCHES = 6  # whose mean targets go one way by chance in 2 of 720 orders
BETWEEN = 0.8  # of the targets' variance, that lies between batches

KINDS = {
    "same_batch": loader.KINDS["same_batch"],
    "sorted": Kind(
        "fault",
        f"{loader.KINDS['sorted'].meaning}; or {BATCHES} batches or more of rising (falling) numbers, between which"
        f" {percent(BETWEEN)} or more of the targets' variance lies",
    ),
}


def findings(subject: Subject, read: Batches) -> Iterator[Finding]:
    """Tell what the batches in their order are: the question about the batch size finds some of it, too."""
    taken = subject.batches(read.count)
    told = False
    for each in loader.read(taken, subject.training.batches):
        if each.kind in KINDS:
            told = True
            yield dataclasses.replace(each)
    for column in () if told else read.targets:
        yield from _ordered(column, read.sizes)


def _ordered(column: Column, sizes: Sequence[int]) -> Iterator[Finding]:
    if sum(sizes) != len(column.numbers) or len(sizes) < BATCHES or min(sizes) < loader.FEWEST_EXAMPLES:
        return
    parts = [part.reshape(-1) for part in torch.split(column.numbers, list(sizes))]
    if not column.numbers.is_floating_point():
        if column.flat.shape[1] == 1 and (found := loader.sorted_by(parts)) is not None:
            yield found
        return
    means = torch.stack([part.double().mean() for part in parts])
    steps = means.diff()
    if not (bool((steps > 0).all()) or bool((steps < 0).all())):
        return
    between = _between(parts, means)
    if between >= BETWEEN:
        yield Finding(
            "sorted", Status.BROKEN,
            f"the examples come sorted by their targets: their means {'rise' if steps[0] > 0 else 'fall'} over"
            f" {len(parts)} batches, and {percent(between)} of their variance lies between batches",
            "shuffle the examples: DataLoader(..., shuffle=True)", "the steps no longer follow the targets from one end"
            " to the other", ("batches",), Measure("share of the variance between batches", between),
        )  # fmt: skip


def _between(parts: Sequence[Tensor], means: Tensor) -> float:
    everything = torch.cat(list(parts)).double()
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.float64)
    whole = (everything - everything.mean()).square().sum()
    return ((sizes * (means - everything.mean()).square()).sum() / whole.clamp_min(1e-300)).item()
