"""`depthgauge bench`: the benchmark suite, and comparisons of durations.

Comparisons end with 0 where nothing is slower, 3 where something is, 4 where an answer is missing, 5 where nothing was
measured; 1 and 2 stay what they are everywhere.
"""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import depthgauge
from depthgauge.cli import output
from depthgauge.cli.commands import Commands
from depthgauge.cli.errors import sentences
from depthgauge.cli.numbers import PERCENT, SECONDS, THREADS

if TYPE_CHECKING:
    from depthgauge.stats import Estimate
    from depthgauge.timing import Interleaved, Sitting
    from depthgauge.timing.stored import Row, Sessions

SLOWER, INCONCLUSIVE, NOTHING = 3, 4, 5
_PYTEST_USAGE, _PYTEST_NOTHING = 4, 5  # of pytest.ExitCode
_NAME = re.compile(r"[\w.+-]{1,100}")


class NothingMeasuredError(click.ClickException):
    """Error of a comparison that measured nothing, with its own exit code."""

    exit_code = NOTHING


@click.group("bench", cls=Commands, invoke_without_command=True)
@click.option("--full", is_flag=True, help="Run all benchmarks, in place of the quick selection.")
@click.option("-k", "--select", metavar="WORDS", help="Only benchmarks whose names match, as in pytest.")
@click.option(
    "--device", metavar="cpu|cuda[:i]|auto", help="Device of the benchmarks.  [default: the CPU, and CUDA if there]"
)
@click.option(
    "--json", "out", type=click.Path(path_type=Path), metavar="FILE", help="Further file to store the run in."
)
@click.option("--save", metavar="NAME", help="A name for the run in .benchmarks/.")
@click.pass_context
def bench(
    context: click.Context,
    *,
    full: bool,
    select: str | None,
    device: str | None,
    out: Path | None,
    save: str | None,
) -> None:
    r"""Run the benchmark suite, or compare durations.

    The same as `pytest --benchmark` in a checkout, which takes every option of pytest-benchmark. Each benchmark is
    stored as it finishes.

    \b
    Examples:
        depthgauge bench
        depthgauge bench -k transformer --json after.json
        depthgauge bench compare before.json after.json
        depthgauge bench ab 'x.tanh()' 'x.sigmoid()' --setup 'import torch; x = torch.randn(1 << 16)'
    """
    if context.invoked_subcommand:
        return
    root = _checkout()
    if find_spec("pytest_benchmark") is None:
        raise click.ClickException("the suite needs pytest and pytest-benchmark: pip install pytest pytest-benchmark")
    options = ["--benchmark", *(["--benchmark-full"] if full else []), *(["-k", select] if select else [])]
    options += ["--benchmark-device", device] if device else []
    options += ["--benchmark-json", str(out.absolute())] if out else []
    options += ["--benchmark-save", save] if save else []
    with sentences():
        _check_suite(device, out, save)
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=root, check=False)  # noqa: S603 - pytest
    if done.returncode == _PYTEST_NOTHING:
        raise NothingMeasuredError(f"no benchmark's name matches -k {select!r}; leave -k out to run all")
    context.exit({0: 0, _PYTEST_USAGE: 2}.get(done.returncode, 1))


def _check_suite(device: str | None, out: Path | None, name: str | None) -> None:
    """Check the options of a suite before half an hour goes by.

    Raises:
        click.UsageError: there is no such folder or no such device, or the name is none of a file.
        OSError: the file cannot be written.
    """
    if device:
        from depthgauge import environment

        environment.device(device)
    if out and not out.absolute().parent.is_dir():
        raise click.UsageError(f"--json {out} needs a folder {out.parent} that exists")
    if out and out.is_dir():
        raise click.UsageError(f"--json {out} is a folder; name a file")
    if name is not None and not (name.strip() and _NAME.fullmatch(name)):
        raise click.UsageError(
            f"--save {name!r} is not a valid file name: use up to 100 letters, digits, and any of ._+-"
        )


