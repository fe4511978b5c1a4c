"""Timelines of pipelines: when each stage of each pipeline worked, and how much of a round it stood still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLEEPING, NETWORK = "sleeping", "network"
FORWARD, BACKWARD = 0.008, 0.016  # seconds that a stage sleeps

Spans = NDArray[np.float64]
"""Beginnings and ends of a rank's passes in a round, (passes, 2), by the clock that all processes share."""


@dataclass(frozen=True)
class Pipe:
    """One pipeline over all ranks.

    Attributes:
        kind: `SLEEPING` or `NETWORK`.
        schedule: `GPipe` or `1F1B`.
        microbatches: parts of a batch.
    """

    kind: str
    schedule: str
    microbatches: int


def bubble(ranks: Sequence[Spans]) -> float:
    """Idle share of a round: of the time from the first pass to the last, and of all ranks."""
    every = np.concatenate(ranks)
    whole = every[:, 1].max() - every[:, 0].min()
    busy = sum(float((own[:, 1] - own[:, 0]).sum()) for own in ranks)
    return float(1 - busy / (len(ranks) * whole))


def overlap(ranks: Sequence[Spans]) -> float:
    """Share of a round in which two stages or more work."""
    every = np.concatenate(ranks)
    changes = sorted([(begin, 1) for begin in every[:, 0]] + [(end, -1) for end in every[:, 1]])
    at_once, total, last = 0, 0.0, changes[0][0]
    for at, change in changes:
        total += (at - last) * (at_once > 1)
        at_once, last = at_once + change, at
    return float(total / (changes[-1][0] - changes[0][0]))
