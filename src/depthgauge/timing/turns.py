"""Two pieces of work timed in turns, A B B A, for a given number of blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge.study import Case, Rows
from depthgauge.timing.clocks import Clock, Work

SHORTEST = 3e-4
"""Seconds that a timed stretch lasts at least: many times what a clock resolves."""

_METRICS = ("seconds", "reference_seconds")


def in_turns(clock: Clock, a: Work, b: Work, blocks: int) -> NDArray[np.float64]:
    """Seconds of a call in turns A B B A: shape (blocks, 2, 2), those of a and then those of b.

    `stats.time_ratio` takes them as they are. To time until an answer is sharp enough, see `interleave`.
    """
    calls_a, calls_b = (_calls_a_stretch(clock, work) for work in (a, b))
    seconds = np.empty((blocks, 2, 2))
    for block in seconds:
        block[0, 0], block[1, 0] = clock.time(a, calls_a), clock.time(b, calls_b)
        block[1, 1], block[0, 1] = clock.time(b, calls_b), clock.time(a, calls_a)
    seconds /= np.array([calls_a, calls_b])[:, None]
    return seconds


def rows_of(case: Case, seconds: NDArray[np.float64], direction: str) -> Iterator[Rows]:
    """Durations that `in_turns` measured, as rows: metrics `seconds` and `reference_seconds`, a step a block."""
    steps = np.repeat(np.arange(len(seconds)), 2)
    for place, metric in enumerate(_METRICS):
        yield case.rows(metric, seconds[:, place].ravel(), direction=direction, step=steps)


def durations(rows: pd.DataFrame, case: str, direction: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The seconds of a and of b from such rows: (blocks, 2) each, as `stats.time_ratio` takes them.

    Args:
        rows: the tidy frame.
        case: id of a case.
        direction: as in `rows_of`.
    """
    timed = rows[(rows["case"] == case) & (rows["direction"] == direction)]
    a, b = (timed.loc[timed["metric"] == metric, "value"].to_numpy() for metric in _METRICS)
    return a.reshape(-1, 2), b.reshape(-1, 2)


def _calls_a_stretch(clock: Clock, work: Work) -> int:
    """Count the calls that take SHORTEST; the first ones warm up."""
    clock.time(work, 2)
    return max(1, round(SHORTEST / max(min(clock.time(work) for _ in range(3)), 1e-9)))
