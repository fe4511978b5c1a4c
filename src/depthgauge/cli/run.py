"""`depthgauge run`: measures the unfinished chunks, and writes the report."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import output
from depthgauge.cli.errors import sentences
from depthgauge.cli.inputs import input_options
from depthgauge.cli.naming import file_name
from depthgauge.cli.numbers import SECONDS, SEEDS, WORKERS
from depthgauge.cli.report import load, render

if TYPE_CHECKING:
    from depthgauge.factories import Input, Target
    from depthgauge.running import Outcome, Progress, Request

_LINE_EVERY = 5.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class Options:
    """Options of the command line, by the names of the command's parameters."""

    studies: tuple[str, ...]
    preset: str
    seeds: int | None
    model: str | None
    asked: Input | None
    device: str
    workers: int | None
    dask: str | None
    out: Path | None
    profiled: bool
    fresh: bool
    sources: tuple[str, ...]
    time_limit: float | None


@click.command()
@click.argument("studies", nargs=-1, metavar="[STUDY]...")
@click.option(
    "--preset", default="quick", show_default=True, metavar="quick|standard|full", help="How much to measure."
)
@click.option("--seeds", type=SEEDS, metavar="N", help="Repetitions, in place of the preset's own.")
@click.option(
    "--model",
    metavar="MODEL",
    help="Run on this model alone: a name from `depthgauge list`, or your own package.module:factory.",
)
@input_options
@click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda[:i]|auto", help="Where tensors live.")
@click.option(
    "--workers",
    type=WORKERS,
    metavar="N",
    help="Processes; 0: none.  [default: one a core, on a GPU one]",
)
@click.option("--dask", metavar="ADDRESS", help="Run on a Dask cluster, by its scheduler's address.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Run directory; an old one is resumed.  [default: runs/STUDIES-PRESET]",
)
@click.option("--profile", "profiled", is_flag=True, help="Then trace one chunk of each study, under DIR/traces.")
@click.option("--fresh", is_flag=True, help="Forget what is stored in DIR; files that are not depthgauge's stay.")
@click.option(
    "--studies",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="Studies of your own: file, folder, package; may be repeated.",
)
@click.option(
    "--time-limit",
    type=SECONDS,
    metavar="SECONDS",
    help="Time limit of a chunk, in place of the study's.",
)
def run(**options: Any) -> None:
    r"""Run studies (all of them if none is named) and write the report.

    Run the same command again, and what is finished is not measured again.

    \b
    Examples:
        depthgauge run
        depthgauge run gradient_flow --preset standard --out runs/night
        depthgauge run my_study --studies my_study.py
        depthgauge run --model my_project.nets:make
    """
    _run(Options(**options))


def _run(options: Options) -> None:
    if options.dask and options.workers is not None:
        raise click.UsageError("--dask and --workers exclude each other: the cluster has its own workers")
    if options.asked and options.model is None:
        raise click.UsageError(f"{options.asked.source} describes a model's inputs: name the model by --model")
    with sentences():
        from depthgauge.store import storage_errors

        request = _request(options)
        out = options.out or default_directory(options.studies, request.preset, request.device, request.model)
        with _resumable(out), _display() as observe:
            outcome = _measure(options, request, out, observe)
        _summary(outcome)
        with _resumable(out), storage_errors(f"the report of {out} cannot be written"):
            _report(outcome, options.sources)
        if options.profiled:
            _trace(outcome, request.device)
    if not outcome.rows:
        raise click.ClickException(
            f"nothing was measured: {_failures(outcome)}{_first(outcome)}; the report says why, case by case"
        )
    if outcome.unmeasured:
        raise click.ClickException(f"nothing was measured in {_named(outcome)}; the report says why, case by case")


def _request(options: Options) -> Request:
    from depthgauge import models
    from depthgauge.running import Request

    target = None if options.model is None else models.target(options.model, options.asked)
    return Request(options.preset, options.seeds, target, options.device, options.time_limit)


def _measure(options: Options, request: Request, out: Path, observe: Callable[[Progress], None]) -> Outcome:
    from depthgauge import running

    return running.run(
        *dict.fromkeys(options.studies),
        out=out,
        request=request,
        workers=options.workers,
        place=running.dask(options.dask) if options.dask else None,
        fresh=options.fresh,
        sources=options.sources,
        observe=observe,
    )


