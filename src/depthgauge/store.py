"""A run's directory: one Parquet file a finished chunk, and `run.json` for what was asked and where.

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
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from filelock import FileLock, Timeout

from depthgauge.encoding import LAST, SCHEMA, DamagedError, Summary, decode
from depthgauge.environment import differences
from depthgauge.study import COORDINATES, Case, Chunk, Value

_RUN = "run.json"
_LOCK = ".depthgauge.lock"
_DRIVER = ".depthgauge.driver.json"
_WORK = ".depthgauge.work"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(RuntimeError):
    """The directory cannot be used as asked; the message is one sentence for the user."""


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """What a run directory holds.

    Attributes:
        directory: where it is.
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

    def missing(self, study: str) -> int:
        """How many of the chunks asked for are not finished."""
        folder = self.directory / "chunks" / study
        return sum(not (folder / f"{chunk}.parquet").exists() for chunk in self.chunks(study))

    def frame(self, study: str) -> pd.DataFrame:
        """The study's rows: chunks in the request's order, each as `run` yielded it.

        Columns: `case`, the parameters in alphabetical order, `layer`, `layer_index`, `direction`, `step`, `metric`,
        `value` (float64), `status`, `message`. What a case lacks is missing (NaN or None); integers of a column with
        missing entries are floats.

        Raises:
            StoreError: the study is not in this run, or a file of it is damaged.
        """
        if study not in self.run["request"]:
            raise StoreError(f"{self.directory} holds no study {study!r}; it holds {', '.join(self.studies) or 'none'}")
        fixed = ["case", *COORDINATES, *LAST]
        tables: list[pa.Table] = []
        params: dict[str, dict[str, Value]] = {}
        for chunk in self.chunks(study):
            path = self.directory / "chunks" / study / f"{chunk}.parquet"
            if not path.exists():
                continue
            try:
                with plainly(f"{path} cannot be read"):
                    table, told = decode(path, study, chunk)
            except DamagedError as error:
                raise StoreError(
                    f"{path} is damaged ({error}); run again into {self.directory} to measure that chunk anew"
                ) from error
            tables.append(table.select(fixed))
            params |= {Case.of(case).id: case for case in told["cases"]}
        if not tables:
            return pd.DataFrame({name: pd.Series(dtype=_EMPTY.get(name, "object")) for name in fixed})
        table = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
        case = table["case"].chunk(0) if table["case"].num_chunks else table["case"].combine_chunks()
        ids, where = case.dictionary.to_pylist(), np.asarray(case.indices)
        plain = pa.table(
            {
                name: column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
        ).to_pandas()
        given = {
            name: pd.Series([params[i].get(name) for i in ids]).take(where).reset_index(drop=True)
            for name in sorted({name for i in ids for name in params[i]})
        }
        return pd.DataFrame({"case": plain["case"], **given, **{name: plain[name] for name in fixed[1:]}})


_EMPTY = {"value": "float64", "layer_index": "float64", "step": "float64"}


def read(directory: str | Path) -> Stored:
    """What a run directory holds.

    Raises:
        StoreError: it is no run directory, or its `run.json` cannot be read.
    """
    directory = Path(directory)
    run = _run_json(directory)
    if run is None:
        what = "is not a run directory: it has no run.json" if directory.is_dir() else "does not exist"
        raise StoreError(f"{directory} {what}")
    return Stored(directory, run)


def _run_json(directory: Path) -> dict[str, Any] | None:
    path = directory / _RUN
    try:
        run = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); use another directory, or --fresh to start over") from error
    if (
        not isinstance(run, dict)
        or run.get("schema") != SCHEMA
        or not {"request", "chunks", "fingerprint"} <= run.keys()
    ):
        raise StoreError(
            f"{path} is not of this version of depthgauge; use another directory, or --fresh to start over"
        )
    return run


