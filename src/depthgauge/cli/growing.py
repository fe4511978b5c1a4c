"""A report that grows while a run goes on: each study is examined once, as soon as all its rows are there.

    with growing(directory, names, workers=2) as (follow, sections):
        running.run(..., observe=follow)
        kept = sections()                      # waits for the last one
    render(stored, studies, kept=kept)

Examining goes on in a process of its own, so that it stops no worker, and what an analysis sets reaches no chunk; while
a chunk is timed, it rests.
"""

# ruff: noqa: PLC0415 - what examines a study is imported where that is done, and the workers start at once

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from depthgauge.progress import Progress
    from depthgauge.reports.content import Section
    from depthgauge.store import Stored
    from depthgauge.study import Study

Follow = Callable[["Progress"], None]
Sections = Callable[[], "dict[str, Section]"]


@contextlib.contextmanager
def growing(
    directory: Path, studies: Sequence[str], workers: int | None, shown: Callable[[Path], None] | None = None
) -> Iterator[tuple[Follow, Sections]]:
    """Let the page grow while several studies are measured in other processes; else it is written at the end.

    Args:
        directory: the run's.
        studies: the studies of the run.
        workers: as `depthgauge.running.run` has it.
        shown: called once with the place of `index.html`, when that is first there.

    Yields:
        What follows the run's progress, and what returns the sections of the studies that were examined.
    """
    if not grows(studies, workers):
        yield (lambda _: None), dict
        return
    with Growing(directory, studies, shown) as page:
        yield page.follow, page.sections


def grows(studies: Sequence[str], workers: int | None) -> bool:
    """Tell whether the page of a run is there before its end."""
    return len(studies) > 1 and workers != 0


class Growing:
    """A process that examines studies, one after another, and writes the pages of those that it has.

    Args:
        directory: the run's.
        studies: the studies of the run.
        shown: called once with the place of `index.html`, when that is first there.
    """

    def __init__(self, directory: Path, studies: Sequence[str], shown: Callable[[Path], None] | None = None) -> None:
        self._directory = directory.absolute()
        self._coming = list(studies)
        self._shown = shown
        self._futures: list[Future[Section | None]] = []

    def __enter__(self) -> Self:
        from depthgauge import places

        self._executor = places.beside()
        self._processes = tuple((self._executor._processes or {}).values())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._executor.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in self._processes:
                process.kill()

    def follow(self, progress: Progress) -> None:
        """Examine what has ended; wait for that where the next chunk is timed."""
        if progress.ended:
            self._coming.remove(progress.ended)
            with contextlib.suppress(BrokenExecutor):  # what is not examined now is at the end
                task = self._executor.submit(_add, self._directory, progress.ended, tuple(self._coming))
                self._futures.append(task)
        if progress.alone:
            wait(self._futures)
        self._show()

    def sections(self) -> dict[str, Section]:
        """The studies that were examined without an error, by name; waits for them."""
        wait(self._futures)
        self._show()
        sections = (future.result() for future in self._futures if not isinstance(future.exception(), Exception))
        return {section.name: section for section in sections if section is not None}

    def _show(self) -> None:
        page = self._directory / "report" / "index.html"
        if self._shown and any(future.done() for future in self._futures) and page.exists():
            self._shown(page)
            self._shown = None


# -- in the process of its own -----------------------------------------------------------------------------------------

_sections: list[Section] = []


def _add(directory: Path, name: str, coming: tuple[str, ...]) -> Section | None:
    """Examine a study, and write the pages of all examined so far; None where its section is not to be kept."""
    from depthgauge import store
    from depthgauge.reports import rendering
    from depthgauge.reports.content import examine

    stored = store.read(directory)
    study = _loaded(stored, name)
    if study is None:
        return None
    section, errors = examine(stored, name, study, lambda _: None)
    if errors:
        return None
    _sections.append(section)
    rendering.render_partly(stored, _sections, coming)
    return section


def _loaded(stored: Stored, name: str) -> Study | None:
    """The study, by the code that its rows were made with; None where that is not to be had here."""
    from depthgauge import discovery
    from depthgauge.cli.report import is_todays
    from depthgauge.study import StudyError

    entry = stored.run["request"][name]
    try:
        found = discovery.located(entry.get("origin"), name, outside=stored.directory)
        study = found.load()
    except (StudyError, discovery.UnknownStudyError):
        return None
    return study if is_todays(stored, found) else None
