"""The training that is asked about, with what all questions share: its first pass, its first steps, the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from depthgauge.checking.answers import Finding
from depthgauge.checking.beginning import LEAST, REFERENCE, Begun, begin
from depthgauge.checking.observing import Seen
from depthgauge.foreign import contained, describe_error
from depthgauge.workload import LoaderError, Training

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
        found: by the question that is being asked: it stands where a later step of it fails.
        missed: what that question did not measure, and why.
        short: what it did not measure for want of time.
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
        self.found: list[Finding] = []
        self.missed: list[str] = []
        self.short: list[str] = []

    def batches(self, count: int) -> list[Any]:
        """The first batches, at most `BATCHES`, and fewer where there are no more."""
        return self.training.first(min(count, BATCHES))

    def part(self, what: str, work: Callable[[], Iterable[Finding]]) -> None:
        """Take in what a part of a question finds, one by one; what it does not get to is missed, and costs no other.

        Args:
            what: it looks for, in words.
            work: the part.

        Raises:
            LoaderError: there are no batches, for no part.
        """
        try:
            with contained():
                for each in work():
                    self.found.append(each)
        except LoaderError:
            raise
        except Exception as error:  # noqa: BLE001 - the user's code, and hooks in it, may raise anything
            self.missed.append(f"{what}: {describe_error(error)}")

    def fits(self, passes: float, what: str, share: float = 1.0) -> bool:
        """Tell whether so many passes fit into a share of the time that is left; what does not is `short`.

        Args:
            passes: forward and backward over the first batch.
            what: they look for, in words.
            share: of the time.
        """
        if passes * self.seen.seconds <= share * self.clock.left:
            return True
        self.short.append(what)
        return False

    @cached_property
    def begun(self) -> Begun | None:
        """First steps of the user's own optimizer, with a record of all tensors; None without an optimizer or time."""
        clock = Clock(SHARE_OF_STEPS * self.budget)
        if self.training.optimizer is None or LEAST * self.seen.seconds > 2 * clock.left:
            return None
        self.tell("its first steps")
        references = clock.count(self.seen.seconds, REFERENCE, SHARE_OF_REFERENCE)
        return begin(self.training, FIRST_STEPS, lambda: clock.left > 0, references)
