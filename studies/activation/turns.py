"""Two pieces of code timed in turns, A B B A. A clock is read here."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from depthgauge import stats
from depthgauge.study import Case, Rows
from depthgauge.timing import Clock
from depthgauge.timing.clocks import Work

SHORTEST = 3e-4  # seconds that a timed stretch lasts at least: many times what a clock resolves
CONFIDENCE = 0.99
METHOD = """**Time.** In turns, A B B A; medians of paired log-ratios at 99 %; a difference counts only beyond the
resolution, which is measured by timing one thing against itself. Nothing runs beside. A clock was read here: these
rows, unlike all others, are not the same when they are measured again."""


def in_turns(clock: Clock, a: Work, b: Work, blocks: int) -> np.ndarray:
    """Seconds of a call in turns A B B A: shape (blocks, 2, 2), those of a and then those of b."""
    calls_a, calls_b = (_calls_a_stretch(clock, work) for work in (a, b))
    seconds = np.empty((blocks, 2, 2))
    for block in seconds:
        block[0, 0], block[1, 0] = clock.time(a, calls_a), clock.time(b, calls_b)
        block[1, 1], block[0, 1] = clock.time(b, calls_b), clock.time(a, calls_a)
    seconds /= np.array([calls_a, calls_b])[:, None]
    return seconds


def _calls_a_stretch(clock: Clock, work: Work) -> int:
    """How many calls take SHORTEST; the first ones warm up."""
    clock.time(work, 2)
    return max(1, round(SHORTEST / max(min(clock.time(work) for _ in range(3)), 1e-9)))


def rows_of(case: Case, seconds: np.ndarray, direction: str) -> Iterator[Rows]:
    """What `in_turns` has measured, as rows."""
    steps = np.repeat(np.arange(len(seconds)), 2)
    yield case.rows("seconds", seconds[:, 0].ravel(), direction=direction, step=steps)
    yield case.rows("reference_seconds", seconds[:, 1].ravel(), direction=direction, step=steps)


def durations(rows: pd.DataFrame, case: str, direction: str) -> tuple[np.ndarray, np.ndarray]:
    """The seconds of a call, and those of its reference: (blocks, 2) each."""
    own = rows[(rows["case"] == case) & (rows["direction"] == direction)]
    a, b = (
        own[own["metric"] == metric]["value"].to_numpy().reshape(-1, 2) for metric in ("seconds", "reference_seconds")
    )
    return a, b


def resolution(rows: pd.DataFrame, cases: pd.Index, direction: str) -> float:
    """What the first of these cases, one thing against itself, resolves; infinite without one."""
    return stats.resolution(*durations(rows, str(cases[0]), direction)) if len(cases) else np.inf
