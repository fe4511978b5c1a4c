"""`depthgauge bench`: the benchmark suite, and comparisons of durations."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

import depthgauge
from depthgauge.cli.answers import NothingMeasuredError
from depthgauge.cli.bench_ab import ab
from depthgauge.cli.bench_compare import compare
from depthgauge.cli.commands import Commands
from depthgauge.cli.errors import sentences

_PYTEST_USAGE, _PYTEST_NOTHING = 4, 5  # of pytest.ExitCode
_NAME = re.compile(r"[\w.+-]{1,100}")


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


for _command in (compare, ab):
    bench.add_command(_command)
