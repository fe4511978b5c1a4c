"""From the library's errors to exit codes: 2 for what was asked wrongly, 1 for what failed."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from depthgauge.discovery import UnknownPresetError, UnknownStudyError
from depthgauge.environment import DeviceError
from depthgauge.study import StudyError
from depthgauge.target import TargetError
from depthgauge.worker import RunError


def nearest(directory: Path) -> str:
    """`; did you mean runs/night?` where a run or profiles lie beside that place, or in runs/; else nothing."""
    try:
        beside = [*directory.parent.glob("*"), *Path("runs").glob("*")]
    except OSError:  # a name that is too long for any folder
        return ""
    known = [str(path) for path in beside if _ours(path)]
    near = difflib.get_close_matches(str(directory), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _ours(path: Path) -> bool:
    try:
        return (path / "run.json").is_file() or (path / "profiles").is_dir()
    except OSError:  # a neighbour that may not be looked into
        return False


def _somewhere() -> bool:
    """Whether the current folder still exists."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turns what a user can cause into one sentence on stderr.

    Raises:
        click.UsageError: in place of an unknown name or device, or a model that cannot be made.
        click.ClickException: in place of a study, directory, disk or worker that fails; the current folder is gone,
            from which torch's libraries end the process.
    """
    if not _somewhere():
        raise click.ClickException("the current folder is no longer there; change to one that is")
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