def _checkout() -> Path:
    """The folder that holds `benchmarks/`: the current one or above, else that of an editable install."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(depthgauge.__file__).parents[2]):
        if (folder / "benchmarks" / "conftest.py").is_file() and (folder / "src" / "depthgauge").is_dir():
            return folder
    raise click.ClickException(
        "the benchmark suite is not part of the installed package: go to a checkout of depthgauge's repository and run "
        "`depthgauge bench` there"
    )


_margin = click.option(
    "--margin",
    type=PERCENT,
    default=5.0,
    show_default=True,
    metavar="PERCENT",
    help="Largest difference that counts as the same.",
)
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")


# -- stored runs -------------------------------------------------------------------------------------------------------


@bench.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@_margin
@_json
@click.pass_context
def compare(context: click.Context, *, before: str, after: str, margin: float, as_json: bool) -> None:
    r"""Compare two stored runs, benchmark by benchmark: B against A.

    A run is a file of pytest-benchmark, or the beginning of a name in .benchmarks/. Two sessions were not interleaved;
    what the machine did differently is in every ratio. `depthgauge bench ab` separates code from machine.

    Exit codes: 0 nothing is slower, 3 something is, 4 an answer is missing, 5 the runs share no benchmark.

    \b
    Example: this branch against what was stored before
        depthgauge bench compare 0001 after.json
    """
    from depthgauge.timing import stored

    try:
        runs = stored.read(before), stored.read(after)
    except stored.StoredRunError as error:
        raise click.UsageError(str(error)) from error
    sessions = stored.compare(*runs, margin=_factor(margin))
    if not sessions.rows:
        raise NothingMeasuredError(f"{before} and {after} share no benchmark that could be compared")
    if as_json:
        output.tell_json(_sessions(sessions))
    else:
        _print_sessions(sessions)
    context.exit(_code(row.pace for row in sessions.rows))


def _sessions(sessions: Sessions) -> dict[str, Any]:
    def as_dict(row: Row) -> dict[str, Any]:
        return {
            "name": row.name,
            "ratio": _finite(row.ratio),
            "low": _finite(row.low),
            "high": _finite(row.high),
            "verdict": str(row.pace),
            "why": row.why,
        }

    return {
        "schema": 1,
        "resolution": _finite(sessions.resolution),
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
        output.tell(f"{len(sessions.only)} benchmark(s) in one of the runs alone")
    resolution = _resolution(sessions.resolution)
    output.tell(f"{resolution}; the runs were not interleaved; `depthgauge bench ab` separates code from machine.")


def _resolution(factor: float) -> str:
    if math.isnan(factor):
        return "No reference in both runs, so that nothing can be concluded"
    if math.isinf(factor):
        return "Too few rounds of the references, so that nothing can be concluded"
    return f"Smaller differences are not reported: the references differ by up to {_percent(factor)} between them"


# -- variants in turns -------------------------------------------------------------------------------------------------


@bench.command()
@click.argument("variants", nargs=-1, metavar="VARIANT VARIANT...")
@click.option("--setup", default="pass", metavar="CODE", help="Setup code, run anew for each variant.")
@click.option(
    "--time",
    "statement",
    metavar="CODE",
    help="Statement to time, with git revisions as variants; `.` is the working tree.",
)
@click.option("--threads", type=THREADS, default=1, show_default=True, help="Intra-op threads.")
@click.option(
    "--budget",
    type=SECONDS,
    metavar="SECONDS",
    help="Time to spend at most.  [default: 30, revisions 180]",
)
@_margin
@_json
@click.pass_context
def ab(
    context: click.Context,
    *,
    variants: tuple[str, ...],
    setup: str,
    statement: str | None,
    threads: int,
    budget: float | None,
    margin: float,
    as_json: bool,
) -> None:
    r"""Time variants in turns, A B B A, and say which is faster; the first is the baseline.

    A variant is a Python statement, or with --time a git revision. The baseline runs twice in each turn: what it
    differs by from itself is the resolution.

    Exit codes: 0 no variant is slower than the first, 3 one is, 4 an answer is missing, 5 nothing was measured.

    \b
    Examples:
        depthgauge bench ab 'x.tanh()' 'x.sigmoid()' --setup 'import torch; x = torch.randn(1 << 16)'
        depthgauge bench ab main . --time 'gain("tanh")' --setup 'from depthgauge.theory import gain'
    """
    from depthgauge import timing
    from depthgauge.timing import variants as kinds

    if len(variants) < 2:
        raise click.UsageError("a comparison takes two variants or more, the baseline first")
    try:
        with contextlib.ExitStack() as stack:
            sitting = stack.enter_context(_sitting(variants, statement, setup, threads))
            done = timing.interleave(
                sitting,
                budget=budget or (30.0 if statement is None else 180.0),
                margin=_factor(margin),
                progress=_line,
            )
    except kinds.VariantError as error:
        raise NothingMeasuredError(str(error)) from error
    finally:
        output.show("")
    if not done.sittings:
        raise NothingMeasuredError(
            "nothing was measured: not even one turn fits into the time; give it more by --budget"
        )
    cores = kinds.cores_for(threads)
    if as_json:
        output.tell_json({**_variants(variants, done), "threads": threads, "cores": list(cores)})
    else:
        _print_variants(variants, done)
        output.tell(f"{threads} thread(s)" + (f" on core {', '.join(map(str, cores))}" if cores else ", not pinned"))
    context.exit(_code(judgement.pace for judgement in done.judgements))


@contextlib.contextmanager
def _sitting(variants: tuple[str, ...], statement: str | None, setup: str, threads: int) -> Iterator[Sitting]:
    from depthgauge.timing import variants as kinds

    if statement is None:
        made = kinds.expressions(variants, setup=setup, threads=threads)
    else:
        made = kinds.revisions(
            variants,
            statement=statement,
            setup=setup,
            threads=threads,
            progress=output.say,
        )
    with made as sitting:
        yield sitting


def _line(sittings: int, seconds: float) -> None:
    output.show(f"{sittings} sittings, {seconds:.0f} s")


def _variants(variants: tuple[str, ...], done: Interleaved) -> dict[str, Any]:
    def as_dict(effect: Estimate) -> dict[str, Any]:
        return {"ratio": _finite(effect.value), "low": _finite(effect.low), "high": _finite(effect.high)}

    compared: list[dict[str, Any]] = [
        {
            "variant": variant,
            "seconds": seconds,
            **as_dict(judgement.ratio.effect),
            "verdict": str(judgement.pace),
            "resolvable": _finite(judgement.resolvable),
        }
        for variant, seconds, judgement in zip(variants[1:], done.medians[1:], done.judgements, strict=True)
    ]
    return {
        "schema": 1,
        "baseline": {"variant": variants[0], "seconds": done.medians[0], **as_dict(done.judgements[0].itself)},
        "compared": compared,
        "resolution": _finite(done.judgements[0].resolution),
        "resolvable": _finite(done.resolvable),
        "sittings": done.sittings,
        "blocks": int(done.seconds.shape[1]),
        "elapsed": done.elapsed,
        "budget_spent": done.spent,
    }


def _print_variants(variants: tuple[str, ...], done: Interleaved) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "a call", "times A", "99 % interval", "", box=None, pad_edge=False)
    table.add_row(Text(output.plain(f"A  {variants[0]}")), _seconds(done.medians[0]), "", "", Text("baseline"))
    for place, (variant, judgement) in enumerate(zip(variants[1:], done.judgements, strict=True)):
        effect = judgement.ratio.effect
        table.add_row(
            Text(output.plain(f"{chr(ord('B') + place)}  {variant}")),
            _seconds(done.medians[1 + place]),
            f"{effect.value:.3f}",
            f"{effect.low:.3f} to {effect.high:.3f}" if math.isfinite(effect.high) else "none",
            Text(str(judgement.pace), style="bold"),
        )
    output.tell_table(table)
    resolution = done.judgements[0].resolution
    if math.isinf(done.resolvable):
        from depthgauge.timing.interleaving import FEWEST

        output.tell(
            f"Only {done.sittings} of at least {FEWEST} sittings fit into {done.elapsed:.0f} s; more time: --budget."
        )
        return
    output.tell(
        f"Differences of {_percent(done.resolvable)} or more are reported; A differs from itself by up to"
        f" {_percent(resolution)}. {done.sittings} sittings of {done.seconds.shape[1]} block(s), {done.elapsed:.0f} s."
    )


# -- what both share ---------------------------------------------------------------------------------------------------


def _code(paces: Iterable[str]) -> int:
    """Return the exit code of the gravest answer: slower before inconclusive."""
    answers = set(map(str, paces))
    return SLOWER if "slower" in answers else INCONCLUSIVE if "inconclusive" in answers else 0


def _factor(percent: float) -> float:
    return 1 + percent / 100


def _percent(factor: float) -> str:
    return f"{100 * (factor - 1):.2g} %"


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
