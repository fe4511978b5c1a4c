"""Writing of a page to the file that a user names."""

# ruff: noqa: PLC0415 - a command imports what it needs when it is called, so that help answers at once

from __future__ import annotations

import os
from pathlib import Path

import click


def check_page(path: Path) -> None:
    """Refuse what is there and is no regular file: a folder, a pipe that nobody reads, a device.

    Raises:
        click.UsageError: the path is one of these.
    """
    if os.path.lexists(path) and not os.path.isfile(path):  # noqa: PTH113 - a name too long is none, and no error
        raise click.UsageError(f"{path} is not a regular file; name one for the page, or a new one")


def write_page(path: Path, text: str) -> None:
    """Write a page, whole or not at all, and the folders above it.

    Raises:
        click.UsageError: as `check_page`.
        StoreError: it cannot be written.
    """
    from depthgauge.folder import write_whole
    from depthgauge.store import storage_errors

    check_page(path)
    with storage_errors(f"the page cannot be written to {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
