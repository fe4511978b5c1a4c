"""Findings of a check, as data: an answer a question, the training, and the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from depthgauge import environment
from depthgauge.checking.about import About
from depthgauge.checking.answers import Answer, Status, worst


@dataclass(frozen=True, eq=False, repr=False)
class Found:
    """Findings of a check.

    Attributes:
        asked: the answers, in the order of the questions.
        budget: seconds that it was given.
        about: the training that was asked about.
        stored: the environment of one that was read from a file; None for that of this process.
    """

    asked: tuple[Answer, ...]
    budget: float
    about: About = field(default_factory=About)
    stored: Mapping[str, Any] | None = None

    @cached_property
    def answers(self) -> Mapping[str, Answer]:
        """By the question's id."""
        return {answer.id: answer for answer in self.asked}

    @property
    def status(self) -> Status:
        """That of the worst answer."""
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

    @cached_property
    def run(self) -> Mapping[str, Any]:
        """The environment: versions, machine, device."""
        if self.stored is not None:
            return self.stored
        device = self.about.device if self.about.device.startswith("cuda") else "cpu"
        return environment.fingerprint(device, self.about.threads)
