"""Estimate of what is left of a run, in seconds: learnt from finished chunks, and known beforehand from runs like it.

    cost = Cost(chunks, known={("gradient_flow", "signal"): 0.02})     # seconds a case
    cost.learn(chunk, seconds=3.1)
    cost.left(workers=2)

Chunks of one part of a study are alike: their seconds a case follow a power of each number that varies (depth, width,
batch) and a factor for each word. So a part whose heavy cases come last is not taken for light by its first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from depthgauge import costs
from depthgauge.study import Chunk, Value

Group = tuple[str, str]
"""A study and its part; the part's name is empty where the study has none."""

_STIFF = 0.3  # of the ridge: a power that few chunks tell is taken for small
_INERT = 0.1  # of all work: that much of it counts as measured, and as long as known beforehand
_SOON, _MANY, _LATER = 1.1, 100, 1.5  # a fit is made anew where that many times the chunks are known; many, then later
_LEAST = 0.25  # of what chunks tell, below which what was known beforehand is not believed


@dataclass(frozen=True)
class _Kind:
    """What chunks of equal cost share."""

    grid: int
    exclusive: bool
    params: tuple[tuple[str, Value], ...]


@dataclass
class _Part:
    """The chunks of one group; its sums are kept as chunks come and go: a chunk more costs the same, however many."""

    waiting: Counter[_Kind] = field(default_factory=Counter)  # kind -> cases
    coming: int = 0  # cases that wait
    learnt: list[tuple[_Kind, float, int]] = field(default_factory=list)  # kind, seconds, cases
    seconds: float = 0.0  # of what is learnt
    cases: int = 0  # likewise
    fitted: int = 0  # chunks that were known when it was last fitted
    rates: dict[_Kind, float] = field(default_factory=dict)  # seconds a case, for a part of rate 1
    beside: float = 0.0  # seconds that those take which wait, for a part of rate 1
    alone: float = 0.0  # likewise, where nothing may run beside them

    def count(self, kind: _Kind, cases: int) -> None:
        """Count cases that wait, or do not wait any more, at the rate that was fitted for their kind."""
        self.coming += cases
        if kind.exclusive:
            self.alone += self.rates.get(kind, 0.0) * cases
        else:
            self.beside += self.rates.get(kind, 0.0) * cases


