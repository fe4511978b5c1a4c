"""The folder of compiled kernels, kept between processes: one that this user alone can write, or none.

Whoever can write to that folder can have a process run his code. Numba looks beside the source file and in the user's
cache, asks nobody who else may write there, and fails where it may not write itself. Here the folder is one that we
made for this user only, below folders that nobody else can rename: below `NUMBA_CACHE_DIR` where that is set, else in
the user's cache, else in the folder for temporary files. Where there is none, kernels are compiled in each process.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from numba import config

_config: Any = config  # carries no types
PATIENCE = 60.0  # seconds, several times what a kernel takes; then who has the turn was stopped, and we compile


def folder() -> Path | None:
    """The first folder that can be had; it is made where it is not there."""
    return next((folder for folder in map(_private_folder, _candidates()) if folder is not None), None)


def _candidates() -> Iterator[Path]:
    if _config.CACHE_DIR:
        yield Path(_config.CACHE_DIR) / _name()
    cache = os.environ.get("XDG_CACHE_HOME")
    if cache or os.environ.get("HOME"):
        yield (Path(cache) if cache else Path(os.environ["HOME"]) / ".cache") / "depthgauge" / _name()
    yield Path(tempfile.gettempdir()) / f"depthgauge-{_name()}"


def _name() -> str:
    return f"numba-{os.getuid()}" if hasattr(os, "getuid") else "numba"


def _private_folder(path: Path) -> Path | None:
    """The folder, if it is ours alone and can be written."""
    try:
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.parent.resolve(strict=True) / path.name
        path.mkdir(mode=0o700, exist_ok=True)
        if not is_private(path):
            return None
        tempfile.TemporaryFile(dir=path).close()
    except OSError:
        return None
    return path


def is_private(path: Path) -> bool:
    """Tell whether a folder, given without links, is ours, closed to others, and cannot be replaced by another."""
    if not hasattr(os, "getuid"):
        return True  # no such owners and modes
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        return False
    return all(_keeps_its_folders(parent.lstat()) for parent in path.parents)


def _keeps_its_folders(parent: os.stat_result) -> bool:
    """Tell whether our folders under a parent stay: only we and root may write there, or only owners may rename."""
    if parent.st_uid not in {0, os.getuid()}:
        return False
    return not parent.st_mode & 0o022 or bool(parent.st_mode & stat.S_ISVTX)


@contextmanager
def kept_in(place: Path | None) -> Iterator[bool]:
    """Let numba cache the block's compiled code in that folder, for later processes; False where there is none."""
    before = _config.CACHE_DIR
    _config.CACHE_DIR = str(place or "")
    try:
        yield place is not None
    finally:
        _config.CACHE_DIR = before


class Forgiving:
    """A cache of numba's that is no cache where the disk is full, or a file is broken: the kernel is compiled.

    What is not there one process compiles; others that want it meanwhile wait, and load it.

    Args:
        cache: numba's.
        place: the folder that it is kept in; None where nothing is kept, and nobody waits.
    """

    def __init__(self, cache: Any, place: Path | None = None) -> None:
        self._cache = cache
        self._place = place
        self._turn = ExitStack()  # holds the lock from a miss until the code is kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The machine code, or None: then it is this process's turn to compile it."""
        if (found := _or_none(self._cache.load_overload, signature, context)) is not None:
            return found
        self._turn.close()  # of a compilation that has failed
        self._turn.enter_context(turn(self._place))
        found = _or_none(self._cache.load_overload, signature, context)  # who had the turn before may have kept it
        if found is not None:
            self._turn.close()
        return found

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep machine code if it can be."""
        _or_none(self._cache.save_overload, signature, result)
        self._turn.close()


@contextmanager
def turn(place: Path | None) -> Iterator[None]:
    """Wait until no other process is in such a block for that folder, `PATIENCE` at most; not where it has no locks."""
    try:
        import fcntl  # noqa: PLC0415 - not on every system
    except ImportError:
        place = None
    with ExitStack() as held:
        if place is not None:
            with suppress(OSError):  # a disk without locks
                file, until = held.enter_context((place / ".turn").open("ab")), time.monotonic() + PATIENCE
                while not _is_locked(file.fileno(), fcntl) and time.monotonic() < until:
                    time.sleep(0.05)
        yield


def _or_none(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception:  # noqa: BLE001 # a broken pickle raises anything
        return None


def _is_locked(file: int, fcntl: Any) -> bool:
    """Take a file's lock, if nobody has it; raises OSError on a disk without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
