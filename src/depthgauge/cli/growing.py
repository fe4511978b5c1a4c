"""A report that grows while a run goes on: each study is examined once, as soon as all its rows are there.

    with growing(directory, names, workers=2) as (follow, sections):
        running.run(..., observe=follow)
        kept = sections()                      # waits for the last one
    render(stored, studies, kept=kept)

Examining goes on in processes of its own, as many side by side as there are cores: it stops no worker, and what an
analysis sets reaches no chunk; while a chunk is timed, it rests.
"""

# ruff: noqa: PLC0415 - what examines a study is imported where that is done, and the workers start at once

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from depthgauge.cli import output
from depthgauge.foreign import describe_error

if TYPE_CHECKING:
    from depthgauge.discovery import Found
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
    """Processes that examine studies side by side, and write the pages of those that are examined.

    Args:
        directory: the run's.
        studies: the studies of the run.
        shown: called once with the place of `index.html`, when that is first there.
    """

    def __init__(self, directory: Path, studies: Sequence[str], shown: Callable[[Path], None] | None = None) -> None:
        self._directory = directory.absolute()
        self._studies = tuple(studies)
        self._shown = shown
        self._futures: dict[str, Future[Section | None]] = {}
        self._pages: Future[None] | None = None  # the last that were begun
        self._written = 0  # sections that they have

    def __enter__(self) -> Self:
        from depthgauge import environment, places

        self._executor = places.beside(min(len(self._studies), environment.cores()))
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
            self.examine(progress.ended)
        self._write()
        if progress.alone:
            self._rest()
            self._write()
            self._rest()
        self._show()

    def examine(self, name: str) -> None:
        """Begin to examine a study, all of whose rows are stored."""
        self._futures[name] = self._begun(examined, self._directory, name)

    def sections(self) -> dict[str, Section]:
        """The studies that were examined without an error, by name; waits for them, says what failed."""
        self._rest()
        if self._shown:
            self._write()
            self._rest()
        self._show()
        self._tell()
        return self._examined()

    def _begun(self, work: Callable[..., Any], *arguments: object) -> Future[Any]:
        """Begin what one of the processes is to do; it has failed where none is left."""
        try:
            return self._executor.submit(work, *arguments)
        except BrokenExecutor as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _rest(self) -> None:
        """Wait for what the processes do."""
        begun: list[Future[Any]] = [*self._futures.values()]
        if self._pages:
            begun.append(self._pages)
        wait(begun)

    def _examined(self) -> dict[str, Section]:
        done = [
            future
            for future in self._futures.values()
            if future.done() and not isinstance(future.exception(), Exception)
        ]
        return {section.name: section for future in done if (section := future.result()) is not None}

    def _tell(self) -> None:
        """Say which studies are examined once more at the end, and why; all pages are written then anyhow."""
        for name, future in self._futures.items():
            if error := future.exception():
                output.say(
                    f"{name}: examining it beside the run failed ({describe_error(error)}); it is examined once more"
                )
        if self._pages and (error := self._pages.exception()):
            output.say(f"the page did not grow to its end ({describe_error(error)}); it is written once more")

    def _write(self) -> None:
        """Begin the pages of all examined so far, unless others are being written, or have the same."""
        sections = self._examined()
        if len(sections) == self._written or not (self._pages is None or self._pages.done()):
            return
        self._written = len(sections)
        coming = tuple(name for name in self._studies if name not in sections)
        self._pages = self._begun(_write, self._directory, tuple(sections.values()), coming)

    def _show(self) -> None:
        page = self._directory / "report" / "index.html"
        if self._shown and self._pages and self._pages.done() and page.exists():
            self._shown(page)
            self._shown = None


def side_by_side(directory: Path, names: Sequence[str]) -> dict[str, Section]:
    """Examine stored studies in processes of their own; those that one of them cannot are not in the answer.

    Args:
        directory: the run's.
        names: studies that are stored in it.
    """
    with Growing(directory, names) as page:
        for name in names:
            page.examine(name)
        return page.sections()


# -- in a process of its own -------------------------------------------------------------------------------------------


def examined(directory: Path, name: str) -> Section | None:
    """Examine a stored study; None where its section is not to be kept."""
    from depthgauge import store
    from depthgauge.reports.content import examine

    stored = store.read(directory)
    study = _loaded(stored, name)
    if study is None:
        return None
    section, errors = examine(stored, name, study, lambda _: None)
    return None if errors else section


def _write(directory: Path, sections: Sequence[Section], coming: Sequence[str]) -> None:
    """Write the pages of these studies; they say which are to come."""
    from depthgauge import store
    from depthgauge.reports import rendering

    rendering.render_partly(store.read(directory), sections, coming)


def _loaded(stored: Stored, name: str) -> Study | None:
    """The study, by the code that its rows were made with; None where that is not to be had here."""
    from depthgauge import discovery
    from depthgauge.study import StudyError

    entry = stored.run["request"][name]
    try:
        found = discovery.located(entry.get("origin"), name, outside=stored.directory, root=entry.get("root"))
        study = found.load()
    except (StudyError, discovery.UnknownStudyError):
        return None
    return study if is_todays(stored, found) else None


def is_todays(stored: Stored, found: Found) -> bool:
    """Tell whether a study's rows were made by the code that is there now, as far as that is known."""
    from depthgauge import environment

    entry, fingerprint = stored.run["request"][found.name], stored.run["fingerprint"]
    made = (entry if found.foreign else fingerprint).get("source")
    return made in {None, found.source() if found.foreign else environment.source()}