# -- writing -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plainly(what: str) -> Iterator[None]:
    """Turns an operating system's refusal (a full disk, a forbidden path) into one sentence.

    Raises:
        StoreError: in place of `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason = "the disk is full; what was finished is kept: make room and run the same command again"
        else:
            reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise StoreError(f"{what}: {reason}") from error


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: beside, to the disk, renamed; nothing is left behind where it fails."""
    beside = path.with_name(
        f".depthgauge.{os.getpid()}.tmp"
    )  # short: a chunk's name may fill what a file name may hold
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Store:
    """A run directory, open for one driver; a context manager that holds the directory's lock.

    Attributes:
        directory: where it is.
        run: what stands in `run.json`.
        work: a folder for temporary files, removed at the end.
        damaged: one line for each file that was set aside.
    """

    def __init__(self, directory: Path, fingerprint: Mapping[str, object], lock: Any) -> None:
        self.directory = directory
        self.run: dict[str, Any] = {
            "schema": SCHEMA,
            "request": {},
            "command": "",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": dict(fingerprint),
            "chunks": {},
            "models": {},
        }
        self.work = directory / _WORK
        self.damaged: list[str] = []
        self._lock = lock

    @classmethod
    def open(cls, directory: str | Path, fingerprint: Mapping[str, object], *, fresh: bool = False) -> Store:
        """Opens a directory for writing; makes it where it is not there.

        Args:
            directory: a run directory, an empty or a new one.
            fingerprint: where the rows to come are made.
            fresh: forget what an earlier run left; files that depthgauge did not make stay.

        Raises:
            StoreError: another driver holds it, it holds something else, or rows with another fingerprint.
        """
        directory = Path(directory)
        with plainly(f"{directory} cannot be written"):
            directory.mkdir(parents=True, exist_ok=True)
            _check_ours(directory)  # before anything is written there
            lock = _locked(directory)
        store = cls(directory, fingerprint, lock)
        try:
            with plainly(f"{directory} cannot be written"):
                store._prepare(fresh=fresh)
        except BaseException:
            store.close()
            raise
        return store

    def _prepare(self, *, fresh: bool) -> None:
        _clear_work(self.directory)
        if (self.directory / _RUN).exists():
            if fresh:
                _forget(self.directory)
            else:
                self._resume()
        else:
            _check_ours(self.directory)
        self._save()  # before the first chunk: what has chunks has a run.json
        self.work.mkdir()

    def _resume(self) -> None:
        run = _run_json(self.directory)
        assert run is not None
        changed = differences(run["fingerprint"], self.run["fingerprint"])
        if changed:
            raise StoreError(
                f"{self.directory} holds rows that were made otherwise: {', '.join(changed)};"
                " use another --out, or --fresh to start over"
            )
        self.run = run

    def _save(self) -> None:
        data = json.dumps(self.run, indent=1).encode() + b"\n"
        path = self.directory / _RUN
        if not path.exists() or path.read_bytes() != data:
            _write(path, data)

    def plan(self, request: Mapping[str, Mapping[str, object]], chunks: Mapping[str, Sequence[Chunk]]) -> None:
        """Records what is asked for: studies are added to those of earlier runs, or take their place.

        Raises:
            StoreError: rows were made by other code of a study's or a model's own, or the disk is full.
        """
        models = {**self.run.get("models", {})}  # spec -> source, for as long as there are rows of it
        for study, asked in request.items():
            before = self.run["request"].get(study, asked)
            if before.get("source") != asked.get("source"):
                raise StoreError(
                    f"{self.directory} holds rows of {study!r} that were made by other code ({before.get('origin')});"
                    " use another --out, or --fresh to start over"
                )
            spec, source = asked.get("model"), asked.get("model_source")
            if models.setdefault(spec, source) != source:
                raise StoreError(
                    f"{self.directory} holds rows that were made by other code of {spec};"
                    " use another --out, or --fresh to start over"
                )
        models.pop(None, None)
        self.run["models"] = models
        self.run["request"] = dict(sorted({**self.run["request"], **{k: dict(v) for k, v in request.items()}}.items()))
        self.run["chunks"] |= {study: [chunk.id for chunk in parts] for study, parts in chunks.items()}
        with plainly(f"{self.directory / _RUN} cannot be written"):
            self._save()
            for study in chunks:
                (self.directory / "chunks" / study).mkdir(parents=True, exist_ok=True)

    def finished(self, chunks: Iterable[Chunk]) -> dict[str, Summary]:
        """Chunk id -> what it holds, for those that a resumed run leaves alone.

        Every file is read and its checksums verified; one that is damaged is set aside, and `damaged` says so.
        """
        found: dict[str, Summary] = {}
        for chunk in chunks:
            path = self._path(chunk)
            if not path.exists():
                continue
            try:
                with plainly(f"{path} cannot be read"):
                    table, told = decode(path, chunk.study, chunk.id)
                if changed := differences(told["fingerprint"], self.run["fingerprint"]):
                    raise DamagedError(f"its rows were made otherwise: {', '.join(changed)}")
            except DamagedError as error:
                with plainly(f"{path} cannot be set aside"):
                    path.replace(path.with_suffix(".damaged"))
                self.damaged.append(f"{path} is damaged ({error}): set aside, and measured anew")
                continue
            messages = tuple(filter(None, table["message"].unique().to_pylist()))
            summary = Summary(len(chunk.cases), told["rows"], told["failed"], messages)
            if summary.final:
                found[chunk.id] = summary
        return found

    def write(self, chunk: Chunk, data: bytes) -> None:
        """Stores a finished chunk.

        Args:
            chunk: the chunk.
            data: its file, from `encode`.

        Raises:
            StoreError: the disk is full; nothing of the chunk is left behind.
        """
        path = self._path(chunk)
        with plainly(f"{path} cannot be written"):
            _write(path, data)

    def record(self, **entries: object) -> None:
        """Sets entries of `run.json`."""
        self.run |= entries
        with plainly(f"{self.directory / _RUN} cannot be written"):
            self._save()

    def _path(self, chunk: Chunk) -> Path:
        return self.directory / "chunks" / chunk.study / f"{chunk.id}.parquet"

    def stored(self) -> Stored:
        """What the directory holds now, to read."""
        return Stored(self.directory, self.run)

    def close(self) -> None:
        """Lets go of the directory."""
        with contextlib.suppress(OSError):
            _clear_work(self.directory)
            (self.directory / _DRIVER).unlink(missing_ok=True)
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def _check_ours(directory: Path) -> None:
    if not (directory / _RUN).exists():
        foreign = sorted(path.name for path in directory.iterdir() if not path.name.startswith(".depthgauge."))
        if foreign:
            raise StoreError(f"{directory} is not a run directory: it holds {foreign[0]!r} and no run.json")


