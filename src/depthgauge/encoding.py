"""A chunk's rows as the bytes of a Parquet file, and back.

    encoded = encode(chunk, study.run(chunk.cases, context), fingerprint)
    table, told = decode(encoded.data, chunk.study, chunk.id)

Pages carry checksums, which reading verifies. The file's metadata holds what is needed to read it alone: study, chunk,
the cases' parameters, the fingerprint of where the rows were made.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd  # noqa: F401 - pyarrow imports it at its first array; here, no chunk's time passes
import pyarrow as pa
import pyarrow.parquet as pq

from depthgauge import version
from depthgauge.environment import memory_gib
from depthgauge.study import COORDINATES, Case, Chunk, Rows, StudyError, Value, spell

SCHEMA = version.SCHEMA
OK, ERROR, TIMEOUT, LOST, MACHINE = "ok", "error", "timeout", "lost", "machine"
# Not the case's own doing for certain: tried again when the run is resumed.
TRANSIENT = frozenset({TIMEOUT, LOST, MACHINE})
LARGEST = 2**30  # bytes of one chunk's file
LAST = ("metric", "value", "status", "message")

_METADATA, _SEAL = b"depthgauge", b"depthgauge.seal"


@dataclass(frozen=True)
class Failure:
    """Failure of a case that gave no rows.

    Attributes:
        case: the case.
        status: `error`, `timeout`, `lost` or `machine`.
        message: description in one line.
    """

    case: Case
    status: str
    message: str


@dataclass(frozen=True)
class Summary:
    """Summary of a finished chunk.

    Attributes:
        cases: number of cases.
        rows: rows with status `ok`.
        failed: status -> cases; empty where all is well.
        messages: the failures' messages, each once.
    """

    cases: int
    rows: int
    failed: Mapping[str, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()

    @property
    def final(self) -> bool:
        """Tell whether a resumed run leaves the chunk alone."""
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
        codes = np.repeat(np.asarray(self.codes, dtype=np.int32), np.asarray(self.lengths, dtype=np.int64))
        return pa.array(codes, mask=codes < 0)

    def text(self) -> pa.Array:
        return pa.DictionaryArray.from_arrays(self.indices(), pa.array(list(self.distinct), pa.string()))

    def integers(self) -> pa.Array:
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
        if rows.case not in self.known:
            which = rows.case.id if isinstance(rows.case, Case) else _kind(rows.case)  # type: ignore[redundant-expr] # a study is not type-checked
            raise self._wrong(f"`run` yielded rows of the case {which}, which is not in its chunk")
        if not isinstance(rows.metric, str) or not rows.metric:  # type: ignore[redundant-expr] # a study is not type-checked
            raise self._wrong(f"metric {rows.metric!r} is not a valid name")
        if np.ma.is_masked(rows.value):  # numpy would give the numbers that the mask hides
            raise self._wrong(
                f"the value of {rows.metric!r} is masked in places: yield the measured entries alone, or NaN"
            )
        try:
            values = np.asarray(rows.value)
        except Exception as error:
            raise self._wrong(f"the value of {rows.metric!r} is no array of numbers: {error}") from error
        if values.dtype.kind not in "fiub" or values.ndim > 1:
            raise self._wrong(
                f"the value of {rows.metric!r} is {_kind(rows.value)}, where a number or n numbers belong"
            )
        length = 1 if values.ndim == 0 else len(values)
        self.values.append(values.astype(np.float64, copy=True).reshape(-1))
        if length:
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
        self.values.append(np.array([np.nan]))
        self.seen.add(failure.case)
        values = {
            "case": failure.case.id,
            "metric": "",
            "status": failure.status,
            "message": _one_line(failure.message),
        }
        for name, column in self.fixed.items():
            column.add(values.get(name), 1)

    def _wrong(self, what: str) -> StudyError:
        return StudyError(f"study {self.chunk.study!r}: {what}")

    def table(self) -> pa.Table:
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
    if all(value is None or isinstance(value, str) for value in values):
        return pa.array(values, pa.string()).take(where).dictionary_encode()
    try:
        return pa.array(values).take(where)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else spell(value) for value in values]).take(where).dictionary_encode()


def encode(chunk: Chunk, results: Iterable[object], fingerprint: Mapping[str, object]) -> Encoded:
    """The Parquet file of a chunk.

    Args:
        chunk: the chunk.
        results: the `Rows` that `run` yielded, in its order; a `Failure` stands for a case that gave no rows.
        fingerprint: the environment of the rows.

    Raises:
        StudyError: rows of a case that is not the chunk's, a case without rows, lengths that do not agree, a value
            that is no number.
    """
    columns = _Columns(chunk)
    failed: dict[str, int] = {}
    messages: dict[str, None] = {}
    for result in results:
        if isinstance(result, Failure):
            columns.fail(result)
            messages[_one_line(result.message)] = None
            failed[result.status] = failed.get(result.status, 0) + 1
        elif isinstance(result, Rows):
            columns.add(result)
        else:
            got = type(result).__name__
            raise StudyError(f"study {chunk.study!r}: `run` yielded a {got}, where Rows were expected (see Case.rows)")
    table = columns.table()
    rows = table.num_rows - sum(failed.values())
    summary = Summary(len(chunk.cases), rows, dict(sorted(failed.items())), tuple(messages))
    metadata = {
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
        table.replace_schema_metadata({_METADATA: json.dumps(metadata).encode(), _SEAL: _unsealed(b"0" * 64)}),
        buffer,
        compression="zstd",
        use_dictionary=repeated,
        write_page_checksum=True,
    )
    return Encoded(_sealed(buffer.getvalue()), summary)


class DamagedError(Exception):
    """Damage of a chunk's file: it is not the file that was written."""


