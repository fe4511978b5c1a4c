"""A run's directory: one Parquet file a finished chunk, and `run.json` for the request and the environment.

    with Store.open("runs/x", fingerprint("cpu")) as store:      # one driver at a time
        store.plan({"my_study": {"preset": "quick"}}, {"my_study": chunks})
        for chunk in chunks:
            if chunk.id not in store.finished(chunks):
                store.write(chunk, encode(chunk, rows, store.run["fingerprint"]).data)
    frame = read("runs/x").frame("my_study")

A file appears whole or not at all: it is written beside, flushed to the disk and renamed. Its pages carry checksums,
and its metadata what is needed to read it alone: study, chunk, the cases' parameters, the fingerprint.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd
import pyarrow as pa

from depthgauge import housekeeping, identity, reading, runfile
from depthgauge.encoding import LARGEST, SCHEMA, DamagedError, Summary, decode
from depthgauge.folder import Folder, OddFileError
from depthgauge.runfile import LostError, StoreError
from depthgauge.study import Chunk, is_name

__all__ = ["Store", "StoreError", "Stored", "read", "storage_errors"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """The content of a run directory.

    Attributes:
        directory: the run directory's path.
        run: `run.json`.
    """

    directory: Path
    run: Mapping[str, Any]

    @property
    def studies(self) -> tuple[str, ...]:
        """Names of the studies that were asked for, in alphabetical order."""
        return tuple(sorted(self.run["request"]))

    def chunks(self, study: str) -> tuple[str, ...]:
        """Ids of the chunks that were asked for, in their order."""
        return tuple(self.run["chunks"].get(study, ()))

    @property
    def lost(self) -> bool:
        """Tell whether `run.json` was lost, so that the request is known from the chunks alone."""
        return bool(self.run.get(runfile.LOST))

    def missing(self, study: str) -> int:
        """Count the requested chunks that are not finished."""
        if not is_name(study):
            return len(self.chunks(study))
        with Folder.open(self.directory) as folder:
            there = set(folder.names(("chunks", study)))
        return sum(f"{chunk}.parquet" not in there for chunk in self.chunks(study))

    def frame(self, study: str, chunks: Iterable[str] | None = None) -> pd.DataFrame:
        """The study's rows: chunks in the request's order, each as `run` yielded it.

        Args:
            study: its name.
            chunks: ids of the chunks whose rows are wanted; None for all that were asked for.

        Columns: `case`, the parameters in alphabetical order, `layer`, `layer_index`, `direction`, `step`, `metric`,
        `value` (float64), `status`, `message`. What a case lacks is missing (NaN or None); integers of a column with
        missing entries are floats. A parameter with values that are equal, but not the same (1, 1.0 and True), is
        spelled as in the cases' ids.

        Raises:
            StoreError: the study is not in this run, or a file of it is damaged.
        """
        self._check(study)
        return reading.whole(self.chunks(study) if chunks is None else chunks, partial(self._chunk, study))

    def rows(self, study: str, chunks: Iterable[str] | None = None) -> reading.StudyRows:
        """The study's rows, to be read part by part; one pass over its files tells what they hold.

        Args:
            study: its name.
            chunks: ids of the chunks whose rows are wanted; None for all that were asked for.

        Raises:
            StoreError: as `frame`; so do the rows when they are read.
        """
        self._check(study)
        return reading.StudyRows(self.chunks(study) if chunks is None else chunks, partial(self._chunk, study))

    def _check(self, study: str) -> None:
        if study not in self.run["request"]:
            raise StoreError(f"{self.directory} holds no study {study!r}; it holds {', '.join(self.studies) or 'none'}")

    def _chunk(self, study: str, chunk: str) -> tuple[pa.Table, dict[str, Any]] | None:
        with storage_errors(f"{self.directory} cannot be read"), Folder.open(self.directory) as folder:
            return _chunk(folder, study, chunk)


def _chunk(folder: Folder, study: str, chunk: str) -> tuple[pa.Table, dict[str, Any]] | None:
    """A chunk's table and metadata; None where it is not finished."""
    names = "chunks", study, f"{chunk}.parquet"
    path = folder.path.joinpath(*names)
    if not folder.kind(names):
        return None
    try:
        with storage_errors(f"{path} cannot be read"):
            return decode(folder.read(names, most=LARGEST), study, chunk)
    except DamagedError as error:
        raise StoreError(f"{path} is damaged ({error}); run again into {folder.path} to measure it anew") from error


