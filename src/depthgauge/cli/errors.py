"""Sentences and exit codes of errors: 2 for a wrong request, 1 for a failure, 70 for a bug."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import click

from depthgauge.discovery import UnknownPresetError, UnknownStudyError
from depthgauge.environment import DeviceError
from depthgauge.factories import TargetError
from depthgauge.study import StudyError
from depthgauge.worker import RunError

BUG = 70  # EX_SOFTWARE of sysexits.h
_CLICKS_OWN = ("Got unexpected", "Missing ", "No such command")  # they say what is wrong, and not what would work
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ExitCallError(click.ClickException):
    """Call of `sys.exit` by a study or a factory, whose code says nothing of the command."""

    def __init__(self, code: object) -> None:
        super().__init__(f"code that was run ended the program by sys.exit({code!r}); it must return instead")


def sentence_and_code(error: BaseException) -> tuple[str, int]:
    """Return the sentence for an error that ends a command, and the exit code."""
    if isinstance(error, click.ClickException):
        return _message_of(error), error.exit_code
    if isinstance(error, OSError):
        return _refused(error), 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return "there is not enough memory: use fewer --workers, a smaller --batch or a smaller --preset", 1
    return _bug(error), BUG


def _message_of(error: click.ClickException) -> str:
    if isinstance(error, click.NoSuchOption):
        near = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1)
        return f"there is no option {error.option_name}; {f'did you mean {near[0]}?' if near else 'see --help'}"
    message = error.format_message()
    if message.startswith(_CLICKS_OWN) and isinstance(error, click.UsageError) and error.ctx:
        return f"{message.rstrip('.')}; see {error.ctx.command_path} --help"
    return message


def _refused(error: OSError) -> str:
    """Describe the operation that the system refused, with the file's name."""
    what = "the output cannot be written" if error.filename is None else f"{error.filename} cannot be used"
    if error.errno in _FULL:
        return f"{what}: the disk is full; make room and run the same command again"
    return f"{what}: {error.strerror or error}"


def _bug(error: BaseException) -> str:
    """An error that depthgauge should not have had; its traceback goes to a file, for a report."""
    try:
        file, path = tempfile.mkstemp(prefix="depthgauge-traceback-", suffix=".txt")
        with os.fdopen(file, "w", encoding="utf-8", errors="backslashreplace") as trace:
            trace.write(" ".join(map(ascii, sys.argv)) + "\n" + "".join(traceback.format_exception(error)))
        where = f"its traceback is in {path}: please report it with that file"
    except OSError:
        where = "its traceback could not be kept: set TMPDIR to a folder that can be written and run it again"
    what = traceback.format_exception_only(error)[-1].strip()
    return f"this is an error of depthgauge's own ({what[:300]}); {where}"


def check_directory() -> None:
    """Check that the current directory exists: every relative path starts at it.

    Raises:
        click.UsageError: it is not.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise click.UsageError(
            f"the current directory cannot be used ({error.strerror}): it was deleted or moved; change to another"
        ) from error


def nearest(directory: Path) -> str:
    """`; did you mean runs/night?` where a run or profiles lie beside that place, or in runs/; else nothing."""
    try:
        beside = [*directory.parent.glob("*"), *Path("runs").glob("*")]
    except OSError:  # a name that is too long for any folder
        return ""
    known = {path.name: path for path in reversed(beside) if path != directory and _ours(path)}
    near = difflib.get_close_matches(directory.name, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


def _ours(path: Path) -> bool:
    try:
        return (path / "run.json").is_file() or (path / "profiles").is_dir()
    except OSError:  # a neighbour that may not be looked into
        return False


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn the errors that a user can cause into one sentence on stderr.

    Raises:
        click.UsageError: in place of an unknown name or device, or a model that cannot be made.
        click.ClickException: in place of a study, directory, disk or worker that fails.
    """
    try:
        yield
    except (UnknownStudyError, UnknownPresetError, DeviceError, TargetError) as error:
        raise click.UsageError(str(error)) from error
    except (StudyError, RunError) as error:
        raise click.ClickException(str(error)) from error
    except RuntimeError as error:
        store = sys.modules.get("depthgauge.store")  # it imports pandas, which whoever raised this has done already
        if store is None or not isinstance(error, store.StoreError):
            raise
        raise click.ClickException(str(error)) from error
