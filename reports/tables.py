"""A study's tables: as CSV for programs, and their first rows for readers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api import types

from depthgauge.reports.escaping import cell, clean
from depthgauge.reports.numbers import NOTHING, aligned, interval, number

_SHOWN_ROWS = 40
_WIDE = 10  # columns side by side
_LEADING = 3  # of them at most are repeated where a table is split
_LOW = re.compile(r"(?:(?P<name>.+)_)?low_(?P<level>\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Column:
    """A column as a reader sees it; it is joined where it holds an estimate with its interval."""

    name: str
    numeric: bool
    cells: tuple[str, ...]
    joined: bool = False


@dataclass(frozen=True)
class Table:
    """A table of findings.

    Attributes:
        name: the study's name for it.
        stem: its file's name without suffix.
        csv: the whole table, every digit, UTF-8: NaN and missing as `nan`, infinities as `inf` and `-inf`.
        columns: its first rows, formatted, an estimate and its interval in one; empty where it is only linked.
        length: number of rows.
        shown: whether it is printed in the page.
    """

    name: str
    stem: str
    csv: bytes
    columns: tuple[Column, ...]
    length: int
    shown: bool

    @staticmethod
    def of(name: str, stem: str, frame: pd.DataFrame, *, shown: bool) -> Table:
        """The table that `frame` holds; its index belongs to it where it has a name.

        Raises:
            TypeError: it is no frame.
        """
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"table {name!r} is {type(frame).__name__}, where a DataFrame was expected")
        frame = _flat(frame)
        columns = tuple(_columns(frame)) if shown else ()
        return Table(name, stem, csv_text(frame), columns, len(frame), shown)

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The formatted cells, row by row."""
        return tuple(zip(*(column.cells for column in self.columns), strict=True))

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Places of the columns shown side by side: each block of a wide table begins with what names a row."""
        count = len(self.columns)
        if count <= _WIDE:
            return (tuple(range(count)),) if count else ()
        named = next((i for i, column in enumerate(self.columns) if column.name in {"n", "value"} or column.joined), 1)
        leading = tuple(range(min(max(named, 1), _LEADING)))
        parts = math.ceil((count - len(leading)) / (_WIDE - len(leading)))
        size = math.ceil((count - len(leading)) / parts)
        rest = range(len(leading), count)
        return tuple((*leading, *rest[start : start + size]) for start in range(0, len(rest), size))

    @property
    def left_out(self) -> int:
        """Count the rows that stand in the CSV alone."""
        return max(self.length - _SHOWN_ROWS, 0)


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index(allow_duplicates=True)
    labels: list[object] = list(frame.columns)
    names = [" ".join(map(str, label)) if isinstance(label, tuple) else str(label) for label in labels]
    return frame.set_axis(names, axis=1)


def csv_text(frame: pd.DataFrame) -> bytes:
    """A frame as CSV without its index, with every digit, no text of which is run as a formula."""
    safe = {place: _cells(frame.iloc[:, place]) for place in range(frame.shape[1])}
    columns = pd.DataFrame(safe, index=frame.index)
    header = [cell(label) for label in frame.columns]
    return columns.to_csv(index=False, header=header, lineterminator="\n", na_rep="nan").encode()


def _cells(column: pd.Series) -> pd.Series:
    if types.is_numeric_dtype(column.dtype):
        return column
    # by distinct values: a million rows rarely hold more than a few
    written = {value: cell(str(value)) for value in column.dropna().unique()}
    return column.astype(object).map(written)


def _columns(frame: pd.DataFrame) -> Iterator[Column]:
    """The columns for a reader: `x`, `x_low_95` and `x_high_95` are one, and so are `value`, `low_95` and `high_95`."""
    names = [str(name) for name in frame.columns]
    joined: dict[int, tuple[int, int, str]] = {}
    for place, name in enumerate(names):
        found = _LOW.fullmatch(name)
        own, high = (found["name"] or "value", name.replace("low_", "high_")) if found else ("", "")
        if found and names.count(own) == names.count(high) == names.count(name) == 1:
            joined[names.index(own)] = (place, names.index(high), found["level"])
    taken = {place for low, high, _ in joined.values() for place in (low, high)}
    for place in range(len(names)):
        if place in joined:
            yield _interval(frame, place, *joined[place])
        elif place not in taken:
            yield _column(frame, place)


def _interval(frame: pd.DataFrame, place: int, low: int, high: int, level: str) -> Column:
    rows = frame.iloc[:_SHOWN_ROWS, [place, low, high]].astype(float).itertuples(index=False, name=None)
    cells = tuple(interval(*row) if not all(map(math.isnan, row[1:])) else number(row[0]) for row in rows)
    return Column(f"{clean(frame.columns[place])} [{level} %]", numeric=True, cells=cells, joined=True)


def _column(frame: pd.DataFrame, place: int) -> Column:
    column = frame.iloc[:_SHOWN_ROWS, place]
    numeric = types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype)
    cells = aligned(column.tolist()) if types.is_float_dtype(column.dtype) else [_cell(value) for value in column]
    return Column(clean(frame.columns[place]), numeric, tuple(cells))


def _cell(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return str(value).replace("-", "−")
    if isinstance(value, float):
        return number(value)
    return NOTHING if value is None or value is pd.NA or value is pd.NaT else clean(str(value))
