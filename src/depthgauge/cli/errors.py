"""From the library's errors to exit codes: 2 for what was asked wrongly, 1 for what failed."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import click


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turns what a user can cause into one sentence on stderr.

    Raises:
        click.UsageError: in place of an unknown name or device.
        click.ClickException: in place of a study, directory, disk or worker that fails.
    """
    from depthgauge.discovery import UnknownStudyError
    from depthgauge.environment import DeviceError
    from depthgauge.runner import RunError, UnknownPresetError
    from depthgauge.store import StoreError, plainly
    from depthgauge.study import StudyError

    try:
        with plainly("stopped"):
            yield
    except (UnknownStudyError, UnknownPresetError, DeviceError) as error:
        raise click.UsageError(str(error)) from error
    except (StudyError, StoreError, RunError) as error:
        raise click.ClickException(str(error)) from error
