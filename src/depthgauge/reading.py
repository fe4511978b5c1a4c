"""A stored study's rows as frames: all of them, or one part's, and no more in memory than that.

    rows = StudyRows(ids, decoded)        # decoded: a chunk's id -> its table and metadata
    rows.parts, rows.cases, rows.broken   # from one pass over the files, a chunk in memory at a time
    rows.measured("signal")               # the rows of one part that have a value

A frame's numbers take 8 bytes each, and so do its texts: equal ones are one object, however long a case's id is.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from depthgauge.encoding import LAST, OK
from depthgauge.study import COORDINATES, PART, Case, Value, spell

FIXED = ("case", *COORDINATES, *LAST)

Decoded = Callable[[str], "tuple[pa.Table, Mapping[str, Any]] | None"]

_NUMBERS = ("layer_index", "step")
_EMPTY = {"value": "float64", **dict.fromkeys(_NUMBERS, "float64")}
# Where pandas has a dtype for text, its form that points to texts; the other one holds every text anew.
_TEXT: Any = object if pd.Series(["text"]).dtype == object else pd.StringDtype("python", na_value=np.nan)


class StudyRows:
    """The rows of a study; made by one pass over its files.

    Args:
        chunks: ids of its chunks, in their order.
        decoded: reads one; None where it is not finished.

    Attributes:
        parts: part -> ids of its chunks; None is the part of cases without one.
        cases: cases with rows.
        measured_rows: rows with status `ok`.
        diverged: cases that have said so, by a metric of that name.
        broken: the other rows: case, status, message.
        finite: part -> rows with status `ok`, and whether the value of any is finite.
    """

    def __init__(self, chunks: Iterable[str], decoded: Decoded) -> None:
        self.parts: dict[Value, list[str]] = {}
        self.cases = 0
        self.diverged = 0
        self.finite: dict[Value, tuple[int, bool]] = {}
        self._decoded = decoded
        self._chunks = tuple(chunks)
        self._levels = _Levels()
        broken: list[pd.DataFrame] = []
        for chunk in self._chunks:
            read = decoded(chunk)
            if read is None:
                continue
            columns = _Columns.of(*read)
            self._levels.add(columns)
            for part in dict.fromkeys(case.get(PART) for case in columns.cases):
                self.parts.setdefault(part, []).append(chunk)
            self._tally(columns)
            broken += columns.broken()
        self.broken = pd.concat(broken, ignore_index=True) if broken else pd.DataFrame(columns=["case", *LAST[2:]])

    @property
    def measured_rows(self) -> int:
        """Count the rows with status `ok`."""
        return sum(rows for rows, _ in self.finite.values())

    @property
    def whole(self) -> bool:
        """Tell whether every row was measured."""
        return self.broken.empty

    def asked(self, part: str) -> bool:
        """Tell whether any case of the part has ended, well or not."""
        return part in self.parts

    def frame(self, *, by_case: bool = False, ok: bool = False) -> pd.DataFrame:
        """All rows, as `Stored.frame` has them.

        Args:
            by_case: in the order of the cases' ids, else of the chunks.
            ok: those with status `ok` alone.
        """
        return self._gathered(self._chunks, lambda columns: columns.ok() if ok else columns).frame(by_case=by_case)

    def measured(self, part: str, *, by_case: bool = False) -> pd.DataFrame:
        """The rows of a part with status `ok`, with the parameters that its cases have."""
        own = self._gathered(self.parts.get(part, ()), lambda columns: columns.of_part(part).ok())
        return own.frame(by_case=by_case)

    def _gathered(self, chunks: Iterable[str], some: Callable[[_Columns], _Columns]) -> _Gathered:
        gathered = _Gathered(self._levels)
        for chunk in chunks:
            if read := self._decoded(chunk):
                gathered.add(some(_Columns.of(*read)))
        return gathered

    def _tally(self, columns: _Columns) -> None:
        self.cases += len(np.unique(columns.codes["case"]))
        self.diverged += len(
            np.unique(columns.codes["case"][columns.where("metric", "diverged") & (columns.value > 0)])
        )
        well = columns.where("status", OK)
        for part in dict.fromkeys(case.get(PART) for case in columns.cases):
            own = columns.value[well & columns.in_part(part)]
            rows, finite = self.finite.get(part, (0, False))
            if len(own):
                self.finite[part] = rows + len(own), finite or bool(np.isfinite(own).any())


def whole(chunks: Iterable[str], decoded: Decoded) -> pd.DataFrame:
    """All rows of a study, by one pass, as `Stored.frame` has them."""
    levels = _Levels()
    gathered = _Gathered(levels)
    for chunk in chunks:
        if read := decoded(chunk):
            columns = _Columns.of(*read)
            levels.add(columns)
            gathered.add(columns)
    return gathered.frame()


# -- one chunk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """The rows of one chunk, its texts as codes.

    Attributes:
        cases: in the order of their codes.
        codes: column of texts -> the place of each row's text in `texts`; -1 where it is missing.
        texts: column of texts -> what occurs there.
        value: the numbers.
        numbers: integers, and floats where some are missing.
    """

    cases: tuple[Case, ...]
    codes: Mapping[str, np.ndarray]
    texts: Mapping[str, list[str]]
    value: np.ndarray
    numbers: Mapping[str, np.ndarray]

    @staticmethod
    def of(table: pa.Table, metadata: Mapping[str, Any]) -> _Columns:
        named = {case.id: case for case in map(Case.of, metadata["cases"])}
        codes, texts = {}, {}
        for name in (name for name in FIXED if name not in _EMPTY):
            codes[name], texts[name] = _coded(table[name])
        cases = tuple(named.get(name, Case(())) for name in texts["case"])
        return _Columns(
            cases, codes, texts, table["value"].to_numpy(), {name: table[name].to_numpy() for name in _NUMBERS}
        )

    def where(self, column: str, text: str) -> np.ndarray:
        """Whether each row has that text."""
        texts = self.texts[column]
        same: np.ndarray = np.equal(self.codes[column], texts.index(text) if text in texts else len(texts))
        return same

    def in_part(self, part: Value) -> np.ndarray:
        """Whether each row is of a case of the part."""
        own: np.ndarray = np.array([case.get(PART) == part for case in self.cases], bool)[self.codes["case"]]
        return own

    def ok(self) -> _Columns:
        return self._kept(self.where("status", OK))

    def of_part(self, part: str) -> _Columns:
        return self._kept(self.in_part(part))

    def _kept(self, keep: np.ndarray) -> _Columns:
        if keep.all():
            return self
        return _Columns(
            self.cases,
            {name: codes[keep] for name, codes in self.codes.items()},
            self.texts,
            self.value[keep],
            {name: numbers[keep] for name, numbers in self.numbers.items()},
        )

    def broken(self) -> Iterator[pd.DataFrame]:
        """The rows with another status than `ok`, if there are any."""
        others = self._kept(~self.where("status", OK))
        if len(others.value):
            yield pd.DataFrame(
                {name: _texts(others.codes[name], others.texts[name]) for name in ("case", "status", "message")}
            )


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A dictionary column as codes, -1 for what is missing, and its texts, each once."""
    known: dict[str, int] = {}
    pieces = [np.empty(0, np.int32)]
    for piece in column.chunks:
        places = [-1 if text is None else known.setdefault(text, len(known)) for text in piece.dictionary.to_pylist()]
        indices = piece.indices.fill_null(len(places)).to_numpy(zero_copy_only=False)
        pieces.append(np.array([*places, -1], np.int32)[indices])
    return np.concatenate(pieces), list(known)


