"""`depthgauge profile diff` and `depthgauge profile trace`: pages made from stored profiles and traces."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import output
from depthgauge.cli.answers import finite
from depthgauge.cli.errors import nearest, sentences
from depthgauge.cli.naming import file_name
from depthgauge.cli.writing import check_page, write_page

if TYPE_CHECKING:
    from depthgauge.profiling import Profile
    from depthgauge.profiling.difference import Difference
    from depthgauge.reports.tables import Table

_SHOWN = 20  # operators that are printed
_TRACE = "*.pt.trace.json*"


class WithPages(click.Command):
    """A command whose first argument may be one of these commands in place of a model."""

    @property
    def commands(self) -> dict[str, click.Command]:
        """The commands by name."""
        return {"diff": diff, "trace": trace}

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        """The context of the command itself, or of the one that the first argument names."""
        inner = self.commands.get(args[0]) if args else None
        if inner is None:
            return super().make_context(info_name, args, parent, **extra)
        return inner.make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option(
    "--from",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("runs", "profile"),
    show_default=True,
    metavar="DIR",
    help="Directory whose profiles are named by label.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File for the page.  [default: DIR/differences/A--B.html]",
)
@click.option("--json", "as_json", is_flag=True, help="For programs; writes no page.")
def diff(*, before: str, after: str, folder: Path, page: Path | None, as_json: bool) -> None:
    r"""Show where a training step became slower or faster from profile A to profile B, operator by operator.

    A and B are labels of profiles in DIR, files DIR/profiles/LABEL.json, or directories with one profile each. The page
    has a picture of the changes and all operators.

    \b
    Examples:
        depthgauge profile diff mlp mlp-bfloat16
        depthgauge profile diff runs/before runs/after
    """
    with sentences():
        from depthgauge.profiling import difference
        from depthgauge.reports import profile_difference

        if page:
            check_page(page)
        paths = [_stored(name, folder) for name in (before, after)]
        change = difference(*map(_profile, paths))
        if as_json:
            output.tell_json(difference_json(change))
            return
        label = file_name(f"{change.before.capture.label}--{change.after.capture.label}")
        place = page or paths[0].parent.parent / "differences" / f"{label}.html"
        write_page(place, profile_difference.page(change))
        for sentence in profile_difference.sentences(change):
            output.tell(output.plain(sentence))
        _print(profile_difference.table(change))
        output.tell(output.plain(str(place)))


def _print(table: Table) -> None:
    from rich import table as rich
    from rich.text import Text

    shown = rich.Table(box=None, pad_edge=False)
    for column in table.columns:
        shown.add_column(column.name, justify="right" if column.numeric else "left")
    for row in table.rows[:_SHOWN]:
        shown.add_row(*(Text(output.plain(cell)) for cell in row))
    output.tell_table(shown)
    if table.length > _SHOWN:
        output.tell(f"and {table.length - _SHOWN} more operators, which the page has")


def _stored(name: str, folder: Path) -> Path:
    """The file of a profile.

    Raises:
        click.UsageError: there is none, or more than one.
    """
    path = Path(name)
    if os.path.isfile(path):  # noqa: PTH113 - a name too long is none, and no error
        return path
    held = sorted((path / "profiles").glob("*.json")) if os.path.isdir(path) else []  # noqa: PTH112 - likewise
    if len(held) == 1:
        return held[0]
    if held:
        raise click.UsageError(f"{path} holds {len(held)} profiles; name one: {held[0]}")
    labelled = folder / "profiles" / f"{name}.json"
    if os.path.isfile(labelled):  # noqa: PTH113 - likewise
        return labelled
    known = [each.stem for each in sorted((folder / "profiles").glob("*.json"))]
    there = f"{folder} has {', '.join(known[:10])}" if known else f"there are no profiles in {folder}{nearest(folder)}"
    raise click.UsageError(f"there is no profile {name!r}, neither as a file or directory nor as a label; {there}")


def _profile(path: Path) -> Profile:
    from depthgauge.profiling import Capture, ProfileError, TraceError, analyse, read

    try:
        captured = Capture.read(path)
        trace = path.parent.parent / captured.trace
        output.say(f"{captured.label}: reading {trace}")
        return analyse(captured, read(trace))
    except (ProfileError, TraceError) as error:
        raise click.ClickException(str(error)) from error
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise click.ClickException(f"the trace of {path} cannot belong to it: {error}") from error


@click.command()
@click.argument("places", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRACE...")
@click.option(
    "--html", "page", type=click.Path(path_type=Path), metavar="FILE", help="File for the page of a single trace."
)
def trace(*, places: tuple[Path, ...], page: Path | None) -> None:
    r"""Write each TRACE as a page that opens without a network: threads and streams as rows, zoom, scroll, search.

    TRACE is a file of torch.profiler (NAME.pt.trace.json or .json.gz), or a directory: then every trace in it. The page
    lies beside its trace. A profile's report links to such a page already.

    \b
    Examples: the traces of a run with --profile; one file
        depthgauge profile trace runs/all-quick/traces
        depthgauge profile trace worker0.pt.trace.json --html worker0.html
    """
    with sentences():
        from depthgauge.profiling import TraceError, read
        from depthgauge.reports import trace_page

        found = [each for place in places for each in _traces(place)]
        if page and len(found) > 1:
            raise click.UsageError(f"--html names one file, and there are {len(found)} traces; leave it out")
        failed: list[TraceError] = []
        for path in found:
            stem = path.name.partition(".pt.trace.json")[0]
            twin = path.suffix == ".gz" and path.with_suffix("") in found  # the same trace twice, or another
            place = page or path.with_name(f"{stem}.gz.html" if twin else f"{stem}.html")
            check_page(place)
            try:
                write_page(place, trace_page.page(read(path), stem))
                output.tell(output.plain(str(place)))
            except TraceError as error:  # the others are wanted
                failed.append(error)
        if failed:
            raise click.ClickException("; ".join(map(str, failed)))


def _traces(place: Path) -> Sequence[Path]:
    if not os.path.isdir(place):  # noqa: PTH112 - a name too long is none, and no error
        if not os.path.lexists(place):
            raise click.UsageError(f"there is no file or directory {place}{nearest(place)}")
        return [place]
    if found := sorted(place.rglob(_TRACE)):
        return found
    raise click.UsageError(f"there are no traces in {place}; depthgauge profile MODEL --out {place} makes one")


def difference_json(change: Difference) -> dict[str, Any]:
    """The difference for a program; times in seconds, null where there is none."""
    ratio = change.ratio
    return {
        "schema": 1,
        "before": change.before.capture.label,
        "after": change.after.capture.label,
        "ratio": {name: finite(getattr(ratio, name)) for name in ("value", "low", "high")},
        "seconds": [change.before.seconds.value, change.after.seconds.value],
        "settings": [list(each) for each in change.settings],
        "operators": change.rows.to_dict("records"),
    }
