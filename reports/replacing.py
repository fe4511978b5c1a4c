"""A folder of ours that another takes the place of: all of it or nothing, and never what is somebody else's."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from depthgauge.store import StoreError


@contextmanager
def replacing(path: Path, holds: str) -> Iterator[Path]:
    """An empty folder that takes the place of `path` once it is filled, and vanishes if that fails.

    One process at a time has it: another that writes beside `path` waits.

    Args:
        path: a folder of ours, an empty one, or nothing.
        holds: the file by which a folder is known as one of ours.

    Raises:
        StoreError: something else is at `path`.
        OSError: it could not be written; what was at `path` is still there.
    """
    new, old = _beside(path)
    with _alone(path.parent):
        _restore(path)
        check_place(path, holds)
        _remove(new)  # of a rendering that was killed
        new.mkdir()
        try:
            yield new
        except BaseException:
            _remove(new)
            raise
        before = path.exists() or path.is_symlink()
        if before:
            path.rename(old)
        try:
            new.rename(path)
        except BaseException:
            if before:
                old.rename(path)
            raise
        _remove(old)


def check_place(path: Path, holds: str) -> None:
    """Check that what is at `path` may be replaced; as `replacing`.

    Raises:
        StoreError: it is somebody's.
    """
    if path.is_symlink() or not path.exists():  # a link gives way, and what it leads to stays
        return
    if not path.is_dir() or (any(path.iterdir()) and not (path / holds).is_file()):
        raise StoreError(
            f"{path} is there and is no report of this kind: it has no {holds}; name another place by --out"
        )


def _beside(path: Path) -> tuple[Path, Path]:
    """The places of a folder before it takes the place of `path`, and of the one that was there."""
    return path.with_name(f".depthgauge.{path.name}.new"), path.with_name(f".depthgauge.{path.name}.old")


def restore(path: Path) -> None:
    """Put the earlier folder back where a process was killed between taking it away and having its new one there."""
    with _alone(path.parent):
        _restore(path)


def _restore(path: Path) -> None:
    _, old = _beside(path)
    if old.is_dir() and not old.is_symlink() and not path.exists() and not path.is_symlink():
        old.rename(path)
    _remove(old)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder's own lock, which the kernel drops with the process; file systems without locks have none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