def default_directory(studies: Sequence[str], preset: str, device: str, model: Target | None = None) -> Path:
    """Name the default directory of a request: `runs/all-quick`, `runs/gradient_flow-standard-resnet18-cuda`."""
    parts = ["+".join(dict.fromkeys(studies)) or "all", preset]
    parts += [] if model is None else [model.spec.replace(":", ".")]
    parts += [] if model is None or model.input is None else [str(model.input).replace(" ", "_")]
    parts += [] if device == "cpu" else [device.replace(":", "")]
    return Path("runs", file_name("-".join(parts)))


@contextlib.contextmanager
def _resumable(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = f"finished chunks are kept in {shlex.quote(str(out))}"
        interrupt.message = f"stopped; {kept}: run the same command to resume"  # type: ignore[attr-defined]
        raise


def _failures(outcome: Outcome) -> str:
    failed = ", ".join(f"{cases} case(s) {status}" for status, cases in outcome.failed.items())
    requests = (outcome.stored.run["request"][name] for name in outcome.studies)
    refused = (reason for request in requests for reason in request.get("tried", {}).values() if reason)
    return failed or next(refused, "no rows")


def _first(outcome: Outcome) -> str:
    """Quote in brackets the message of the first case without a result."""
    first = next((message for name in outcome.studies for message in _messages(outcome, name)), "")
    return f" ({first})" if first else ""


def _named(outcome: Outcome) -> str:
    """The studies without a single result, each with the first reason."""
    return ", ".join(f"{name} ({next(_messages(outcome, name), 'no rows')})" for name in outcome.unmeasured)


def _messages(outcome: Outcome, name: str) -> Iterator[str]:
    return (message for message in outcome.stored.frame(name)["message"] if message)


def _summary(outcome: Outcome) -> None:
    from depthgauge.encoding import TRANSIENT

    reused = f", {outcome.reused} kept from before" if outcome.reused else ""
    failed = f"; without a result: {_failures(outcome)}" if outcome.failed else ""
    transient = sum(cases for status, cases in outcome.failed.items() if status in TRANSIENT)
    again = f"; run the same command again to retry {transient} of them" if transient else ""
    output.say(f"{outcome.ran} chunk(s) run{reused}{failed}{again}")


def _trace(outcome: Outcome, device: str) -> None:
    from depthgauge import environment
    from depthgauge.profiling.capture import ProfileError
    from depthgauge.profiling.chunks import traces

    try:
        for study, path in traces(outcome, environment.device(device)):
            output.say(f"{study}: {path}")
    except ProfileError as error:
        raise click.ClickException(str(error)) from error


def _report(outcome: Outcome, sources: Sequence[str]) -> None:
    """Report on all studies in the directory, those of earlier runs included."""
    from depthgauge import code

    for name in outcome.studies:
        try:
            code.check_unchanged(outcome.origins[name] or "")
        except code.ChangedError:
            output.say(f"{name}: its code changed during the run; rows and report come from the earlier code")
    earlier = [name for name in outcome.stored.studies if name not in outcome.studies]
    render(outcome.stored, {**load(outcome.stored, earlier, sources), **outcome.studies})


# -- progress ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _display() -> Iterator[Callable[[Progress], None]]:
    with _bar() if sys.stderr.isatty() else contextlib.nullcontext(_lines()) as observe:
        yield observe


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=Console(stderr=True, width=output.columns()), transient=True) as bar:
        task = bar.add_task("starting", total=None, failed="", left="")

        def observe(progress: Progress) -> None:
            if progress.note:
                bar.console.print(escape(progress.note), highlight=False)
            bar.update(
                task,
                description=progress.study,
                completed=progress.done,
                total=progress.total,
                failed=f"{progress.failed} failed" if progress.failed else "",
                left=_left(progress),
            )

        yield observe


def _lines() -> Callable[[Progress], None]:
    last = 0.0

    def observe(progress: Progress) -> None:
        nonlocal last
        if progress.note:
            output.say(progress.note)
        elif time.monotonic() - last >= _LINE_EVERY or progress.done == progress.total:
            last = time.monotonic()
            failed = f", {progress.failed} case(s) failed" if progress.failed else ""
            left = _left(progress)
            output.say(
                f"{progress.study}: {progress.done}/{progress.total} chunks{failed}{', ' + left if left else ''}"
            )

    return observe


def _left(progress: Progress) -> str:
    if progress.left is None or progress.done == progress.total:
        return ""
    minutes, seconds = divmod(max(1, round(progress.left)), 60)
    return f"about {f'{minutes} min ' if minutes else ''}{seconds} s left"
