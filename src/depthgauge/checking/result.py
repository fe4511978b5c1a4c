"""Results of a check: an answer a question, as text, page, table and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from depthgauge.checking.answers import Answer, Status, worst


@dataclass(frozen=True, eq=False)
class Checked:
    """The results of a check.

    Attributes:
        asked: the answers, in the order of the questions.
        budget: seconds that it was given.
    """

    asked: tuple[Answer, ...]
    budget: float

    @cached_property
    def answers(self) -> Mapping[str, Answer]:
        """By the question's id."""
        return {answer.id: answer for answer in self.asked}

    @property
    def status(self) -> Status:
        """The status of the worst answer."""
        return worst(answer.status for answer in self.asked)

    @property
    def exit_code(self) -> int:
        """0 where all is fine or to be looked at, 3 broken, 4 undecided, 5 where nothing could be measured."""
        statuses = [answer.status for answer in self.asked]
        if Status.BROKEN in statuses:
            return 3
        if all(status is Status.UNDECIDED for status in statuses):
            return 5
        return 4 if Status.UNDECIDED in statuses else 0
