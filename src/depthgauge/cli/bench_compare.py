"""`depthgauge bench compare`: two stored runs of the suite."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import output
from depthgauge.cli.answers import (
    NothingMeasuredError,
    as_factor,
    exit_code,
    finite,
    json_option,
    margin_option,
    percent,
)
from depthgauge.cli.errors import sentences
from depthgauge.cli.writing import check_page, write_page

if TYPE_CHECKING:
    from depthgauge.timing.stored import Row, Sessions, StoredRun

_PAST = 40  # runs of a history


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@margin_option
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page: a picture of every ratio, and the history of every benchmark.",
)
@json_option
@click.pass_context
def compare(
    context: click.Context, *, before: str, after: str, margin: float, page: Path | None, as_json: bool
) -> None:
    r"""Compare two stored runs, benchmark by benchmark: B against A.

    A run is a file of pytest-benchmark, or the beginning of a name in .benchmarks/. Two sessions were not interleaved;
    what the machine did differently is in every ratio. The page takes its history from the folders of
    A and B. `depthgauge bench ab` separates code from machine.

    Exit codes: 0 nothing is slower, 3 something is, 4 an answer is missing, 5 the runs share no benchmark.

    \b
    Example: this branch against what was stored before
        depthgauge bench compare 0001 after.json
        depthgauge bench compare 0001 0002 --html compare.html
    """
    from depthgauge.timing import stored

    if page:
        check_page(page)
    try:
        runs = stored.read(before), stored.read(after)
    except stored.StoredRunError as error:
        raise click.UsageError(str(error)) from error
    sessions = stored.compare(*runs, margin=as_factor(margin))
    if not sessions.rows:
        raise NothingMeasuredError(f"{before} and {after} share no benchmark that could be compared")
    if page:
        _write(page, runs, sessions)
    if as_json:
        output.tell_json(_sessions(sessions))
    else:
        _print_sessions(sessions)
        if page:
            output.tell(output.plain(str(page)))
    context.exit(exit_code(row.pace for row in sessions.rows))


def _write(page: Path, runs: tuple[StoredRun, StoredRun], sessions: Sessions) -> None:
    from depthgauge.reports import bench_page
    from depthgauge.timing import stored

    own = {run.path.resolve() for run in runs}
    beside = (file for folder in dict.fromkeys(run.path.parent for run in runs) for file in folder.glob("*.json"))
    others = stored.readable((file for file in beside if file.resolve() not in own), _PAST)
    text = bench_page.page(*runs, sessions, stored.history([*runs, *others]), _resolution(sessions.resolution))
    with sentences():
        write_page(page, text)


def _sessions(sessions: Sessions) -> dict[str, Any]:
    def as_dict(row: Row) -> dict[str, Any]:
        return {
            "name": row.name,
            "ratio": finite(row.ratio),
            "low": finite(row.low),
            "high": finite(row.high),
            "verdict": str(row.pace),
            "why": row.why,
        }

    return {
        "schema": 1,
        "resolution": finite(sessions.resolution),
        "references": [as_dict(row) for row in sessions.references],
        "benchmarks": [as_dict(row) for row in sessions.rows],
        "only_in_one": list(sessions.only),
    }


def _print_sessions(sessions: Sessions) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("benchmark", "B / A", "99 % interval", "", "", box=None, pad_edge=False)
    for row in (*sessions.references, *sessions.rows):
        pace = "reference" if row in sessions.references else str(row.pace)
        why = "" if row in sessions.references else row.why
        table.add_row(
            Text(output.plain(row.name)),
            f"{row.ratio:.3f}",
            f"{row.low:.3f} to {row.high:.3f}" if math.isfinite(row.high) else "none",
            Text(pace, style="bold"),
            Text(why),
        )
    output.tell_table(table)
    if sessions.only:
        output.tell(f"{len(sessions.only)} benchmark{'s' * (len(sessions.only) > 1)} in one of the runs alone")
    resolution = _resolution(sessions.resolution)
    output.tell(f"{resolution}; the runs were not interleaved; `depthgauge bench ab` separates code from machine.")


def _resolution(factor: float) -> str:
    if math.isnan(factor):
        return "No reference in both runs, so that nothing can be concluded"
    if math.isinf(factor):
        return "Too few rounds of the references, so that nothing can be concluded"
    return f"Smaller differences are not reported: the references differ by up to {percent(factor)} between them"
