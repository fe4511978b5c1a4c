"""A trace as one HTML file that opens without a network: threads and streams as rows, with zoom, scroll and search.

    page(read(path), "mlp")

Times are nanoseconds since the trace's first event.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from depthgauge.profiling.kinds import kernel_kind, operator_kind
from depthgauge.reports.escaping import clean
from depthgauge.reports.numbers import quantity
from depthgauge.reports.pages import HTML, script
from depthgauge.reports.profile_figures import GROUPS, group
from depthgauge.trace import PHASE, Trace

_MOST = 120_000  # events of a page, 3 MB of it; the shortest are left out
_LISTED = 60  # names of the table
_RANGES = "steps and ranges"
_NANO = 1e9
# Range, and then the groups of work: the colour of the bar, and that of what is written on it.
_COLOURS = ("#D9D9D9", *(GROUPS | {"other": "#757575"}).values())  # that of `other` is lost on a dark page
_TEXTS = ("#222222", "#FFFFFF", "#FFFFFF", "#222222", "#222222", "#FFFFFF")


@dataclass(frozen=True)
class Event:
    """A bar of the timeline; times in nanoseconds since the trace's first event."""

    row: str
    name: str
    group: int
    start: int
    end: int
    shapes: str = ""


@dataclass(frozen=True)
class Listed:
    """A name of the table; seconds."""

    name: str
    row: str
    calls: int
    seconds: float
    longest: float


def page(trace: Trace, title: str) -> str:
    """The page, with its data and its script inside: it loads nothing."""
    events = sorted(_events(trace), key=lambda event: (event.start, -event.end))
    shown = events
    if len(events) > _MOST:
        least = sorted(event.end - event.start for event in events)[-_MOST]
        shown = [event for event in events if event.end - event.start >= least][:_MOST]
    listed = _listed(events)
    return HTML.get_template("trace.html.j2").render(
        title=title,
        said=_said(trace, events, len(events) - len(shown)),
        groups=list(zip(("range of the program", *GROUPS), _COLOURS, strict=True)),
        steps=bool(trace.steps),
        events=len(shown),
        table=listed[:_LISTED],
        left_out=max(0, len(listed) - _LISTED),
        data=Markup(_as_json(trace, shown)),  # noqa: S704 -- no "<" is left in it
        **script("trace.js"),
    )


def _events(trace: Trace) -> Iterator[Event]:
    groups = {name: 1 + place for place, name in enumerate(GROUPS)}
    for span in trace.ranges:
        yield Event(_RANGES, clean(span.name.removeprefix(PHASE)), 0, _nano(span.start), _nano(span.end))
    threads = sorted({operator.thread for operator in trace.operators}, key=str)
    names = {thread: f"thread {thread[1]}" if len(threads) > 1 else "operators" for thread in threads}
    for operator in trace.operators:
        yield Event(
            clean(names[operator.thread]),
            clean(operator.name),
            groups[group(operator_kind(operator.name))],
            _nano(operator.start),
            _nano(operator.end),
            ", ".join("×".join(map(str, shape)) for shape in operator.shapes),
        )
    for work in trace.device:
        kind = groups[group(kernel_kind(work.name))]
        yield Event(clean(f"stream {work.stream}"), clean(work.name), kind, _nano(work.start), _nano(work.end))


def _nano(seconds: float) -> int:
    return round(seconds * _NANO)


def _said(trace: Trace, events: Sequence[Event], left_out: int) -> str:
    if not events:
        return "The trace holds no operator, no range and no device work."
    rows = dict.fromkeys(event.row for event in events)
    parts = [
        f"{len(events):,} events in {quantity(_end(events) / _NANO, 's')}, in {len(rows)} rows",
        f"{len(trace.steps)} steps of the profiler" if trace.steps else "",
        f"the {left_out:,} shortest are left out of the drawing" if left_out else "",
    ]
    return f"{'; '.join(filter(None, parts))}. The profiler lengthens short operators. This file needs no network."


def _end(events: Sequence[Event]) -> int:
    return max((event.end for event in events), default=0)


def _listed(events: Sequence[Event]) -> list[Listed]:
    durations: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in events:
        durations[event.name, event.row].append(event.end - event.start)
    listed = [
        Listed(name, row, len(each), sum(each) / _NANO, max(each) / _NANO) for (name, row), each in durations.items()
    ]
    return sorted(listed, key=lambda one: (-one.seconds, one.name))


def _as_json(trace: Trace, events: Sequence[Event]) -> str:
    """The drawing's data: rows in the order steps, threads, streams; no character of it ends a script."""
    names: dict[tuple[str, int], int] = {}
    shapes: dict[str, int] = {"": 0}
    rows: dict[str, list[Event]] = {}
    for event in sorted(events, key=lambda event: (event.row != _RANGES, event.row.startswith("stream"))):
        rows.setdefault(event.row, []).append(event)
    data = {
        "end": _end(events),
        "steps": [[_nano(step.start), _nano(step.end)] for step in trace.steps],
        "rows": [_row(name, each, names, shapes) for name, each in rows.items()],
        "names": [list(name) for name in names],
        "shapes": list(shapes),
        "colours": _COLOURS,
        "texts": _TEXTS,
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _row(name: str, events: Sequence[Event], names: dict[tuple[str, int], int], shapes: dict[str, int]) -> Any:
    """One row: its events as five numbers each, stacked where one lies inside another."""
    flat: list[int] = []
    running: list[int] = []  # ends of the events that the next may lie inside of
    before, deepest = 0, 0
    for event in events:
        while running and running[-1] <= event.start:
            running.pop()
        number = names.setdefault((event.name, event.group), len(names))
        shape = shapes.setdefault(event.shapes, len(shapes))
        flat += [event.start - before, event.end - event.start, number, len(running), shape]
        running.append(event.end)
        before, deepest = event.start, max(deepest, len(running))
    return {"name": name, "deep": deepest, "events": flat}
