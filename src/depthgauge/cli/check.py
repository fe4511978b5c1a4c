"""`depthgauge check`: what is wrong with a training, and what it leaves on the table, on one card.

Exit codes: 0 where nothing is broken and all is decided, 3 where something is broken, 4 where nothing is broken and
something is undecided, 5 where nothing could be measured.
"""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from depthgauge.cli import ending, output
from depthgauge.cli.errors import sentences
from depthgauge.cli.inputs import input_options
from depthgauge.cli.naming import file_name
from depthgauge.cli.numbers import BUDGET, THREADS
from depthgauge.cli.trainings import given, on_data, own, training_options

if TYPE_CHECKING:
    from depthgauge.checking import Checked
    from depthgauge.factories import Input
    from depthgauge.workload import Training

_DRAWN = "Its inputs and labels are drawn at random: what is said of data and loss is said of these"


@click.command()
@click.argument("spec", required=False, metavar="SPEC")
@click.option("--model", metavar="NAME", help="Check one of our models, on --data.")
@click.option(
    "--budget", type=BUDGET, default="30s", show_default=True, metavar="TIME", help="Time it may take: 45s, 2m."
)
@click.option("--only", metavar="ID,ID,...", help="Ask these questions alone: signal, learning_rate, batch, ...")
@click.option("--device", metavar="cpu|cuda[:i]|auto", help="Move model and batches there.  [default: left in place]")
@click.option("--threads", type=THREADS, metavar="N", help="Intra-op threads of a CPU.  [default: PyTorch's]")
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Write check.json, card.md and index.html there."
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An earlier check.json: say what became better or worse.",
)
@click.option("--json", "as_json", is_flag=True, help="Print check.json in place of the card.")
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
@input_options
@training_options
def check(
    *, spec: str | None, model: str | None, as_json: bool, opened: bool, out: Path | None, baseline: Path | None,
    **asked: Any,
) -> None:  # fmt: skip
    r"""Check a training: signal, learning rate, batch, precision, data and loss, reproducibility and cost, on one card.

    SPEC is your own package.module:factory. The factory returns depthgauge.Training(model, batches, loss, optimizer),
    or a module; then its example_input_array or dummy_inputs, or --input-shape, say what it takes.

    The exit code is 0 where nothing is broken and all is decided, 3 where something is broken, 4 where something is
    undecided, and 5 where nothing could be measured.

    \b
    Examples:
        depthgauge check my_project.train:setup
        depthgauge check my_project.train:setup --budget 2m --out runs/check --open
        depthgauge check my_project.train:setup --only signal,precision --baseline runs/check/check.json
        depthgauge check --model mlp --data digits --lr 3
    """
    if (spec is None) == (model is None):
        raise click.UsageError(
            "name what is checked: a factory, my_project.train:setup, or one of our models by --model"
        )
    name = spec or model or ""
    folder = out or (Path("runs", "check", file_name(name)) if opened else None)
    with sentences():
        if folder is not None:
            _require(folder)
        earlier = None if baseline is None else _earlier(baseline)
        with _pinned(asked["threads"]):
            found = _checked(name, asked, ours=model is not None)
    _tell(found, earlier, as_json=as_json)
    if folder is not None:
        _write(found, folder, earlier)
        if not as_json:
            output.tell(f"\n{output.plain(str(folder / 'index.html'))}")
        if opened:
            ending.show(folder / "index.html")
    if found.exit_code == 5:
        output.say(f"depthgauge: no question about {name} could be decided")
    click.get_current_context().exit(found.exit_code)


def _require(folder: Path) -> None:
    """Make sure of the folder before half a minute is spent on what goes there."""
    from depthgauge.checking.written import check_place
    from depthgauge.store import storage_errors

    with storage_errors(f"the check cannot be written to {folder}"):
        if folder.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        check_place(folder)


def _pinned(threads: int | None) -> contextlib.AbstractContextManager[None]:
    """A block on so many threads; on those that there are, where none are named."""
    from depthgauge.timing.conditions import pinned

    return contextlib.nullcontext() if threads is None else pinned(threads)


def _earlier(path: Path) -> Checked:
    from depthgauge.checking import Checked
    from depthgauge.jsonfile import JsonError

    try:
        return Checked.read(path)
    except JsonError as error:
        raise click.BadParameter(str(error), param_hint="'--baseline'") from error


def _checked(name: str, asked: dict[str, Any], *, ours: bool) -> Checked:
    from depthgauge.checking import check as ask
    from depthgauge.checking import questions
    from depthgauge.isolation import stdout_to_stderr
    from depthgauge.workload import DrawnLabels, WorkloadError

    try:
        only = None if asked["only"] is None else [each.id for each in questions.named(asked["only"])]
    except WorkloadError as error:
        raise click.BadParameter(str(error), param_hint="'--only'") from error
    output.show(f"{name}: it is being made")
    training = _made(name, asked, ours=ours)
    try:
        with stdout_to_stderr():
            found = ask(training, budget=asked["budget"], only=only, progress=_progress(name, asked["budget"]))
    except WorkloadError as error:
        raise click.ClickException(f"{name} cannot be checked: {error}") from error
    finally:
        output.show("")
    return found.named(name, _DRAWN if isinstance(training.loss, DrawnLabels) else "")


def _made(name: str, asked: dict[str, Any], *, ours: bool) -> Training:
    from depthgauge.factories import is_factory

    if ours and is_factory(name):
        raise click.UsageError(f"--model names one of our models; leave --model out: depthgauge check {name}")
    described: Input | None = asked["asked"]
    if is_factory(name) and not given():
        return own(name, described, asked["device"])
    if described is not None:
        raise click.UsageError(f"{described.source} is for factories: --data says what {name} takes")
    return on_data(name, {**asked, "device": asked["device"] or "cpu"}, "check")


def _progress(name: str, budget: float) -> Callable[[str], None]:
    start = time.monotonic()
    return lambda text: output.show(f"{name}: {text} ({time.monotonic() - start:.0f} s of {budget:g})")


def _write(found: Checked, folder: Path, earlier: Checked | None) -> None:
    from depthgauge.store import storage_errors

    output.show("writing the page")
    with sentences(), storage_errors(f"the check cannot be written to {folder}"):
        found.write(folder, earlier)
    output.show("")


def _tell(found: Checked, earlier: Checked | None, *, as_json: bool) -> None:
    from depthgauge.checking.card import text
    from depthgauge.checking.written import as_dict

    changes = None if earlier is None else found.against(earlier)
    if as_json:
        output.tell_json(as_dict(found, changes))
        return
    card = text(found, output.columns(), colour=output.coloured(), plain=not _shows("✗✓→·×"), changes=changes)
    output.tell(card)


def _shows(characters: str) -> bool:
    """Tell whether stdout's encoding has these characters."""
    try:
        characters.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
