"""The training that is asked about, with what all questions share: its first pass, its first steps, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from depthgauge.checking.beginning import LEAST, REFERENCE, Begun, begin
from depthgauge.checking.observing import Seen
from depthgauge.workload import Training

FIRST_STEPS = 60  # of the user's own, at most, that all questions share
SHARE_OF_STEPS = 0.12  # of the whole time, that they may take
SHARE_OF_REFERENCE = 0.25  # of it, for the loss of the same batches before them, and as much after
BATCHES = 103  # that are taken of the user's at most, by all questions together: those of a rate's search


class Clock:
    """Time that may be spent; a part of it has a clock of its own."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = seconds
        self._now = now
        self._end = now() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 where it is over."""
        return max(0.0, self._end - self._now())

    def part(self, share: float) -> Clock:
        """A clock over that share of what is left."""
        return Clock(share * self.left, self._now)

    def count(self, seconds: float, most: int, share: float = 1.0) -> int:
        """Count the pieces of work of so many seconds that fit into a share of what is left, `most` at most."""
        return min(most, int(share * self.left / max(seconds, 1e-9)))


class Subject:
    """A training under question.

    Every question leaves it as it was: `with subject.training.untouched():` around all that changes it.

    Attributes:
        training: the user's.
        seen: its first pass, at the weights as they are.
        clock: the time of the question that is being asked.
        budget: the whole time, in seconds.
        tell: shows in words what is being done.
    """

    def __init__(
        self,
        training: Training,
        seen: Seen,
        clock: Clock,
        *,
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.training = training
        self.seen = seen
        self.clock = clock
        self.budget = clock.seconds
        self.tell = tell

    def batches(self, count: int) -> list[Any]:
        """The first batches, at most `BATCHES`, and fewer where there are no more."""
        return self.training.first(min(count, BATCHES))

    @cached_property
    def begun(self) -> Begun | None:
        """First steps of the user's own optimizer, with a record of all tensors; None without an optimizer or time."""
        clock = Clock(SHARE_OF_STEPS * self.budget)
        if self.training.optimizer is None or LEAST * self.seen.seconds > 2 * clock.left:
            return None
        self.tell("its first steps")
        references = clock.count(self.seen.seconds, REFERENCE, SHARE_OF_REFERENCE)
        return begin(self.training, FIRST_STEPS, lambda: clock.left > 0, references)
