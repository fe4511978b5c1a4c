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
import io
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from depthgauge.environment import differences
from depthgauge.study import COORDINATES, Case, Chunk, Rows, StudyError, Value, spell

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA = 1
OK, ERROR, TIMEOUT, LOST = "ok", "error", "timeout", "lost"
TRANSIENT = frozenset({TIMEOUT, LOST})  # not the case's own doing for certain: tried again when the run is resumed

_KEY = b"depthgauge"
_RUN = "run.json"
_LOCK = ".depthgauge.lock"
_DRIVER = ".depthgauge.driver.json"
_WORK = ".depthgauge.work"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StoreError(RuntimeError):
    """The directory cannot be used as asked; the message is one sentence for the user."""


# -- rows and bytes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """What became of a case that gave no rows.

    Attributes:
        case: the case.
        status: `error`, `timeout` or `lost`.
        message: what happened, in one line.
    """

    case: Case
    status: str
    message: str


@dataclass(frozen=True)
class Summary:
    """What a finished chunk holds.

    Attributes:
        cases: how many cases it has.
        rows: rows with status `ok`.
        failed: status -> cases; empty where all is well.
    """

    cases: int
    rows: int
    failed: Mapping[str, int] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        """Whether a resumed run leaves the chunk alone."""
        return not TRANSIENT.intersection(self.failed)


@dataclass(frozen=True)
class Encoded:
    """A chunk as it goes to the disk: the bytes of its Parquet file, and what is in them."""

    data: bytes
    summary: Summary


class _Column:
    """Values that repeat: runs of codes into a list of distinct values."""

    def __init__(self) -> None:
        self.distinct: dict[object, int] = {}
        self.codes: list[int] = []
        self.lengths: list[int] = []

    def add(self, value: object, length: int) -> None:
        self.codes.append(-1 if value is None else self.distinct.setdefault(value, len(self.distinct)))
        self.lengths.append(length)

    def indices(self) -> pa.Array:
        import numpy as np
        import pyarrow as pa

        codes = np.repeat(np.asarray(self.codes, dtype=np.int32), np.asarray(self.lengths, dtype=np.int64))
        return pa.array(codes, mask=codes < 0)

    def text(self) -> pa.Array:
        import pyarrow as pa

        return pa.DictionaryArray.from_arrays(self.indices(), pa.array(list(self.distinct), pa.string()))

    def integers(self) -> pa.Array:
        import pyarrow as pa

        return pa.array(list(self.distinct), pa.int64()).take(self.indices())


class _Columns:
    """The rows of one chunk, gathered column by column: no object a row."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.known = frozenset(chunk.cases)
        self.seen: set[Case] = set()
        self.values: list[Any] = []
        self.fixed = {name: _Column() for name in ("case", *COORDINATES, "metric", "status", "message")}

    def add(self, rows: Rows) -> None:
        import numpy as np

        if not isinstance(rows, Rows):
            raise self._wrong(f"`run` yielded a {type(rows).__name__}, where Rows were expected (see Case.rows)")
        if rows.case not in self.known:
            raise self._wrong(f"`run` yielded rows of the case {rows.case.id}, which is not in its chunk")
        if not isinstance(rows.metric, str) or not rows.metric:
            raise self._wrong(f"metric {rows.metric!r} is no name")
        try:
            values = np.asarray(rows.value)
        except Exception as error:  # noqa: BLE001 - whatever a value's own conversion to an array raises
            raise self._wrong(f"the value of {rows.metric!r} is no array of numbers: {error}") from error
        if values.dtype.kind not in "fiub" or values.ndim > 1:
            raise self._wrong(
                f"the value of {rows.metric!r} is {_kind(rows.value)}, where a number or n numbers belong"
            )
        length = 1 if values.ndim == 0 else len(values)
        self.values.append(values.astype(np.float64, copy=True).reshape(-1))
        self.seen.add(rows.case)
        self.fixed["case"].add(rows.case.id, length)
        self.fixed["metric"].add(rows.metric, length)
        self.fixed["status"].add(OK, length)
        self.fixed["message"].add("", length)
        for name in COORDINATES:
            self._coordinate(name, getattr(rows, name), str if name in {"layer", "direction"} else int, length)

    def _coordinate(self, name: str, given: Any, kind: type, length: int) -> None:
        column = self.fixed[name]
        if given is None or isinstance(given, str) or not hasattr(given, "__len__"):
            column.add(self._checked(name, given, kind), length)
            return
        listed = given.tolist() if hasattr(given, "tolist") else given
        if len(listed) != length:
            raise self._wrong(f"{name} has {len(listed)} entries for {length} value(s)")
        for item in listed:
            column.add(self._checked(name, item, kind), 1)

    def _checked(self, name: str, value: Any, kind: type) -> str | int | None:
        if value is None:
            return None
        if kind is str and isinstance(value, str):
            return str(value)
        if kind is int and not isinstance(value, bool | float | str) and hasattr(value, "__index__"):
            return int(value.__index__())
        raise self._wrong(f"{name} is {value!r}, where {'text' if kind is str else 'an integer'} belongs")

    def fail(self, failure: Failure) -> None:
        import numpy as np

        self.values.append(np.array([np.nan]))
        self.seen.add(failure.case)
        told = {"case": failure.case.id, "metric": "", "status": failure.status, "message": _one_line(failure.message)}
        for name, column in self.fixed.items():
            column.add(told.get(name), 1)

    def _wrong(self, what: str) -> StudyError:
        return StudyError(f"study {self.chunk.study!r}: {what}")

    def table(self) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        silent = [case.id for case in self.chunk.cases if case not in self.seen]
        if silent:
            raise self._wrong(f"`run` yielded no rows for the case {silent[0]}")
        by_id = {case.id: dict(case.params) for case in self.chunk.cases}
        cases = [by_id[str(name)] for name in self.fixed["case"].distinct]
        where = self.fixed["case"].indices()
        columns: dict[str, pa.Array] = {"case": self.fixed["case"].text()}
        for name in sorted({name for case in cases for name in case}):
            columns[name] = _parameter([case.get(name) for case in cases], where)
        for name in ("layer", "layer_index", "direction", "step", "metric"):
            column = self.fixed[name]
            columns[name] = column.integers() if name in {"layer_index", "step"} else column.text()
        columns["value"] = pa.array(np.concatenate(self.values) if self.values else np.empty(0))
        columns |= {name: self.fixed[name].text() for name in ("status", "message")}
        return pa.table(columns)


