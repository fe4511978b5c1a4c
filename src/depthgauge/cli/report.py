"""`depthgauge report`: renders a stored run or profiles again."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from depthgauge.cli import ending, output
from depthgauge.cli.errors import nearest, sentences

if TYPE_CHECKING:
    from depthgauge.reports.content import Section
    from depthgauge.store import Stored
    from depthgauge.study import Study

_WORTH_WHILE = 100  # chunks, of which another process, which takes two seconds to begin, spares more


@click.command()
@click.argument("directories", nargs=-1, required=True, metavar="DIRECTORY...", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory of the report, where it is not to be the run's own; needed for one on several runs.",
)
@click.option("--studies", "sources", multiple=True, metavar="SOURCE", help="Present place of your own studies.")
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
def report(directories: tuple[Path, ...], out: Path | None, sources: tuple[str, ...], opened: bool) -> None:
    r"""Render the report of a run directory, or of one with profiles, again; nothing is run.

    Of several run directories it makes one report on the studies of all.

    \b
    Examples: after a study's `analyse` or `plot` has changed; two runs, each with studies of its own
        depthgauge report runs/all-quick
        depthgauge report runs/precision-standard runs/activation-full --out runs/both
    """
    if len(directories) > 1 and out is None:
        raise click.UsageError("a report on several runs belongs to none of them: name its directory by --out")
    with sentences():
        profiled = [directory for directory in directories if not _holds_run(directory)]
        if profiled:
            _render_profiles(profiled[0], directories, out, sources)
            if opened:
                ending.show(profiled[0] / "report" / "index.html")
            return
        from depthgauge.store import read, storage_errors

        runs = [read(directory) for directory in directories]
        where = out or directories[0]
        with storage_errors(f"the report of {where} cannot be written"):
            _render(runs, out, sources, opened=opened)


def _holds_run(directory: Path) -> bool:
    """Tell a run directory from one with profiles.

    Raises:
        click.UsageError: it is neither.
    """
    if any(os.path.lexists(directory / name) for name in ("run.json", "chunks")):
        return True
    if os.path.isdir(directory / "profiles"):  # noqa: PTH112 - a name too long is none, and no error
        return False
    why = "there is no such directory"
    if os.path.lexists(directory):
        is_folder = os.path.isdir(directory)  # noqa: PTH112 - likewise
        why = "it holds no run.json and no profiles/" if is_folder else "it is a file; name the directory of the run"
    raise click.UsageError(f"{directory} holds neither a run nor profiles: {why}{nearest(directory)}")


def _render_profiles(directory: Path, directories: Sequence[Path], out: Path | None, sources: Sequence[str]) -> None:
    from depthgauge.cli.profile import render_profiles

    if len(directories) > 1 or out:
        raise click.UsageError(f"{directory} holds profiles, which are rendered alone and in their place")
    if sources:
        raise click.UsageError(f"{directory} holds profiles, to which no study belongs: leave --studies out")
    render_profiles(directory)


def _render(runs: Sequence[Stored], out: Path | None, sources: Sequence[str], *, opened: bool) -> None:
    from depthgauge.joining import asked, join
    from depthgauge.runfile import left_out

    studies: dict[str, Study] = {}
    for stored in runs:
        if stored.lost:
            lost = f"{stored.directory / 'run.json'} was lost; the report is made from the rows that are left"
            output.say(f"{lost}{left_out(stored.run)}")
    joined = asked(runs)[0] if out is None else join(runs, out)
    for stored in runs:
        studies |= load(stored, stored.studies, sources)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    render(joined, studies, _examined(joined, studies) if out is None and not sources else None, opened=opened)


def _examined(stored: Stored, studies: Mapping[str, Study]) -> dict[str, Section]:
    """Several studies, examined side by side; none where they are too small to be worth other processes."""
    from depthgauge import environment
    from depthgauge.cli.growing import side_by_side

    names = [name for name in stored.studies if name in studies]
    if min(len(names), environment.cores()) < 2 or sum(len(stored.chunks(name)) for name in names) < _WORTH_WHILE:
        return {}
    output.show("analysing and drawing")
    try:
        return side_by_side(stored.directory, names)
    finally:
        output.show("")


def load(stored: Stored, names: Iterable[str], sources: Sequence[str]) -> dict[str, Study]:
    """Load the studies of a run that can be loaded, and warn of the others and of changed code.

    Named by `sources` first, then where depthgauge or an installed distribution has them, then where they were when the
    run was made, but never in the run's own directory, which may have come from anybody.
    """
    from depthgauge import discovery
    from depthgauge.cli.growing import is_todays
    from depthgauge.study import StudyError

    every = {study.name: study for study in discovery.discover(sources)}
    studies: dict[str, Study] = {}
    for name in names:
        entry = stored.run["request"][name]
        try:
            study = every.get(name) or discovery.located(
                entry.get("origin"), name, outside=stored.directory, root=entry.get("root")
            )
            studies[name] = study.load()
        except (StudyError, discovery.UnknownStudyError) as error:
            output.say(f"{name}: {error}")
            continue
        if not is_todays(stored, study):
            output.say(f"{name}: its code has changed since its rows were measured; the analysis is today's")
    return studies


def render(
    stored: Stored, studies: Mapping[str, Study], kept: Mapping[str, Section] | None = None, *, opened: bool = False
) -> None:
    """Write the report, and print what was found and the places of index.html and report.md.

    Args:
        stored: the run.
        studies: its studies.
        kept: those that are examined already.
        opened: show the page in a browser, also where a study's part of it is not complete.

    Raises:
        click.ClickException: a study's part of the report is not complete, and the rest is written; or nothing is,
            since it would lose what an earlier report has.
    """
    from depthgauge.reports import IncompleteReportError, LostStudyError
    from depthgauge.reports import render as write

    problem = None
    sections = dict(kept or {})
    try:
        path = write(stored, studies, progress=output.show, kept=sections)
    except IncompleteReportError as error:
        path, problem = error.path, error
    except LostStudyError as error:
        raise click.ClickException(str(error)) from error
    finally:
        output.show("")
    ending.tell(path, [*sections.values()])
    if opened:
        ending.show(path.with_name("index.html"))
    if problem:
        raise click.ClickException(str(problem)) from problem
