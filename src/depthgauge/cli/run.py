"""`depthgauge run`: measures the unfinished chunks, and writes the report."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import ending, output
from depthgauge.cli.errors import sentences
from depthgauge.cli.growing import growing, grows
from depthgauge.cli.inputs import input_options
from depthgauge.cli.naming import file_name
from depthgauge.cli.numbers import SECONDS, SEEDS, WORKERS
from depthgauge.cli.report import load, render
from depthgauge.cli.watching import both, intention, once, watching

if TYPE_CHECKING:
    from depthgauge.factories import Input, Target
    from depthgauge.reports.content import Section
    from depthgauge.running import Outcome, Progress, Request


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
    opened: bool


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
@click.option("--profile", "profiled", is_flag=True, help="Then trace a piece of each study, under DIR/traces.")
@click.option(
    "--fresh",
    is_flag=True,
    help="Forget what is stored in DIR; files that are not depthgauge's stay, those of its report beside it.",
)
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
    help="Time limit of a piece of work, in place of the study's.",
)
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser as soon as it is there.")
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
        questions = _questions(options)
        request = _request(options)
        out = options.out or default_directory(options.studies, request.preset, request.device, request.model)
        seconds = _seconds(options, request, tuple(questions), out)
        grown = grows(tuple(questions), options.workers)
        intended = intention(
            questions, request.preset, seconds, out, grows=grown, begun=_begun(options, questions, out)
        )
        if options.model is None:
            output.say(intended)
        started = time.monotonic()
        shown = ending.show if options.opened else None
        with _resumable(out), growing(out, tuple(questions), options.workers, shown) as (follow, sections):
            with watching(questions) as watch:
                told = watch if options.model is None else both(once(intended), watch)  # it may fit no study
                outcome = _measure(options, request, out, both(told, follow))
            _summary(outcome, time.monotonic() - started)
            output.show("analysing and drawing what was measured last")
            kept = sections()
            output.show("")
        from depthgauge.store import storage_errors  # with pandas: not before the first line

        with _resumable(out), storage_errors(f"the report of {out} cannot be written"):
            _report(outcome, options.sources, kept, opened=options.opened and not kept)
        if options.profiled:
            _trace(outcome, request.device)
    if not outcome.rows:
        raise click.ClickException(
            f"nothing was measured: {_failures(outcome)}{_first(outcome)}; the report says why, case by case"
        )
    if outcome.unmeasured:
        raise click.ClickException(f"nothing was measured in {_named(outcome)}; the report says why, case by case")


def _request(options: Options) -> Request:
    from depthgauge import environment, models
    from depthgauge.request import Request  # not from `running`, which imports pandas: the first line comes before it

    environment.device(options.device)  # what is misspelt is told first
    target = None if options.model is None else models.target(options.model, options.asked)
    return Request(options.preset, options.seeds, target, options.device, options.time_limit)


def _questions(options: Options) -> dict[str, str]:
    """The studies that will run, with their questions; nothing is imported for it."""
    from depthgauge.request import choose

    return {study.name: study.question for study in choose(options.studies, options.preset, options.sources)}


def _seconds(options: Options, request: Request, names: Sequence[str], out: Path) -> float | None:
    """How long the run will take, where that is known before anything is loaded."""
    from depthgauge import costs, environment, runfile

    if options.seeds or options.model or options.dask or request.device != "cpu":
        return None
    workers = environment.cores() if options.workers is None else options.workers
    return costs.of_studies(names, request.preset, runfile.known_costs(out, request.device), workers)


def _begun(options: Options, names: Iterable[str], out: Path) -> bool:
    """Whether some of it may be finished already; how much is known once the studies are loaded."""
    from depthgauge import runfile

    return not options.fresh and runfile.begun(out, names)


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
        kept = f"what is finished is kept in {shlex.quote(str(out))}"
        interrupt.message = f"stopped; {kept}: run the same command to resume"  # type: ignore[attr-defined]
        raise


def _failures(outcome: Outcome) -> str:
    failed = ", ".join(
        f"{cases} {'case' if cases == 1 else 'cases'} ({status})" for status, cases in outcome.failed.items()
    )
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


def _summary(outcome: Outcome, seconds: float) -> None:
    from depthgauge import costs
    from depthgauge.encoding import TRANSIENT

    long = f" in {costs.words(seconds).removeprefix('about ')}" if outcome.ran else ""
    reused = f", {outcome.kept:,} kept from before" if outcome.kept else ""
    failed = f"; without a result: {_failures(outcome)}" if outcome.failed else ""
    transient = sum(cases for status, cases in outcome.failed.items() if status in TRANSIENT)
    again = f"; run the same command again to retry {transient} of them" if transient else ""
    cases = "case" if outcome.measured == 1 else "cases"
    output.say(f"{outcome.measured:,} {cases} measured{long}{reused}{failed}{again}")


def _trace(outcome: Outcome, device: str) -> None:
    from depthgauge import environment
    from depthgauge.profiling.capture import ProfileError
    from depthgauge.profiling.chunks import traces

    try:
        for study, path in traces(outcome, environment.device(device)):
            output.say(f"{study}: {path}")
    except ProfileError as error:
        raise click.ClickException(str(error)) from error


def _report(outcome: Outcome, sources: Sequence[str], kept: Mapping[str, Section], *, opened: bool) -> None:
    """Report on all studies in the directory, those of earlier runs included."""
    from depthgauge import code

    for name in outcome.studies:
        try:
            code.check_unchanged(outcome.origins[name] or "")
        except code.ChangedError:
            output.say(f"{name}: its code changed during the run; rows and report come from the earlier code")
    earlier = [name for name in outcome.stored.studies if name not in outcome.studies]
    render(outcome.stored, {**load(outcome.stored, earlier, sources), **outcome.studies}, kept, opened=opened)