def decode(data: bytes, study: str, chunk: str) -> tuple[pa.Table, dict[str, Any]]:
    """The table and metadata of a chunk's file.

    The file may have come from anybody: what is returned has the columns, the types and the entries that `encode`
    writes.

    Raises:
        DamagedError: it is truncated, corrupt, another chunk's, or holds more than this machine's memory could.
    """
    start = data.rfind(_unsealed(b""))
    digest = data[start:][len(_unsealed(b"")) :][:64]
    if start < 0 or _sealed(data.replace(_unsealed(digest), _unsealed(b"0" * 64))) != data:
        raise DamagedError("its bytes are not those that were written")
    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            _check_size(file.metadata)
            metadata = json.loads(file.schema_arrow.metadata[_METADATA])
            _check_metadata(metadata)
            table = file.read(use_threads=False)  # where no thread can be started, the file is not to blame
            _check_columns(table, metadata)
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise DamagedError(_one_line(f"{type(error).__name__}: {error}")) from error
    if (metadata["study"], metadata["chunk"]) != (study, chunk):
        raise DamagedError(_one_line(f"it is chunk {metadata['chunk']} of {metadata['study']}"))
    return table, metadata


def _check_size(metadata: Any) -> None:
    """Check a file's row count against this machine's memory: a few bytes may claim a million times as much."""
    most = memory_gib() * 2**30 / 2 / 8  # numbers of 8 bytes in half of the memory
    if metadata.num_rows * max(metadata.num_columns, 1) > most:
        raise ValueError(f"it says that it holds {metadata.num_rows:,} rows, more than this machine's memory does")


def _check_metadata(metadata: Any) -> None:
    expected = {"study": str, "chunk": str, "rows": int, "failed": dict, "cases": list, "fingerprint": dict}
    if not isinstance(metadata, dict) or any(
        not isinstance(metadata.get(name), kind) for name, kind in expected.items()
    ):
        raise ValueError("its metadata are not those of a chunk")
    if metadata.get("schema") != SCHEMA:
        raise ValueError("it is not of this version of depthgauge")
    plain = (str, int, float, bool, type(None))
    if not all(isinstance(value, int) for value in metadata["failed"].values()):
        raise ValueError("its count of failures is not one of whole numbers")
    for entries in (metadata["fingerprint"], *metadata["cases"]):
        if not isinstance(entries, dict) or not all(isinstance(value, plain) for value in entries.values()):
            raise ValueError("its metadata hold something other than plain values")


def _check_columns(table: pa.Table, metadata: Mapping[str, Any]) -> None:
    for name in ("case", *COORDINATES, *LAST):
        kind = table.schema.field(name).type
        text = pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)
        if not {"value": pa.types.is_float64(kind), "layer_index": pa.types.is_int64(kind)}.get(
            name, pa.types.is_int64(kind) if name == "step" else text
        ):
            raise ValueError(f"its column {name!r} is {kind}")
    ids = {Case.of(case).id for case in metadata["cases"]}
    if table["case"].null_count or not ids.issuperset(table["case"].unique().to_pylist()):
        raise ValueError("it holds rows of cases that it does not name")


def _unsealed(digest: bytes) -> bytes:
    return b"sha256:" + digest


def _sealed(data: bytes) -> bytes:
    """Puts the digest of the whole file in its place: page checksums do not cover the metadata at the end."""
    empty = _unsealed(b"0" * 64)
    return data.replace(empty, _unsealed(hashlib.sha256(data).hexdigest().encode()))
