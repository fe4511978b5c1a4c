"""Files of an untrusted folder: no link is followed, and only plain files are read.

    with Folder.open("runs/x") as folder:
        folder.write(("run.json",), b"{}")          # beside, to the disk, renamed: whole or not at all
        folder.read(("chunks", "demo", "a.parquet"), most=2**20)

A path is a tuple of names below the folder. Every step opens its folder from the one before (`openat`) and refuses a
symbolic link, so that no name leads out of it; what is read is a plain file of a bounded size, never a device or pipe.
The folder itself may be reached by links: its user named it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

Names = tuple[str, ...]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY = ".depthgauge.", ".tmp"


class OddFileError(OSError):
    """Unexpected file type: neither the plain file nor the folder that belongs there; the message names it."""


class Folder:
    """A folder that is held open; a context manager.

    Attributes:
        path: the folder's path, for messages.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: str | Path) -> Folder:
        """Opens a folder.

        Raises:
            OSError: it is not there, or is no folder.
        """
        return cls(Path(path), os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        """Lets go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _within(self, names: Names) -> Iterator[int]:
        """The descriptor of a folder below."""
        here = os.dup(self._descriptor)
        try:
            for depth, name in enumerate(names, 1):
                here, before = self._step(here, names[:depth], name), here
                os.close(before)
            yield here
        finally:
            os.close(here)

    def _step(self, here: int, names: Names, name: str) -> int:
        _plain(name)
        try:
            return os.open(name, _FOLDER, dir_fd=here)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENOTDIR}:
                raise self._odd(names, "is not a folder") from error
            raise

    def _odd(self, names: Names, what: str) -> OddFileError:
        path = self.path.joinpath(*names)
        linked = path.is_symlink()
        return OddFileError(
            errno.ELOOP, "it is a link, and links are not followed" if linked else f"it {what}", str(path)
        )

    # -- looking -------------------------------------------------------------------------------------------------------

    def kind(self, names: Names) -> str:
        """`file`, `folder`, `other` (a link, a pipe, a device), or nothing where there is none."""
        try:
            with self._within(names[:-1]) as here:
                mode = os.stat(_plain(names[-1]), dir_fd=here, follow_symlinks=False).st_mode
        except (FileNotFoundError, OddFileError):
            return ""
        return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"

    def names(self, names: Names = ()) -> tuple[str, ...]:
        """List the names in a folder in alphabetical order; none where the folder is missing or a link."""
        try:
            with self._within(names) as here:
                return tuple(sorted(os.listdir(here)))  # noqa: PTH208 - a descriptor
        except (FileNotFoundError, OddFileError):
            return ()

    def read(self, names: Names, *, most: int) -> bytes:
        """The content of a plain file of at most `most` bytes.

        Raises:
            FileNotFoundError: there is none.
            OddFileError: it is a link, a pipe, a device, a folder or larger.
            OSError: it cannot be read.
        """
        with self._within(names[:-1]) as here:
            try:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                file = os.open(_plain(names[-1]), flags, dir_fd=here)
            except OSError as error:
                if error.errno in {errno.ELOOP, errno.ENXIO}:
                    raise self._odd(names, "is not a regular file") from error
                raise
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                raise self._odd(names, "is not a regular file")
            if about.st_size > most:
                raise self._odd(names, f"is larger than {most / 2**20:,.0f} MiB")
            with open(file, "rb", closefd=False) as opened:
                return opened.read(most)
        finally:
            os.close(file)

    # -- changing ------------------------------------------------------------------------------------------------------

    def make(self, names: Names) -> None:
        """Makes a folder and those above it, as far as they are not there.

        Raises:
            OddFileError: something else has its place.
        """
        for depth in range(1, len(names) + 1):
            with self._within(names[: depth - 1]) as here, contextlib.suppress(FileExistsError):
                os.mkdir(_plain(names[depth - 1]), dir_fd=here)
        with self._within(names):
            pass

    def write(self, names: Names, data: bytes) -> None:
        """Whole or not at all: beside, to the disk, renamed; nothing is left behind where it fails."""
        # Short: a chunk's name may fill what a file name may hold.
        beside = f"{_TEMPORARY[0]}{os.getpid()}{_TEMPORARY[1]}"
        with self._within(names[:-1]) as here:
            _delete(beside, here)
            try:
                with open(_create(beside, here), "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, _plain(names[-1]), src_dir_fd=here, dst_dir_fd=here)
            except BaseException:
                _delete(beside, here)
                raise
            os.fsync(here)

    def rename(self, names: Names, to: str) -> None:
        """Gives a file another name in the same folder."""
        with self._within(names[:-1]) as here:
            os.replace(_plain(names[-1]), _plain(to), src_dir_fd=here, dst_dir_fd=here)

    def remove(self, names: Names) -> None:
        """Removes a file, a link (not what it leads to), a pipe; where there is a folder, it stays.

        Raises:
            OSError: it may not be removed.
        """
        with contextlib.suppress(FileNotFoundError, OddFileError), self._within(names[:-1]) as here:
            if self.kind(names) != "folder":
                _delete(names[-1], here)

    def remove_empty(self, names: Names) -> None:
        """Removes a folder with nothing in it; one that holds something stays."""
        with contextlib.suppress(OSError), self._within(names[:-1]) as here:
            os.rmdir(_plain(names[-1]), dir_fd=here)

    def remove_tree(self, names: Names) -> None:
        """Remove the entry of that name and its contents; links are removed, not followed."""
        if self.kind(names) == "folder":
            with self._within(names[:-1]) as here:
                shutil.rmtree(_plain(names[-1]), ignore_errors=True, dir_fd=here)
        else:
            self.remove(names)

    def remove_temporary(self, names: Names = ()) -> None:
        """Remove the temporary files of killed writes."""
        for name in self.names(names):
            if name.startswith(_TEMPORARY[0]) and name.endswith(_TEMPORARY[1]):
                self.remove((*names, name))

    def lock_file(self, name: str) -> int:
        """A descriptor of a plain file of that name, made where there is none; what else has the name is removed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with self._within(()) as here:
            if self.kind((name,)) == "other":
                _delete(name, here)
            return os.open(_plain(name), flags, 0o644, dir_fd=here)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file of one's own, whole or not at all: what was there stays until all of it is on the disk.

    Where the path is a link, what it leads to is written.

    Raises:
        OSError: it cannot be written, or its folder is not there.
    """
    place = Path(os.path.realpath(path))
    with Folder.open(place.parent) as folder:
        folder.write((place.name,), data)


def _plain(name: str) -> str:
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise OddFileError(errno.EINVAL, f"{name!r} is no name of a file")
    return name


def _create(name: str, here: int) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=here)


def _delete(name: str, here: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_plain(name), dir_fd=here)