def read(directory: str | Path) -> Stored:
    """Read a run directory; where its `run.json` is lost, as far as the chunks tell.

    Raises:
        StoreError: it is no run directory, or its `run.json` cannot be read.
    """
    directory = Path(directory)
    try:
        with Folder.open(directory) as folder:
            run = _run(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{directory} does not exist") from None
    except OSError as error:
        raise StoreError(f"{directory} cannot be read: {error.strerror}") from error
    if run is None:
        raise StoreError(f"{directory} is not a run directory: it has no run.json, and no rows")
    return Stored(directory, run)


def _run(folder: Folder) -> dict[str, Any] | None:
    try:
        return runfile.load(folder) or runfile.recovered(folder)
    except LostError:
        run = runfile.recovered(folder)
        if run is None:
            raise
        return run


# -- writing -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turns an operating system's refusal (a full disk, a forbidden path) into one sentence.

    Raises:
        StoreError: in place of `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason = "the disk is full; what is finished is kept: make room and run the same command again"
        else:
            reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise StoreError(f"{what}: {reason}") from error


class Store:
    """A run directory, open for one driver; a context manager that holds the directory's lock.

    Attributes:
        directory: the run directory's path.
        run: the content of `run.json`.
        work: a folder for temporary files, removed at the end.
        notes: a sentence for the user on each file that was set aside.
    """

    def __init__(self, folder: Folder, fingerprint: Mapping[str, object]) -> None:
        self.directory = folder.path
        self.run: dict[str, Any] = {
            "schema": SCHEMA,
            "request": {},
            "command": "",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": dict(fingerprint),
            "chunks": {},
            "models": {},
        }
        self.work = self.directory / housekeeping.WORK
        self.notes: list[str] = []
        self._folder = folder
        self._lock: int | None = None

    @classmethod
    def open(cls, directory: str | Path, fingerprint: Mapping[str, object], *, fresh: bool = False) -> Store:
        """Opens a directory for writing; makes it where it is not there.

        Args:
            directory: a run directory, an empty or a new one.
            fingerprint: the environment of the rows to come.
            fresh: forget what an earlier run left; files that depthgauge did not make stay.

        Raises:
            StoreError: another driver holds it, it holds something else, or rows with another fingerprint.
        """
        directory = Path(directory)
        with storage_errors(f"{directory} cannot be written"):
            directory.mkdir(parents=True, exist_ok=True)
            store = cls(Folder.open(directory), fingerprint)
        try:
            with storage_errors(f"{directory} cannot be written"):
                store._prepare(fresh=fresh)
        except BaseException:
            store.close()
            raise
        return store

    def _prepare(self, *, fresh: bool) -> None:
        housekeeping.check_ours(self._folder)  # before anything is written there
        self._lock = housekeeping.locked(self._folder)
        housekeeping.clear_work(self._folder)
        if fresh:
            housekeeping.forget(self._folder)
        else:
            housekeeping.check_report(self._folder)
            self._resume()
        self._save()  # before the first chunk: what has chunks has a run.json
        self._folder.make((housekeeping.WORK,))

    def _resume(self) -> None:
        run = runfile.load(self._folder)
        if run is None:
            run = runfile.recovered(self._folder)
            if run is None:
                return
            self.notes.append(f"{self.directory / runfile.NAME} was lost; its rows are kept{runfile.left_out(run)}")
            run = {name: entry for name, entry in run.items() if name not in {runfile.LOST, runfile.TWICE}}
        changed = identity.of_directory(run["fingerprint"], self.run["fingerprint"])
        if changed:
            raise StoreError(
                f"{self.directory} holds rows from another environment: {', '.join(changed)};"
                " use another --out, or --fresh to start over"
            )
        self.run = run

    def _save(self) -> None:
        data = json.dumps(self.run, indent=1).encode() + b"\n"
        try:
            unchanged = self._folder.read((runfile.NAME,), most=len(data)) == data
        except OSError:
            unchanged = False
        if not unchanged:
            self._folder.write((runfile.NAME,), data)

    def plan(self, request: Mapping[str, Mapping[str, object]], chunks: Mapping[str, Sequence[Chunk]]) -> None:
        """Record the request: studies are added to those of earlier runs, or take their place.

        While a study waits for its second stage, what an earlier run of the same has asked for stays as it is.

        Raises:
            StoreError: rows were made by other code of a study's or a model's own, or the disk is full.
        """
        models = {**self.run.get("models", {})}  # spec -> source, for as long as there are rows of it
        for study, entry in request.items():
            before = self.run["request"].get(study, entry)
            if others := identity.of_request(study, before, entry, models):
                raise StoreError(f"{self.directory} holds {others}; use another --out, or --fresh to start over")
            models[entry.get("model")] = entry.get("model_source")
        models.pop(None, None)
        self.run["models"] = models
        for study, entry in request.items():
            asked = [chunk.id for chunk in chunks.get(study, ())]
            if not self._knows_more(study, entry, asked):
                self.run["request"][study], self.run["chunks"][study] = dict(entry), asked
            else:
                self.run["request"][study] |= {name: entry[name] for name in ("origin", "root") if name in entry}
        self.run["request"] = dict(sorted(self.run["request"].items()))
        with storage_errors(f"{self.directory / runfile.NAME} cannot be written"):
            self._save()
        for study in chunks:
            with storage_errors(f"{self.directory / 'chunks' / study} cannot be written"):
                self._folder.make(("chunks", study))

    def _knows_more(self, study: str, entry: Mapping[str, object], asked: Sequence[str]) -> bool:
        """Tell whether an earlier run has asked for the second stage that this one, on the same, still waits for."""
        before, chunks = self.run["request"].get(study, {}), self.run["chunks"].get(study, ())
        return (
            bool(entry.get("second_waits"))
            and not before.get("second_waits")
            and identity.asks_the_same(before, entry)
            and (set(asked) <= {*chunks} or bool(before.get("stopped")))
        )

    def finished(self, chunks: Iterable[Chunk], **marks: object) -> dict[str, Summary]:
        """Chunk id -> what it holds, for those that a resumed run leaves alone.

        Every file is read and its checksums verified; one that is damaged is set aside, and `notes` says so.

        Args:
            chunks: the requested chunks.
            marks: the entries of their fingerprint that are their study's alone (`identity.marks`).
        """
        summaries = {chunk.id: self._finished(chunk, marks) for chunk in chunks}
        return {chunk: summary for chunk, summary in summaries.items() if summary is not None and summary.final}

    def _finished(self, chunk: Chunk, marks: Mapping[str, object]) -> Summary | None:
        names = _names(chunk)
        path = self.directory.joinpath(*names)
        if not self._folder.kind(names):
            return None
        try:
            with storage_errors(f"{path} cannot be read"):
                table, metadata = decode(self._read(names), chunk.study, chunk.id)
            if changed := identity.of_chunk(metadata["fingerprint"], self.run["fingerprint"], marks):
                raise DamagedError(f"its rows come from other code or another environment: {', '.join(changed)}")
        except DamagedError as error:
            with storage_errors(f"{path} cannot be set aside"):
                self._folder.rename(names, f"{chunk.id}.damaged")
            self.notes.append(f"{path} is damaged ({error}): set aside, and measured anew")
            return None
        messages = tuple(filter(None, table["message"].unique().to_pylist()))
        return Summary(len(chunk.cases), metadata["rows"], metadata["failed"], messages)

    def _read(self, names: tuple[str, ...]) -> bytes:
        try:
            return self._folder.read(names, most=LARGEST)
        except OddFileError as error:
            raise DamagedError(error.strerror) from error

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Stores a finished chunk.

        Args:
            chunk: the chunk.
            data: its file, from `encode`.

        Raises:
            StoreError: the disk is full; nothing of the chunk is left behind.
        """
        path = self.directory.joinpath(*_names(chunk))
        if len(data) > LARGEST:
            raise StoreError(f"{path} would be larger than 1 GiB: give the study's grid a smaller `chunk`")
        with storage_errors(f"{path} cannot be written"):
            self._folder.write(_names(chunk), data)

    def record(self, **entries: object) -> None:
        """Sets entries of `run.json`."""
        self.run |= entries
        with storage_errors(f"{self.directory / runfile.NAME} cannot be written"):
            self._save()

    def stored(self) -> Stored:
        """Read the directory as it is now."""
        return Stored(self.directory, self.run)

    def close(self) -> None:
        """Release the directory."""
        if self._lock is not None:
            with contextlib.suppress(OSError):
                housekeeping.clear_work(self._folder)
                self._folder.remove((housekeeping.DRIVER,))
            os.close(self._lock)  # and the lock with it
            self._lock = None
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def _names(chunk: Chunk) -> tuple[str, ...]:
    return "chunks", chunk.study, f"{chunk.id}.parquet"