def _locked(directory: Path) -> Any:
    # The kernel drops the lock with the process that held it, so a dead driver's directory is free.
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            holder = json.loads((directory / _DRIVER).read_bytes())
            who = f"by process {holder['pid']} on {holder['host']}, since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            who = "by another process"
        raise StoreError(f"{directory} is in use {who}; wait for it, or use another --out") from None
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        (directory / _DRIVER).write_text(json.dumps(me))
    except BaseException:
        lock.release()
        raise
    return lock


def _clear_work(directory: Path) -> None:
    """Removes what a driver left that was killed."""
    shutil.rmtree(directory / _WORK, ignore_errors=True)
    for beside in (*directory.glob(".depthgauge.*.tmp"), *directory.glob("chunks/*/.depthgauge.*.tmp")):
        beside.unlink(missing_ok=True)


def _forget(directory: Path) -> None:
    """Removes what depthgauge made in a run directory and nothing else; `run.json` last: it may be cut short."""
    try:
        studies = [*((_run_json(directory) or {}).get("request") or ())]
    except StoreError:
        studies = []
    ours = [
        *("chunks/*/*.parquet", "chunks/*/*.damaged"),
        *("report/report.md", "report/index.html", "report/findings.json"),
        *("report/tables/*.csv", "report/figures/*.png", "report/figures/*.svg"),
        *(f"report/{study}.md" for study in studies),
        *("traces/*.json", "traces/*.json.gz", "traces/*/*.json.gz"),
    ]
    for path in (path for pattern in ours for path in directory.glob(pattern)):
        path.unlink()
    for folder in ("chunks/*", "chunks", "report/tables", "report/figures", "report", "traces/*", "traces"):
        for path in directory.glob(folder):
            with contextlib.suppress(OSError):  # it holds something that is not ours
                path.rmdir()
    (directory / _RUN).unlink()
