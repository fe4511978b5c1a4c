"""Pilots: the first chunks of a grid, whose failure can make the rest needless.

    pilots = Pilots.of(chunks)
    pilots.first(chunk)               # it is one of them
    pilots.waits(chunk, finished)     # not before they have ended
    pilots.verdict(chunk, finished)   # what they all failed with, if they did: the grid stops there

Pilots are chosen from the grid alone, spread evenly over it, the first and the last among them: these two differ in
every parameter that tells chunks apart. So what is not run depends neither on workers nor on the clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from depthgauge.encoding import ERROR, LOST, TIMEOUT, Summary
from depthgauge.study import Chunk

PILOTS = 3  # chunks of a grid that run before its others, at least
CASES = 8  # and cases in them: where half of the cases fail at random, one grid in 256 would stop at that many

# What the case did. A status that tells of the machine is none of them: it says nothing of the cases to come.
FAILED = frozenset({ERROR, TIMEOUT, LOST})

_VARYING = re.compile(r"\b0x[0-9a-f]+\b|[-+]?\d[\d.,_]*(?:e[-+]?\d+)?", re.IGNORECASE)

Grid = tuple[str, int]


@dataclass(frozen=True)
class Pilots:
    """The pilots of every grid.

    Attributes:
        chosen: (study, place of the grid) -> names of its pilots, as `named` spells them.
    """

    chosen: Mapping[Grid, tuple[str, ...]]

    @staticmethod
    def of(chunks: Iterable[Chunk]) -> Pilots:
        """Collect the pilots of all grids of these chunks, in the order of the grids."""
        grids: dict[Grid, list[Chunk]] = {}
        for chunk in chunks:
            grids.setdefault((chunk.study, chunk.grid), []).append(chunk)
        return Pilots({grid: _spread(of_grid) for grid, of_grid in grids.items()})

    def joined(self, others: Pilots) -> Pilots:
        """Join two collections of pilots, of different grids."""
        return Pilots({**self.chosen, **others.chosen})

    def first(self, chunk: Chunk) -> bool:
        """Tell whether the chunk is a pilot."""
        return named(chunk) in self.chosen[chunk.study, chunk.grid]

    def waits(self, chunk: Chunk, finished: Mapping[str, Summary]) -> bool:
        """Tell whether the chunk must wait for its pilots."""
        return not self.first(chunk) and any(name not in finished for name in self.chosen[chunk.study, chunk.grid])

    def verdict(self, chunk: Chunk, finished: Mapping[str, Summary]) -> str:
        """The error that every case of the pilots of the chunk's grid ended with; empty where there is no such error.

        Numbers and addresses in a message do not make it another error.
        """
        summaries = [finished.get(name) for name in self.chosen[chunk.study, chunk.grid]]
        failures = [summary for summary in summaries if summary is not None and _failed(summary)]
        messages = [message for summary in failures for message in summary.messages]
        alike = len({plain(message) for message in messages}) == 1
        return messages[0] if alike and len(failures) == len(summaries) else ""

    def cases(self, chunk: Chunk, finished: Mapping[str, Summary]) -> int:
        """Count the cases that the pilots of the chunk's grid had."""
        return sum(finished[name].cases for name in self.chosen[chunk.study, chunk.grid])


def named(chunk: Chunk) -> str:
    """A chunk's name among those of all studies."""
    return f"{chunk.study}/{chunk.id}"


def plain(message: str) -> str:
    """Strip a message of numbers, shapes and addresses, which differ from case to case."""
    return _VARYING.sub("#", message)


def _spread(chunks: list[Chunk]) -> tuple[str, ...]:
    last = len(chunks) - 1
    count = max(PILOTS, -(-CASES // min(len(chunk.cases) for chunk in chunks)))
    places = {round(i * last / (count - 1)) for i in range(count)}
    return tuple(named(chunks[place]) for place in sorted(places))


def _failed(summary: Summary) -> bool:
    failed = sum(count for status, count in summary.failed.items() if status in FAILED)
    return failed == summary.cases and failed == sum(summary.failed.values())
