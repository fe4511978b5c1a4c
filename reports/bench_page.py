"""Two stored runs of the benchmark suite as a page: a picture of every ratio, and the history of every benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from depthgauge.reports import svg
from depthgauge.reports.numbers import NOTHING
from depthgauge.reports.pages import HTML
from depthgauge.stats import Pace
from depthgauge.timing.stored import Past, Row, Sessions, StoredRun

_TONES = {Pace.SLOWER: "worse", Pace.FASTER: "better", Pace.SAME: "same", Pace.INCONCLUSIVE: "same"}
_ORDER = (Pace.SLOWER, Pace.FASTER, Pace.INCONCLUSIVE, Pace.SAME)


@dataclass(frozen=True)
class _Shown:
    """A benchmark as the table has it."""

    name: str
    ratio: str
    interval: str
    answer: str
    why: str
    tone: str


@dataclass(frozen=True)
class _Line:
    """The history of a benchmark; seconds."""

    name: str
    picture: Markup
    fastest: float
    slowest: float
    newest: float


def page(before: StoredRun, after: StoredRun, sessions: Sessions, past: Sequence[Past], resolution: str) -> str:
    """The page.

    Args:
        before: run A.
        after: run B.
        sessions: what `timing.stored.compare` says of them.
        past: the stored runs, the two among them, in the order of time.
        resolution: the sentence on what the references differ by.
    """
    rows = sorted(sessions.rows, key=lambda row: (_ORDER.index(row.pace), -_size(row)))
    names = [row.name for row in (*rows, *sessions.references)]
    compared = {run.path.resolve() for run in (before, after)}
    marked = [place for place, run in enumerate(past) if run.path.resolve() in compared]
    every = [*((row, False) for row in rows), *((row, True) for row in sessions.references)]
    return HTML.get_template("compare.html.j2").render(
        before=before.path.stem,
        after=after.path.stem,
        tally=_tally(rows),
        resolution=resolution,
        picture=svg.forest(
            [_span(row, reference=reference) for row, reference in every],
            f"time of {after.path.stem} over {before.path.stem}, benchmark by benchmark",
            sessions.resolution,
        ),
        rows=[_shown(row, reference=reference) for row, reference in every],
        only=sessions.only,
        past=past,
        lines=[_line(name, past, marked) for name in names] if len(past) > 1 else [],
    )


def _size(row: Row) -> float:
    return abs(math.log(row.ratio)) if row.ratio > 0 else 0.0


def _tally(rows: Sequence[Row]) -> str:
    counts = {pace: sum(row.pace is pace for row in rows) for pace in _ORDER}
    parts = [f"{count} {pace}" for pace, count in counts.items() if count]
    said = f"Of {len(rows)} benchmarks: {', '.join(parts)}."
    worst = [row for row in rows if row.pace is Pace.SLOWER]
    return said + (f" The slowest in comparison: {worst[0].name}, {worst[0].ratio:.3g} times as long." if worst else "")


def _span(row: Row, *, reference: bool = False) -> svg.Span:
    tone = "same" if reference else _TONES[row.pace]
    text = "reference" if reference else f"{row.ratio:.3f}" if math.isfinite(row.ratio) else NOTHING
    return svg.Span(row.name.rpartition("/")[2], row.ratio, row.low, row.high, text, tone)


def _shown(row: Row, *, reference: bool = False) -> _Shown:
    return _Shown(
        name=row.name,
        ratio=f"{row.ratio:.3f}" if math.isfinite(row.ratio) else NOTHING,
        interval=f"{row.low:.3f} to {row.high:.3f}" if math.isfinite(row.high) else "none",
        answer="reference" if reference else str(row.pace),
        why="" if reference else row.why,
        tone="" if reference else _TONES[row.pace],
    )


def _line(name: str, past: Sequence[Past], marked: Sequence[int]) -> _Line:
    values = [run.seconds.get(name, math.nan) for run in past]
    known = [value for value in values if math.isfinite(value)] or [math.nan]
    picture = svg.trend(values, marked, f"history of {name}")
    return _Line(name, picture, min(known), max(known), known[-1])
