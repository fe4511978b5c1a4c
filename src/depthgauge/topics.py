"""The questions that a report is ordered by, whichever studies answer them.

A study names its topic, a part or a claim may name another: where the time goes is asked in every study, and answered
in one place.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A question that users bring, and the short name by which a study takes its place under it.

    Attributes:
        name: `signal`, `start`, ...
        question: as a reader asks it.
    """

    name: str
    question: str


TOPICS = (
    Topic("signal", "Does the signal get through?"),
    Topic("start", "Which initialization and activation?"),
    Topic("rate", "Which learning rate and batch size?"),
    Topic("format", "Which number format?"),
    Topic("devices", "How many devices?"),
    Topic("stability", "What stabilizes training?"),
    Topic("regularization", "What regularizes?"),
    Topic("cost", "What does it cost?"),
)
"""In the order of a report; a study without a topic comes after them, under its own question."""

BY_NAME = {topic.name: topic for topic in TOPICS}


def place(name: str) -> int:
    """The topic's place in a report; what has none comes last."""
    return list(BY_NAME).index(name) if name in BY_NAME else len(BY_NAME)


def unknown_topic(name: str) -> str:
    """Say in a sentence that no topic has this name, and which is meant; empty where one has it, or it is empty."""
    if not name or name in BY_NAME:
        return ""
    near = difflib.get_close_matches(name, BY_NAME, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(BY_NAME)}"
    return f"{name!r} is no topic of reports; {meant}"
