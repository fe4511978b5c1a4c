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


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--studies", "sources", multiple=True, metavar="SOURCE", help="Present place of your own studies.")
def report(directory: Path, sources: tuple[str, ...]) -> None:
    r"""Render the report of a run directory, or of one with profiles, again; nothing is run.

    \b
    Example: after a study's `analyse` or `plot` has changed
        depthgauge report runs/all-quick
    """
    with sentences():
        if not any(os.path.lexists(directory / name) for name in ("run.json", "chunks")):
            if not os.path.isdir(directory / "profiles"):  # noqa: PTH112 - a name too long is none, and no error
                is_folder = os.path.isdir(directory)  # noqa: PTH112 - likewise
                why = "it holds no run.json and no profiles/" if is_folder else "there is no such directory"
                raise click.UsageError(f"{directory} holds neither a run nor profiles: {why}{nearest(directory)}")
            from depthgauge.cli.profile import render_profiles

            render_profiles(directory)
            return
        from depthgauge import store
        from depthgauge.store import storage_errors

        stored = store.read(directory)
        if stored.lost:
            output.say(f"{directory / 'run.json'} was lost; the report is made from the rows that are left")
        studies = load(stored, stored.studies, sources)
        with storage_errors(f"the report of {directory} cannot be written"):
            render(stored, studies)


def load(stored: Stored, names: Iterable[str], sources: Sequence[str]) -> dict[str, Study]:
    """Load the studies of a run that can be loaded, and warn of the others and of changed code.

    Named by `sources` first, then where depthgauge or an installed distribution has them, then where they were when the
    run was made, but never in the run's own directory, which may have come from anybody.
    """
    from depthgauge import discovery, environment
    from depthgauge.study import StudyError

    every = {study.name: study for study in discovery.discover(sources)}
    studies: dict[str, Study] = {}
    for name in names:
        entry = stored.run["request"][name]
        try:
            study = every.get(name) or discovery.located(entry.get("origin"), name, outside=stored.directory)
            studies[name] = study.load()
        except (StudyError, discovery.UnknownStudyError) as error:
            output.say(f"{name}: {error}")
            continue
        made = entry.get("source") if study.foreign else stored.run["fingerprint"].get("source")
        if made not in {None, study.source() if study.foreign else environment.source()}:
            output.say(f"{name}: its code has changed since its rows were measured; the analysis is today's")
    return studies


def render(stored: Stored, studies: Mapping[str, Study], kept: Mapping[str, Section] | None = None) -> None:
    """Write the report, and print what was found and the places of index.html and report.md.

    Args:
        stored: the run.
        studies: its studies.
        kept: those that are examined already.

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
    if problem:
        raise click.ClickException(str(problem)) from problem
