"""Output of the commands: answers to stdout, all else to stderr.

A terminal that cannot show a character is given its escape. An answer that cannot be written is an error of the
command; a line beside it is not: a run does not stop because nobody listens.
"""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

_NARROWEST, _WIDEST = 40, 400  # columns of a terminal that are believed
_STEERING = {  # controls but tab and newline, line separators, and what turns the direction of writing
    code: ascii(chr(code))[1:-1]
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
_LONGEST = 2000  # characters of a sentence


class OutputError(click.ClickException):
    """Failure to write an answer to stdout."""


def prepare() -> None:
    """Makes stdout and stderr take every character, and leaves no standard descriptor closed.

    A file that is opened later would get the number of a closed one, and with it what libraries print there. What
    stands in for a closed stdout cannot be written, as it should be; a closed stderr is not missed.
    """
    for number, (name, flags) in enumerate(
        {"stdin": os.O_RDONLY, "stdout": os.O_RDONLY, "stderr": os.O_WRONLY}.items()
    ):
        if getattr(sys, name) is None and _closed(number) and os.open(os.devnull, flags) == number:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


# -- the answer --------------------------------------------------------------------------------------------------------


def coloured() -> bool:
    """Tell whether stdout shows colours: a terminal, and nobody asked for none (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def tell(text: str) -> None:
    """Print a line, or lines, of the answer.

    Raises:
        OutputError: stdout cannot be written.
        click.exceptions.Exit: whoever reads it has closed it, and needs no sentence.
    """
    with _answering():
        sys.stdout.write((text if coloured() else click.unstyle(text)) + "\n")
        sys.stdout.flush()


def flush() -> None:
    """Write the rest of the answer.

    Raises:
        OutputError: as `tell`, and `click.exceptions.Exit`.
    """
    with _answering():
        sys.stdout.flush()


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _forget(sys.stdout)
        raise click.exceptions.Exit(1) from None
    except OSError as error:
        _forget(sys.stdout)
        raise OutputError(f"the answer cannot be written to stdout: {error.strerror or error}") from error


def close() -> None:
    """Gives up what stderr still holds and cannot write: the process ends with its own code, not with Python's 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        _forget(sys.stderr)


def _forget(stream: IO[str]) -> None:
    """Lets go of what a stream still holds, so that nothing tries to write it again as the process ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def tell_json(answer: Mapping[str, Any]) -> None:
    """Print the answer for a program: ASCII, and strict JSON.

    Raises:
        OutputError: as `tell`, and `click.exceptions.Exit`.
    """
    tell(json.dumps(answer, indent=1, allow_nan=False))


def tell_table(table: Table) -> None:
    """A table as wide as the terminal; elsewhere as wide as need be.

    Raises:
        OutputError: as `tell`, and `click.exceptions.Exit`.
    """
    from rich.console import Console

    seen, page = sys.stdout.isatty(), io.StringIO()
    Console(file=page, width=columns() if seen else _WIDEST, force_terminal=seen, legacy_windows=False).print(table)
    tell("\n".join(line.rstrip() for line in page.getvalue().splitlines()))


def columns() -> int:
    """Return the terminal's width, within plausible bounds."""
    return min(max(shutil.get_terminal_size().columns, _NARROWEST), _WIDEST)


# -- beside it ---------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Print a line on stderr; leave it out where it cannot be written."""
    _beside(plain(text) + "\n")


def show(text: str) -> None:
    """Show a line on a terminal until the next such line, or until `show("")`; elsewhere show nothing."""
    if sys.stderr.isatty():
        _beside(f"\r\x1b[K{plain(text)}")


def _beside(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def plain(text: str) -> str:
    """Spell out the control characters of a text, so that it steers no terminal."""
    return text.translate(_STEERING)


def sentence(text: str) -> str:
    """Turn a message of any shape into one line of limited length."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."
