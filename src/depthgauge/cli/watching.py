"""Display of `depthgauge run`: what it will do and for how long, the study under way, and what is left."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthgauge import costs
from depthgauge.cli import output

if TYPE_CHECKING:
    from depthgauge.progress import Progress

_LINE_EVERY = 10.0  # seconds between lines where there is no terminal


def intention(
    questions: Mapping[str, str], preset: str, seconds: float | None, out: Path, *, grows: bool, begun: bool = False
) -> str:
    """Say what a run will do, and for how long, in a sentence.

    Args:
        questions: study -> its question.
        preset: how much is measured.
        seconds: the estimate of all of it; None where nothing is known.
        out: the run directory.
        grows: whether the page is there before the end.
        begun: whether some of it may be finished already.
    """
    what = f"{len(questions)} studies" if len(questions) > 1 else next(iter(questions))
    long = f", {'at most ' if begun else ''}{costs.words(seconds)}" if seconds is not None else ""
    page = out / "report" / "index.html"
    when = "is there after the first of them, and grows" if grows else "is there at the end"
    return f"{what} at preset {preset}{long}; {page} {when}"


@dataclass
class Watch:
    """The display of one run.

    Args:
        questions: study -> its question.
        say: prints a line that stays.
    """

    questions: Mapping[str, str]
    say: Callable[[str], None]
    ended: int = 0
    shown: str = field(default="", init=False)

    def tell(self, progress: Progress) -> None:
        """Tell a note, and the study that has begun."""
        if progress.note:
            self.say(progress.note)
        self.ended += bool(progress.ended)
        if progress.study != self.shown and progress.done < progress.total and not progress.note:
            self.shown = progress.study
            self.say(f"{self.name(progress)}: {self.questions.get(progress.study, '')}".rstrip(": "))

    def name(self, progress: Progress) -> str:
        """Name the study under way, and its place among several."""
        several = len(self.questions) > 1
        return f"{progress.study} ({self.ended + 1} of {len(self.questions)})" if several else progress.study


def both(first: Callable[[Progress], None], second: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Make one observer of two."""

    def observe(progress: Progress) -> None:
        first(progress)
        second(progress)

    return observe


def once(text: str) -> Callable[[Progress], None]:
    """Make an observer that says this when the run has begun."""
    waiting = [text]

    def observe(_: Progress) -> None:
        while waiting:
            output.say(waiting.pop())

    return observe


@contextlib.contextmanager
def watching(questions: Mapping[str, str]) -> Iterator[Callable[[Progress], None]]:
    """Show a run's progress on stderr: a bar on a terminal, a line now and then elsewhere."""
    with _bar(questions) if sys.stderr.isatty() else contextlib.nullcontext(_lines(questions)) as observe:
        yield observe


@contextlib.contextmanager
def _bar(questions: Mapping[str, str]) -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Left(ProgressColumn):
        """Counts down between two chunks, which may be minutes apart."""

        max_refresh = 1.0

        def render(self, task: Task) -> Text:
            return Text(_left(task.fields["left"], time.monotonic() - task.fields["at"]))

    width = output.columns()
    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        Left(),
    )
    with Bar(*columns, console=Console(stderr=True, width=width), transient=True) as bar:
        task = bar.add_task("starting", total=None, failed="", left=None, at=time.monotonic())

        def say(line: str) -> None:
            bar.console.print(escape(output.plain(line)), highlight=False)

        watch = Watch(questions, lambda line: say(textwrap.shorten(line, 2 * width, placeholder=" ...")))

        def observe(progress: Progress) -> None:
            watch.tell(progress)
            bar.update(
                task,
                description=progress.study,
                completed=100 * progress.share if progress.done < progress.total else 100,
                total=100,
                failed=_failed(progress),
                left=progress.left if progress.done < progress.total else None,
                at=time.monotonic(),
            )

        yield observe


def _lines(questions: Mapping[str, str]) -> Callable[[Progress], None]:
    watch = Watch(questions, output.say)
    last = time.monotonic()

    def observe(progress: Progress) -> None:
        nonlocal last
        watch.tell(progress)
        if not progress.note and time.monotonic() - last >= _LINE_EVERY and progress.done < progress.total:
            last = time.monotonic()
            parts = (f"{100 * progress.share:.0f} % done", _left(progress.left), _failed(progress))
            output.say(f"{watch.name(progress)}: {', '.join(filter(None, parts))}")

    return observe


def _failed(progress: Progress) -> str:
    cases = "case" if progress.failed == 1 else "cases"
    return f"{progress.failed} {cases} failed" if progress.failed else ""


def _left(seconds: float | None, since: float = 0.0) -> str:
    """Spell what is left; an estimate that is over is none."""
    if seconds is None:
        return ""
    rest = seconds - since
    return f"{costs.words(rest)} left" if rest >= 1 else "nearly done" if since < 20 else "longer than expected"
