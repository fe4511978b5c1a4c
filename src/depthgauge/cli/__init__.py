"""The command line: each command is options, help with an example, and one call into the library.

What a user can get wrong ends in one sentence on stderr and an exit code: 2 for a wrong command line, 1 for a run
that failed or an answer that could not be written, 130 after Ctrl-C, 143 after SIGTERM; checks and comparisons of
durations have codes of their own (`cli.check`, `cli.bench`). 70 is an error of depthgauge's own, whose traceback is
kept in a file. Nothing here imports torch or pandas before a command needs them.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import click

import depthgauge
from depthgauge.cli import errors, output
from depthgauge.cli.bench import bench
from depthgauge.cli.check import check
from depthgauge.cli.commands import Commands
from depthgauge.cli.listing import listing
from depthgauge.cli.plan import plan
from depthgauge.cli.profile import profile
from depthgauge.cli.report import report
from depthgauge.cli.run import run


class _Terminated(KeyboardInterrupt):
    """SIGTERM: ends a command as Ctrl-C does, so that nothing finished is lost."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


class Program(Commands):
    """A group of commands whose errors are one sentence each."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; on an error ends the process with one sentence and its exit code."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        output.prepare()
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            output.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.exceptions.Exit as end:
            code = end.exit_code
        except click.Abort:
            code = 130
        except SystemExit:  # click's own: completion for a shell, a pipe whose reader has left
            raise
        except BaseException as error:  # noqa: BLE001 - the one place where every error becomes a sentence
            code = _tell(error)
        output.close()
        sys.exit(code if isinstance(code, int) else 0)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command of that name; a study's name alone is answered with the command that runs it."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            from depthgauge.discovery import discover  # noqa: PLC0415 - for an error alone

            with errors.sentences():
                names = {study.name for study in discover()}
            if args[0] in names:
                raise click.UsageError(f"{args[0]!r} is a study: depthgauge run {' '.join(args)}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command; Ctrl-C and SIGTERM end it with 130 and 143."""
        try:
            with _sigterm():
                errors.check_directory()
                return super().invoke(ctx)
        except SystemExit as end:
            raise errors.ExitCallError(end.code) from end
        except KeyboardInterrupt as interrupt:
            message = getattr(interrupt, "message", "stopped")
            output.say(f"depthgauge: {output.sentence(str(message))}")
            ctx.exit(143 if isinstance(interrupt, _Terminated) else 130)


class _sigterm:  # noqa: N801 - reads as what it handles
    """SIGTERM as an exception within the block; in a thread other than the main one nothing changes."""

    def __enter__(self) -> None:
        self.before: Any = None
        try:
            self.before = signal.signal(signal.SIGTERM, _terminate)
        except ValueError:
            self.before = None

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)


def _tell(error: BaseException) -> int:
    """Report an error that ends the command in one sentence on stderr, and return the exit code."""
    message, code = errors.sentence_and_code(error)
    with contextlib.suppress(output.OutputError, click.exceptions.Exit):
        output.flush()  # what cannot be written now is not tried again as the process ends
    output.say(f"depthgauge: {output.sentence(message)}")
    return code


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(depthgauge.__version__, prog_name="depthgauge")
def main() -> None:
    r"""Measure a neural network's numbers before the GPU-hours are spent.

    \b
    Example: measure everything briefly and write the report
        depthgauge run
    """


for _command in (check, run, report, listing, profile, plan, bench):
    main.add_command(_command)


def _all(command: click.Command) -> Iterator[click.Command]:
    yield command
    inner: dict[str, click.Command] = getattr(command, "commands", {})  # of a group, or of a command with pages
    for each in inner.values():
        yield from _all(each)


for _command in _all(main):
    # Docstrings are raw, as the linter wants them; click wants the character that keeps the lines of an example apart.
    _command.help = (_command.help or "").replace(r"\b", "\b")