def _texts(codes: np.ndarray, texts: Iterable[str]) -> pd.Series[Any]:
    """The text of each code, 8 bytes each; -1 is missing."""
    pointed: pd.Series[Any] = pd.Series(np.array([*texts, None], object)[codes], dtype=_TEXT)
    return pointed


# -- many chunks -------------------------------------------------------------------------------------------------------


class _Levels:
    """The values that each parameter has in a study, each once; 1, 1.0 and True are three.

    A column's type follows from all of them, whatever part is read: the whole and its parts have the same values.
    """

    def __init__(self) -> None:
        self.missing: set[str] = set()  # columns of integers with missing entries
        self._codes: dict[str, dict[str, int]] = {}
        self._values: dict[str, list[Value]] = {}
        self._counts: Counter[str] = Counter()
        self._cases = 0

    def add(self, columns: _Columns) -> None:
        self.missing |= {name for name, numbers in columns.numbers.items() if numbers.dtype.kind == "f"}
        for case in columns.cases:
            self._cases += 1
            for (name, value), (_, spelled) in zip(case.params, case.spelled, strict=True):
                codes, values = self._codes.setdefault(name, {}), self._values.setdefault(name, [])
                if codes.setdefault(spelled, len(values)) == len(values):
                    values.append(value)
                self._counts[name] += 1

    def code(self, name: str, spelled: str) -> int:
        return self._codes[name][spelled]

    def column(self, name: str, codes: np.ndarray) -> pd.Series[Any]:
        """A parameter's column; -1 is a case that has it not."""
        absent: list[Value] = [None] if self._counts[name] < self._cases else []
        values = pd.Series(_told_apart([*self._values[name], *absent]))
        if values.dtype == pd.Series(["text"]).dtype != object:
            values = values.astype(_TEXT)
        return values.take(np.where(codes < 0, len(values) - 1, codes)).reset_index(drop=True)


