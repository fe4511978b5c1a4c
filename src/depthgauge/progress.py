"""Progress of a run, and an estimate of the rest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        study: the study that is under way: the first one that has not ended.
        done: chunks finished, of all studies, those of earlier runs included.
        total: chunks asked for.
        failed: cases without a result so far.
        left: estimated seconds to go; None while nothing is known.
        share: estimated share of the run's work that is done, 0 to 1.
        note: something to tell the user, in one line; empty as a rule.
        ended: the study that has just ended: all its rows are stored.
        alone: whether the next chunk starts once the observer returns, and nothing may run beside it.
    """

    study: str
    done: int
    total: int
    failed: int
    left: float | None = None
    share: float = 0.0
    note: str = ""
    ended: str = ""
    alone: bool = False