class Cost:
    """Seconds of the chunks that wait.

    Args:
        chunks: those that will run.
        known: group -> seconds a case, from earlier runs.
        second: study -> seconds that its second stage takes, from earlier runs.
    """

    def __init__(
        self,
        chunks: Iterable[Chunk] = (),
        *,
        known: Mapping[Group, float] | None = None,
        second: Mapping[str, float] | None = None,
    ) -> None:
        self.known = dict(known or {})
        self.second = dict(second or {})
        self.spent = 0.0
        self._parts: dict[Group, _Part] = {}
        self.expect(chunks)

    @staticmethod
    def of(chunks: Mapping[str, Sequence[Chunk]], preset: str, table: costs.Table, waiting: Collection[str]) -> Cost:
        """Take what a table of costs tells of these studies on this machine; no chunk is expected yet.

        Args:
            chunks: study -> its first stage.
            preset: the preset that is run.
            table: what earlier runs cost.
            waiting: studies that have a second stage.
        """
        rates: dict[Group, float] = {}
        second: dict[str, float] = {}
        for study, first in chunks.items():
            counts = counted(first)
            parts, _ = costs.expected(study, preset, counts, table) or ({}, False)
            for part, cost in parts.items():
                rates[study, part] = (cost.seconds + cost.alone) / counts[part] / costs.speed()
            if parts and study in waiting:
                second[study] = sum(cost.second for cost in parts.values()) / costs.speed()
        return Cost(known=rates, second=second)

    def expect(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks that will run."""
        for chunk in chunks:
            part = self._parts.setdefault(group(chunk), _Part())
            part.waiting[_kind(chunk)] += len(chunk.cases)
            part.coming += len(chunk.cases)
            part.fitted = 0

    def learn(self, chunk: Chunk, seconds: float) -> None:
        """Note the seconds that a chunk took."""
        self.drop(chunk)
        part = self._parts[group(chunk)]
        part.learnt.append((_kind(chunk), seconds, len(chunk.cases)))
        part.seconds += seconds
        part.cases += len(chunk.cases)
        self.spent += seconds

    def drop(self, chunk: Chunk) -> None:
        """Remove a chunk that does not wait any more."""
        part, kind = self._parts[group(chunk)], _kind(chunk)
        part.waiting[kind] -= len(chunk.cases)
        part.count(kind, -len(chunk.cases))
        if part.waiting[kind] <= 0:
            del part.waiting[kind]

    def left(self, workers: int) -> float | None:
        """Seconds of the clock until all are done; None while nothing is known."""
        beside, alone = self._rest()
        if beside is None:
            return None
        return alone + beside / max(workers, 1)

    @property
    def share(self) -> float:
        """Estimate the share of all work that is done."""
        beside, alone = self._rest()
        rest = alone + (beside or 0.0)
        return self.spent / (self.spent + rest) if self.spent + rest > 0 else 0.0

    def _rest(self) -> tuple[float | None, float]:
        """Seconds of one worker that chunks beside others take, and those that run alone."""
        waits = any(part.waiting for part in self._parts.values()) or any(self.second.values())
        if waits and not self.known and not any(part.learnt for part in self._parts.values()):
            return None, 0.0
        factor = self._factor()
        beside, alone = factor * sum(self.second.values()), 0.0
        for name, part in self._parts.items():
            if part.waiting:
                with_others, by_itself = self._of_part(name, part, factor)
                beside, alone = beside + with_others, alone + by_itself
        return beside, alone

    def _of_part(self, name: Group, part: _Part, factor: float) -> tuple[float, float]:
        rate = self._rate(name, part, factor)
        _fit(part)
        beside, alone = rate * max(part.beside, 0.0), rate * max(part.alone, 0.0)
        scale = 1.0
        if name in self.known and beside + alone > 0:
            before = factor * self.known[name] * (part.coming + part.cases) - part.seconds
            weight = part.cases / (part.coming + part.cases)
            scale = weight + (1 - weight) * max(before / (beside + alone), _LEAST if part.learnt else 0.0)
        return scale * beside, scale * alone

    def _factor(self) -> float:
        """How many times longer than known beforehand chunks take; few of them say little of the others."""
        measured = [(part, self.known[name]) for name, part in self._parts.items() if name in self.known]
        expected = sum(rate * part.cases for part, rate in measured)
        coming = sum(rate * part.coming for part, rate in measured)
        inert = _INERT * (expected + coming)
        return (sum(part.seconds for part, _ in measured) + inert) / (expected + inert) if inert > 0 else 1.0

    def _rate(self, name: Group, part: _Part, factor: float) -> float:
        """Seconds a case: of the part itself, as known beforehand, of its study, of all."""
        if part.learnt:
            return part.seconds / part.cases
        if name in self.known:
            return factor * self.known[name]
        for near in (lambda other: other[0] == name[0], lambda _: True):
            parts = [other for key, other in self._parts.items() if near(key) and other.learnt]
            if parts:
                return sum(other.seconds for other in parts) / sum(other.cases for other in parts)
        return factor * sum(self.known.values()) / len(self.known)


def group(chunk: Chunk) -> Group:
    """The study and the part that a chunk belongs to."""
    return chunk.study, str(chunk.cases[0].get("part") or "")


def counted(chunks: Iterable[Chunk]) -> Counter[str]:
    """Part -> cases of a study's chunks."""
    counts: Counter[str] = Counter()
    for chunk in chunks:
        counts[group(chunk)[1]] += len(chunk.cases)
    return counts


def _kind(chunk: Chunk) -> _Kind:
    params = tuple(pair for pair in chunk.cases[0].params if pair[0] not in {"seed", "part"})
    return _Kind(chunk.grid, chunk.exclusive, params)


def _fit(part: _Part) -> None:
    """Fit the seconds a case of every kind that waits; 1 is what the part's finished chunks took on average."""
    if part.fitted and len(part.learnt) < (_SOON if part.fitted < _MANY else _LATER) * part.fitted:
        return
    part.fitted = max(len(part.learnt), 1)
    part.rates = _rates(part)
    part.coming, part.beside, part.alone = 0, 0.0, 0.0
    for kind, cases in part.waiting.items():
        part.count(kind, cases)


def _rates(part: _Part) -> dict[_Kind, float]:
    waiting = list(part.waiting)
    if not part.learnt or part.seconds <= 0:
        return dict.fromkeys(waiting, 1.0)
    kinds = [kind for kind, _, _ in part.learnt]
    columns = _columns([*kinds, *waiting])
    seconds = np.array([max(seconds, 1e-6) for _, seconds, _ in part.learnt])
    cases = np.array([cases for _, _, cases in part.learnt], float)
    rates = np.log(seconds / cases * part.cases / part.seconds)
    measured, asked = columns[: len(kinds)], columns[len(kinds) :]
    centre, mean = measured.mean(0), rates.mean()
    shifted = measured - centre
    powers = np.linalg.solve(shifted.T @ shifted + _STIFF * np.eye(shifted.shape[1]), shifted.T @ (rates - mean))
    rest = _of_grids([kind.grid for kind in kinds], rates - mean - shifted @ powers)
    fitted = np.exp(mean + shifted @ powers + [rest[kind.grid] for kind in kinds])
    unbiased = part.cases / float(fitted @ cases)
    told = np.exp(np.clip(mean + (asked - centre) @ powers, -7, 7) + [rest.get(kind.grid, 0.0) for kind in waiting])
    return dict(zip(waiting, (unbiased * told).tolist(), strict=True))


def _columns(kinds: list[_Kind]) -> np.ndarray:
    """A column for each number that varies, its logarithm, and for each word."""
    values: dict[str, dict[Value, None]] = {}
    for kind in kinds:
        for name, value in kind.params:
            values.setdefault(name, {})[value] = None
    columns: list[list[float]] = []
    for name, distinct in values.items():
        if len(distinct) < 2:
            continue
        every = [dict(kind.params).get(name) for kind in kinds]
        numbers = [value for value in distinct if isinstance(value, int | float) and not isinstance(value, bool)]
        scaled = len(numbers) > 1 and min(numbers) > 0 and all(map(math.isfinite, numbers))
        if scaled:
            columns.append([math.log(v) if isinstance(v, int | float) and v in numbers else 0.0 for v in every])
        words = [value for value in distinct if not (scaled and value in numbers)]
        columns += [[float(value == word) for value in every] for word in words[:30]]
    return np.array(columns).T.reshape(len(kinds), len(columns))


def _of_grids(grids: list[int], rest: np.ndarray) -> dict[int, float]:
    """What is left to each grid, less where few of its chunks have told."""
    found: dict[int, list[float]] = {}
    for grid, value in zip(grids, rest, strict=True):
        found.setdefault(grid, []).append(float(value))
    return {grid: sum(values) / (len(values) + 1) for grid, values in found.items()}
