"""Is the learning rate right?"""

from __future__ import annotations

from depthgauge.checking.answers import Answer, undecided
from depthgauge.checking.question import Question
from depthgauge.checking.subject import Subject


def ask(subject: Subject) -> Answer:
    """Answer it."""
    del subject
    return undecided(QUESTION.id, QUESTION.text, "this question is not asked yet")


QUESTION = Question("learning_rate", "Is the learning rate right?", ask, share=2)
