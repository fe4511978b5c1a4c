"""The questions of the card, in their order."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from depthgauge.checking.question import Question
from depthgauge.checking.questions import batch, cost, data, learning_rate, precision, reproducibility, signal
from depthgauge.workload import WorkloadError

__all__ = ["QUESTIONS", "Question", "named"]

QUESTIONS = (
    signal.QUESTION, learning_rate.QUESTION, batch.QUESTION, precision.QUESTION, data.QUESTION,
    reproducibility.QUESTION, cost.QUESTION,
)  # fmt: skip


def named(only: Iterable[str] | None) -> tuple[Question, ...]:
    """Return the questions of these ids, in the order of the card; all where nothing is asked for.

    Raises:
        WorkloadError: there is no such question, or none is named.
    """
    if only is None:
        return QUESTIONS
    ids = [question.id for question in QUESTIONS]
    wanted = only.split(",") if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in ids:
            near = difflib.get_close_matches(str(name), ids, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(ids)}"
            raise WorkloadError(f"{name!r} is no question of a check; {hint}")
    if not wanted:
        raise WorkloadError(f"no question is asked; they are {', '.join(ids)}")
    return tuple(question for question in QUESTIONS if question.id in wanted)
