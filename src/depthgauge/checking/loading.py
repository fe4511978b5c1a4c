"""Reading of the user's batches, as far as the time allows: what a loader takes is in no pass's time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from depthgauge.workload import Training


class Reading:
    """The first batches of a training: more are read where there is time for them.

    A loader begins anew each time, and is read from its first batch on: an iterator of its own that is kept open would
    be lost where another is begun (persistent workers, a loader that is its own iterator), and hold its workers.

    Attributes:
        known: batches that were read.
        ended: whether there are no more.
        lead: seconds until the first came, where a loader began.
        each: seconds that one of the others took, or the first where it was alone; NaN where none was read.
    """

    def __init__(self, training: Training, now: Callable[[], float] = time.perf_counter) -> None:
        self.known = 0
        self.ended = False
        self.lead = 0.0
        self.each = math.nan
        self._training = training
        self._now = now
        self._goes_on = isinstance(training.batches, Iterator)

    def batches(self, count: int, seconds: float = math.inf) -> list[Any]:
        """The first batches, at most so many: fewer where there are no more, or no time to read them; one at least.

        Args:
            count: how many are wanted.
            seconds: that reading may take, from now on.

        Raises:
            WorkloadError: there is not even one, or the loader raises.
        """
        fits = count if self.ended else self._fitting(count, seconds)
        if fits > self.known and not self.ended:
            self._read(fits, seconds)
        return self._training.first(min(count, self.known))

    def _fitting(self, count: int, seconds: float) -> int:
        """Batches that can be known after so many seconds, at most `count`; all of them where nothing is known."""
        if math.isnan(self.each) or math.isinf(seconds):
            return count
        if self._goes_on:
            return min(count, self.known + int(seconds / max(self.each, 1e-9)))
        return min(count, 1 + int((seconds - self.lead) / max(self.each, 1e-9))) if seconds >= self.lead else 0

    def _read(self, count: int, seconds: float) -> None:
        before, start = self.known if self._goes_on else 0, self._now()
        ends: list[float] = []  # of each batch, but for the last of as many as are wanted
        stopped = False

        def going() -> bool:
            nonlocal stopped
            ends.append(self._now() - start)
            stopped = ends[-1] >= seconds
            return not stopped

        taken = self._training.first(count, going)
        whole = self._now() - start
        complete = not stopped and len(taken) == count
        read = count - before if complete else len(ends)
        self.ended = not stopped and not complete
        self.known = max(self.known, len(taken))
        first = ends[0] if ends else whole
        if read > 1 and not self._goes_on:
            self.lead, self.each = first, (whole - first) / (read - 1)
        elif read:
            self.lead, self.each = first, whole / read