def _kind(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 500 else line[:497] + "..."


def _parameter(values: list[Value], where: pa.Array) -> pa.Array:
    """A parameter's column: of its own type, or spelled out where cases mix types."""
    import pyarrow as pa

    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string()).take(where).dictionary_encode()
    try:
        return pa.array(values).take(where)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else spell(value) for value in values]).take(where).dictionary_encode()


def encode(chunk: Chunk, results: Iterable[Rows | Failure], fingerprint: Mapping[str, object]) -> Encoded:
    """The Parquet file of a chunk.

    Args:
        chunk: the chunk.
        results: what `run` yielded, in its order; a `Failure` stands for a case that gave no rows.
        fingerprint: where the rows were made.

    Raises:
        StudyError: rows of a case that is not the chunk's, a case without rows, lengths that do not agree, a value
            that is no number.
    """
    import pyarrow.parquet as pq

    columns = _Columns(chunk)
    failed: dict[str, int] = {}
    for result in results:
        if isinstance(result, Failure):
            columns.fail(result)
            failed[result.status] = failed.get(result.status, 0) + 1
        else:
            columns.add(result)
    table = columns.table()
    summary = Summary(len(chunk.cases), table.num_rows - sum(failed.values()), dict(sorted(failed.items())))
    told = {
        "schema": SCHEMA,
        "study": chunk.study,
        "chunk": chunk.id,
        "rows": summary.rows,
        "failed": summary.failed,
        "cases": [dict(case.params) for case in chunk.cases],
        "fingerprint": dict(fingerprint),
    }
    buffer = io.BytesIO()
    repeated = [name for name in table.column_names if name != "value"]
    pq.write_table(
        table.replace_schema_metadata({_KEY: json.dumps(told).encode()}),
        buffer,
        compression="zstd",
        use_dictionary=repeated,
        write_page_checksum=True,
    )
    return Encoded(buffer.getvalue(), summary)


class _DamagedError(Exception):
    """A chunk's file is not what was written."""


