"""Is the batch size right?"""

from __future__ import annotations

from depthgauge.checking.answers import Answer, undecided
from depthgauge.checking.question import Question
from depthgauge.checking.subject import Subject


def ask(subject: Subject) -> Answer:
    """Answer it."""
    del subject
    return undecided(QUESTION.id, QUESTION.text, "this question is not asked yet")


QUESTION = Question("batch", "Is the batch size right?", ask, share=1.5)
