"""The training that is asked about, with what all questions share: its first pass, its first steps, the time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from depthgauge.checking.answers import Finding
from depthgauge.checking.beginning import LEAST, REFERENCE, Begun, begin
from depthgauge.checking.loading import Reading
from depthgauge.checking.observing import Seen
from depthgauge.foreign import contained, describe_error
from depthgauge.workload import LoaderError, Training

FIRST_STEPS = 60  # of the user's own, at most, that all questions share
SHARE_OF_STEPS = 0.12  # of the whole time, that they may take
SHARE_OF_REFERENCE = 0.25  # of it, for the loss of the same batches before them, and as much after
SHARE_OF_LOADING = 0.3  # of the time that a question has left, for reading batches that it asks for
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
        self._reading = seen.reading or Reading(training)
        self.found: list[Finding] = []
        self.missed: list[str] = []
        self.short: list[str] = []

    def batches(self, count: int, share: float = SHARE_OF_LOADING) -> list[Any]:
        """The first batches, at most `BATCHES`; fewer where there are no more, or reading takes too long.

        Args:
            count: how many are wanted.
            share: of the time that is left, for reading those that are not known yet.
        """
        return self._reading.batches(min(count, BATCHES), share * self.clock.left)

    @property
    def ended(self) -> bool:
        """Tell whether all batches that there are have been read."""
        return self._reading.ended

    @property
    def load(self) -> float:
        """Seconds that the loader takes for a batch; 0 where that is not known."""
        return 0.0 if math.isnan(self._reading.each) else self._reading.each

    @property
    def step(self) -> float:
        """Seconds of a step on a batch that the loader makes for it, as passes and the loader tell."""
        return 2 * self.seen.seconds + self.load

    @property
    def pace(self) -> str:
        """`a pass takes 0.1 s`, and what of loader and state takes as much beside it."""
        seen = self.seen
        parts = [f"a pass takes {seen.seconds:.2g} s"]
        parts += [f"a batch of the loader {self.load:.2g} s"] * (self.load >= seen.seconds)
        parts += [f"a copy of all that it changes {seen.copies:.2g} s"] * (seen.copies >= seen.seconds)
        return " and ".join(parts)

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

    def fits(self, passes: float, what: str, share: float = 1.0, *, loads: int = 0, copies: int = 1) -> bool:
        """Tell whether so many passes fit into a share of the time that is left; what does not is `short`.

        Args:
            passes: forward and backward over the first batch.
            what: they look for, in words.
            share: of the time.
            loads: batches that the loader makes for it anew.
            copies: times that all is copied and put back.
        """
        seconds = passes * self.seen.seconds + loads * self.load + copies * self.seen.copies
        if seconds <= share * self.clock.left:
            return True
        self.short.append(what)
        return False

    def count(self, seconds: float, most: int, share: float = 1.0, *, copies: int = 1) -> int:
        """Count the pieces of work of so many seconds that fit into a share of the time left, `most` at most.

        Args:
            seconds: of each.
            most: of them.
            share: of the time.
            copies: times that all is copied and put back for them together.
        """
        there = share * self.clock.left - copies * self.seen.copies
        return min(most, max(0, int(there / max(seconds, 1e-9))))

    @cached_property
    def begun(self) -> Begun | None:
        """First steps of the user's own optimizer, with a record of all tensors; None without an optimizer or time."""
        clock = Clock(SHARE_OF_STEPS * self.budget)
        if (
            self.training.optimizer is None
            or LEAST * (self.seen.seconds + 2 * self.load) + self.seen.copies > 2 * clock.left
        ):
            return None
        self.tell("its first steps")
        references = clock.count(self.seen.seconds, REFERENCE, SHARE_OF_REFERENCE)
        return begin(self.training, FIRST_STEPS, lambda: clock.left > 0, references)
