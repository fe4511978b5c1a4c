"""Progress of a run, and an estimate of the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from depthgauge.study import Chunk


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        study: the study that the last finished chunk belongs to.
        done: chunks finished, of all studies, those of earlier runs included.
        total: chunks asked for.
        failed: cases without a result so far.
        left: estimated seconds to go; None while nothing is known.
        note: something to tell the user, in one line; empty as a rule.
    """

    study: str
    done: int
    total: int
    failed: int
    left: float | None = None
    note: str = ""


class Cost:
    """Seconds a case, learnt from the chunks of the same grid as far as there are any."""

    def __init__(self, chunks: Iterable[Chunk] = ()) -> None:
        self.known: dict[tuple[str, ...], tuple[float, int]] = {}
        self.waiting = Counter[tuple[tuple[str, ...], ...]]()
        self.expect(chunks)

    def expect(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks that will run."""
        for chunk in chunks:
            self.waiting[_kinds(chunk)] += len(chunk.cases)

    def learn(self, chunk: Chunk, seconds: float) -> None:
        """Note the seconds that a chunk took."""
        kinds = _kinds(chunk)
        self.waiting[kinds] -= len(chunk.cases)
        for kind in kinds:
            total, cases = self.known.get(kind, (0.0, 0))
            self.known[kind] = total + seconds, cases + len(chunk.cases)

    def drop(self, chunk: Chunk) -> None:
        """Remove a chunk that is not run."""
        self.waiting[_kinds(chunk)] -= len(chunk.cases)

    def left(self, workers: int) -> float | None:
        """Seconds until all are done; None while nothing is known."""
        if not self.known:
            return None
        seconds = 0.0
        for kinds, waiting in self.waiting.items():
            total, cases = next(self.known[kind] for kind in kinds if kind in self.known)
            seconds += total / cases * waiting
        return seconds / max(workers, 1)


def _kinds(chunk: Chunk) -> tuple[tuple[str, ...], ...]:
    """Return the features that chunks of like cost share, closest first: numbers differ, names and words agree."""
    params = chunk.cases[0].params
    names = tuple(f"{name}={value}" if isinstance(value, str) else name for name, value in params)
    return (chunk.study, *names), (chunk.study, *(name for name, _ in params)), (chunk.study,), ()