def _decode(path: Path, study: str, chunk: str) -> tuple[pa.Table, dict[str, Any]]:
    """The table and metadata of a chunk's file.

    Raises:
        _DamagedError: it is truncated, corrupt, or another chunk's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
            table.validate(full=True)
            told = json.loads((table.schema.metadata or {})[_KEY])
            names = {Case.of(params).id for params in told["cases"]}
            rows = told["rows"] + sum(told["failed"].values())
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise _DamagedError(_one_line(f"{type(error).__name__}: {error}")) from error
    columns = ["case", *sorted({n for c in told["cases"] for n in c}), *COORDINATES, *_LAST]
    if table.column_names != columns or table.num_rows != rows or told["study"] != study or told["chunk"] != chunk:
        raise _DamagedError("its rows are not those that its metadata tells of")
    if set(table["case"].unique().to_pylist()) != names:
        raise _DamagedError("its cases are not those that its metadata tells of")
    return table, told


_LAST = ("metric", "value", "status", "message")


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
        import numpy as np
        import pandas as pd
        import pyarrow as pa

        if study not in self.run["request"]:
            raise StoreError(f"{self.directory} holds no study {study!r}; it holds {', '.join(self.studies) or 'none'}")
        fixed = ["case", *COORDINATES, *_LAST]
        tables: list[pa.Table] = []
        params: dict[str, dict[str, Value]] = {}
        for chunk in self.chunks(study):
            path = self.directory / "chunks" / study / f"{chunk}.parquet"
            try:
                table, told = _decode(path, study, chunk)
            except FileNotFoundError:
                continue
            except _DamagedError as error:
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
    beside = path.with_name(f".{os.getpid()}.tmp")  # short: a chunk's name may fill what a file name may hold
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
        elif foreign := sorted(path.name for path in self.directory.iterdir() if path.name not in {_LOCK, _DRIVER}):
            raise StoreError(f"{self.directory} is not a run directory: it holds {foreign[0]!r} and no run.json")
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
            StoreError: rows of a study were made by other code of that study's own, or the disk is full.
        """
        for study, asked in request.items():
            before = self.run["request"].get(study, asked)
            if before.get("source") != asked.get("source"):
                raise StoreError(
                    f"{self.directory} holds rows of {study!r} that were made by other code ({before.get('origin')});"
                    " use another --out, or --fresh to start over"
                )
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
            try:
                _, told = _decode(path, chunk.study, chunk.id)
                if changed := differences(told["fingerprint"], self.run["fingerprint"]):
                    raise _DamagedError(f"its rows were made otherwise: {', '.join(changed)}")
            except FileNotFoundError:
                continue
            except _DamagedError as error:
                with plainly(f"{path} cannot be set aside"):
                    path.replace(path.with_suffix(".damaged"))
                self.damaged.append(f"{path} is damaged ({error}): set aside, and measured anew")
                continue
            summary = Summary(len(chunk.cases), told["rows"], told["failed"])
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


def _locked(directory: Path) -> Any:
    from filelock import FileLock, Timeout

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
    import shutil

    shutil.rmtree(directory / _WORK, ignore_errors=True)
    for beside in (*directory.glob(".*.tmp"), *directory.glob("chunks/*/.*.tmp")):
        if beside.name[1:-4].isdigit():
            beside.unlink(missing_ok=True)


def _forget(directory: Path) -> None:
    """Removes what depthgauge made in a run directory, and nothing else; `run.json` last, so that it can be cut short."""
    try:
        studies = [*((_run_json(directory) or {}).get("request") or ())]
    except StoreError:
        studies = []
    ours = [
        *("chunks/*/*.parquet", "chunks/*/*.damaged"),
        *("report/report.md", "report/index.html", "report/findings.json"),
        *("report/tables/*.csv", "report/figures/*.png", "report/figures/*.svg"),
        *(f"report/{study}.md" for study in studies),
        *("traces/*.json", "traces/*.json.gz"),
    ]
    for path in (path for pattern in ours for path in directory.glob(pattern)):
        path.unlink()
    for folder in ("chunks/*", "chunks", "report/tables", "report/figures", "report", "traces"):
        for path in directory.glob(folder):
            with contextlib.suppress(OSError):  # it holds something that is not ours
                path.rmdir()
    (directory / _RUN).unlink()