def _told_apart(values: list[Value]) -> list[Value]:
    """The values; spelled, where equal ones are not the same, for an analysis that groups by them."""
    if len({spell(value) for value in values}) == len(set(values)):
        return values
    return [None if value is None else spell(value) for value in values]


@dataclass
class _Gathered:
    """Rows of several chunks: 4 bytes a text and 8 a number until they are a frame.

    Attributes:
        levels: of the study.
    """

    levels: _Levels
    known: dict[str, dict[str, int]] = field(default_factory=dict)
    params: dict[str, array[int]] = field(default_factory=dict)
    pieces: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in FIXED})

    def add(self, columns: _Columns) -> None:
        if not len(columns.value):
            return
        cases = self.known.setdefault("case", {})
        for case in columns.cases:
            if case.id not in cases:
                self._add_case(case, len(cases))
                cases[case.id] = len(cases)
        for name, codes in columns.codes.items():
            known = self.known.setdefault(name, {})
            places = [known.setdefault(text, len(known)) for text in columns.texts[name]]
            self.pieces[name].append(np.array([*places, -1], np.int32)[codes])
        self.pieces["value"].append(columns.value)
        for name, numbers in columns.numbers.items():
            self.pieces[name].append(numbers)

    def _add_case(self, case: Case, before: int) -> None:
        for name, spelled in case.spelled:
            codes = self.params.setdefault(name, array("i"))
            codes.extend([-1] * (before - len(codes)))
            codes.append(self.levels.code(name, spelled))

    def frame(self, *, by_case: bool = False) -> pd.DataFrame:
        """The rows as a frame; what was gathered is let go, a column at a time."""
        if not self.pieces["value"]:
            return pd.DataFrame({name: pd.Series(dtype=_EMPTY.get(name, "object")) for name in FIXED})
        case = self._joined("case")
        if by_case:
            ids = list(self.known["case"])
            rank = np.empty(len(ids), np.int32)
            rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids), dtype=np.int32)
            order = np.argsort(rank[case], kind="stable")
            case = case[order]
        columns: dict[str, Any] = {"case": _texts(case, self.known["case"])}
        for name in sorted(self.params):
            codes = np.array(self.params[name], np.int32)
            own = np.concatenate([codes, np.full(len(self.known["case"]) - len(codes), -1, np.int32)])
            columns[name] = self.levels.column(name, own[case])
        for name in FIXED[1:]:
            joined = self._joined(name)
            joined = joined[order] if by_case else joined
            columns[name] = joined if name in _EMPTY else _texts(joined, self.known[name])
        return pd.DataFrame(columns, copy=False)

    def _joined(self, name: str) -> np.ndarray:
        pieces, self.pieces[name] = self.pieces[name], []
        joined = np.concatenate(pieces)
        return joined.astype(float) if name in self.levels.missing else joined
