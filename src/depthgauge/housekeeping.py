"""Housekeeping of a run directory: one driver's lock, the rests of a killed driver, and `--fresh`."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime

from depthgauge import jsonfile, runfile
from depthgauge.folder import Folder, Names
from depthgauge.runfile import LostError, StoreError
from depthgauge.study import is_name

DRIVER = ".depthgauge.driver.json"
WORK = ".depthgauge.work"
_LOCK = ".depthgauge.lock"


def check_ours(folder: Folder) -> None:
    """Check that the folder is a run directory or empty.

    Raises:
        StoreError: it is somebody's.
    """
    if not folder.kind((runfile.NAME,)) and not any(runfile.stored_chunks(folder)):
        foreign = [name for name in folder.names() if not name.startswith(".depthgauge.")]
        if foreign:
            raise StoreError(f"{folder.path} is not a run directory: it holds {foreign[0]!r} and no run.json")


def check_report(folder: Folder) -> None:
    """Check that a report may be written there: what its place holds is a report, or nothing.

    Raises:
        StoreError: it is somebody's.
    """
    kind, held = folder.kind(("report",)), folder.names(("report",))
    if kind == "file" or (kind == "folder" and held and not folder.kind(("report", "findings.json"))):
        what = "is a file" if kind == "file" else f"holds {held[0]!r} and no findings.json"
        raise StoreError(
            f"{folder.path / 'report'} {what}, and a report would take its place: move it, or use another --out"
        )


def locked(folder: Folder) -> int:
    """A descriptor that holds the folder's lock until it is closed.

    Raises:
        StoreError: another driver has it.
    """
    # The kernel drops the lock with the process that held it, so a dead driver's directory is free.
    lock = folder.lock_file(_LOCK)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        folder.write((DRIVER,), json.dumps(me).encode())
    except BlockingIOError:
        os.close(lock)
        raise StoreError(f"{folder.path} is in use {_holder(folder)}; wait for it, or use another --out") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _holder(folder: Folder) -> str:
    try:
        owner = jsonfile.parse(folder.read((DRIVER,), most=4096))
        return f"by process {owner['pid']:d} on {owner['host']!s:.100}, since {owner['since']!s:.40}"
    except (OSError, ValueError, KeyError, TypeError):
        return "by another process"


def clear_work(folder: Folder) -> None:
    """Remove the files that a killed driver left."""
    folder.remove_tree((WORK,))
    folder.remove_temporary()
    for study in folder.names(("chunks",)):
        folder.remove_temporary(("chunks", study))


def forget(folder: Folder) -> None:
    """Remove depthgauge's own files from a run directory, `run.json` last: the removal may be cut short.

    What has the place of something of depthgauge's, and is of another kind, is set aside; a link is removed.
    """
    try:
        run = runfile.load(folder) or {}
    except LostError:
        run = {}
    for below, ours in _own_entries(folder, {*run.get("request", ())}):
        for name in filter(ours, folder.names(below)):
            _give_way(folder, (*below, name), "file")
            folder.remove((*below, name))
    for below, _ in reversed(_own_entries(folder, set())):
        folder.remove_empty(below)
        _give_way(folder, below, "folder")
    _give_way(folder, ("report",), "")  # a report takes the place of all that is there
    _give_way(folder, (runfile.NAME,), "file")
    folder.remove((runfile.NAME,))


def _own_entries(folder: Folder, requested: set[str]) -> list[tuple[Names, Callable[[str], bool]]]:
    """The folders that depthgauge makes, and which of the names in them are its own."""
    studies = [name for name in folder.names(("chunks",)) if is_name(name)]
    pages = {"report.md", "index.html", "findings.json", *(f"{study}.md" for study in {*studies, *requested})}
    return [
        (("chunks",), lambda _: False),
        *((("chunks", study), _ending(".parquet", ".damaged")) for study in studies),
        (("report",), pages.__contains__),
        (("report", "tables"), _ending(".csv")),
        (("report", "figures"), _ending(".png", ".svg")),
        (("traces",), _ending(".json", ".json.gz")),
        *((("traces", study), _ending(".json.gz")) for study in folder.names(("traces",)) if is_name(study)),
    ]


def _give_way(folder: Folder, names: Names, belongs: str) -> None:
    kind = folder.kind(names)
    if kind == "other":
        folder.remove(names)
    elif kind not in {"", belongs}:
        folder.rename(names, f"{names[-1]}.{os.getpid()}.aside")


def _ending(*ends: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(ends)
