"""State that a model hands on from a batch to the next, row by row, where the batches are drawn at random.

An example of the first batch is replaced by another, and the second batch's outputs are looked at. A recurrent state
that is kept moves the same row's output there, and no other. What moves all of them (a queue, a running statistic, a
codebook, an average of weights) is meant to outlast a batch.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking.attributes import attributes_kept
from depthgauge.checking.questions.reproducibility.calls import Event, recorded
from depthgauge.checking.questions.reproducibility.mixing import band, changes, copied, distance, others, replaced
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

_AT_RANDOM = (
    torch.utils.data.RandomSampler, torch.utils.data.SubsetRandomSampler, torch.utils.data.WeightedRandomSampler,
)  # fmt: skip


def drawn_at_random(batches: object) -> bool:
    """Tell whether a loader draws its examples in a random order, so that a batch does not go on where one ended."""
    sampler, batch_sampler = (getattr(batches, name, None) for name in ("sampler", "batch_sampler"))
    return any(isinstance(each, _AT_RANDOM) for each in (sampler, getattr(batch_sampler, "sampler", None)))


def handed_on(training: Training) -> float:
    """Change of a row's output when the same row of the batch before was another example, over its root mean square.

    0 where the batches are not drawn at random, where nothing moves, and where other rows move, too.
    """
    batches = training.known(2)
    if len(batches) < 2 or not drawn_at_random(training.batches):
        return 0.0
    first, second = batches
    count, row = nested.rows(second), 0
    other = replaced(first, row) if nested.rows(first) == count and count else None
    if other is None or count is None:
        return 0.0
    base, after = (_second(training, [each, second]) for each in (first, other))
    least = max((band(each) for event in base for _, each in event.read), default=0.0)
    moved = changes(base, after, distance)
    outside = changes(base, after, partial(others, count=count, row=row))
    return moved if moved > least >= outside else 0.0


def _second(training: Training, batches: list[Any]) -> list[Event]:
    """The outermost calls of the last batch, in eval mode."""
    events: list[Event] = []
    with attributes_kept(training), training.untouched():
        training.model.eval()
        for batch in batches:
            with (
                random_states_kept(),
                attributes_kept(training, draws=True),
                recorded(training.model, copied, lambda outer: outer) as events,
            ):
                training.value(batch)
    return events
