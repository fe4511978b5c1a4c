"""The difference of two profiles as a page with a picture, as sentences and as a table."""

from __future__ import annotations

import pandas as pd

from depthgauge.profiling.difference import NOTHING, Difference
from depthgauge.reports import svg
from depthgauge.reports.numbers import interval, quantity
from depthgauge.reports.pages import HTML
from depthgauge.reports.tables import Column, Table, csv_text

_DRAWN = 16  # bars, the rest is one more


def page(change: Difference) -> str:
    """The page: what changed, its picture, and every operator."""
    before, after = _names(change)
    return HTML.get_template("difference.html.j2").render(
        before=before,
        after=after,
        sentences=sentences(change),
        settings=change.settings,
        picture=svg.bars(_bars(change), f"change of a step's time by operator, {before} to {after}"),
        table=table(change),
    )


def sentences(change: Difference) -> tuple[str, ...]:
    """Say how much the step changed and which operators did it."""
    before, after = _names(change)
    first, second = (quantity(profile.seconds.value, "s") for profile in (change.before, change.after))
    ratio = change.ratio
    size = interval(ratio.value, *((ratio.low, ratio.high) if ratio.has_interval else (None, None)))
    said = [f"A step of {after} takes {second}, one of {before} {first}: {size} times as long."]
    if not change.certain:
        said.append("The interval holds 1: these profiles do not tell that the step changed.")
    return (*said, *_largest(change))


def _largest(change: Difference) -> list[str]:
    """Name the operators that changed most; as parts of the whole where the whole is known to have changed."""
    if not change.certain:
        rows = change.rows.head(3)
        named = [f"{name} {_signed(size)}" for name, size in zip(rows["name"], rows["difference"], strict=True)]
        return [f"The largest changes: {', '.join(named)}."]
    with_it = change.rows[change.rows["difference"] * change.seconds > 0].head(3)
    against = change.rows[change.rows["difference"] * change.seconds < 0].head(1)
    parts = (
        f"{name} {_signed(size)} ({size / change.seconds:.0%})"
        for name, size in zip(with_it["name"], with_it["difference"], strict=True)
    )
    said = [f"The step changes by {_signed(change.seconds)}, most of it in {', '.join(parts)}."]
    said += [
        f"Against it: {name} {_signed(size)}."
        for name, size in zip(against["name"], against["difference"], strict=True)
        if abs(size) > abs(change.seconds) / 10
    ]
    return said


def table(change: Difference) -> Table:
    """Every operator, the largest change first."""
    rows = change.rows
    columns = (
        Column("operator", numeric=False, cells=tuple(map(str, rows["name"]))),
        Column("kind", numeric=False, cells=tuple("" if name == NOTHING else str(kind) for name, kind in _kinds(rows))),
        Column("before", numeric=True, cells=tuple(map(_time, rows["before"]))),
        Column("after", numeric=True, cells=tuple(map(_time, rows["after"]))),
        Column("change", numeric=True, cells=tuple(map(_signed, rows["difference"]))),
        Column("times", numeric=True, cells=tuple(map(_times, rows["before"], rows["after"]))),
        Column("calls", numeric=True, cells=tuple(map(_calls, rows["calls_before"], rows["calls_after"]))),
    )
    return Table("operators", "operators", csv_text(rows), columns, len(rows), shown=True)


def _names(change: Difference) -> tuple[str, str]:
    before, after = change.before.capture.label, change.after.capture.label
    return (before, after) if before != after else (f"{before} (first)", f"{after} (second)")


def _bars(change: Difference) -> list[svg.Bar]:
    rows = change.rows[change.rows["difference"] != 0]
    drawn = [(str(name), float(size)) for name, size in zip(rows["name"], rows["difference"], strict=True)]
    if len(drawn) > _DRAWN + 1:
        rest = drawn[_DRAWN:]
        drawn = [*drawn[:_DRAWN], (f"{len(rest)} others", sum(size for _, size in rest))]
    return [svg.Bar(name, size, _signed(size), "worse" if size > 0 else "better") for name, size in drawn]


def _kinds(rows: pd.DataFrame) -> zip[tuple[str, str]]:
    return zip(rows["name"], rows["kind"], strict=True)


def _time(seconds: float) -> str:
    return quantity(seconds, "s")


def _signed(seconds: float) -> str:
    return f"{'+' if seconds > 0 else '−' if seconds < 0 else ''}{quantity(abs(seconds), 's')}"


def _times(before: float, after: float) -> str:
    return f"{after / before:.2f}" if before > 0 else "new"


def _calls(before: float, after: float) -> str:
    return f"{before:g}" if before == after else f"{before:g} → {after:g}"
