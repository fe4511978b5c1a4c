"""A study's tables: as CSV for programs, and their first rows for readers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pandas.api import types

from depthgauge.reports.escaping import cell, clean
from depthgauge.reports.numbers import NOTHING, aligned, number

_SHOWN_ROWS = 40


@dataclass(frozen=True)
class Column:
    """A column as a reader sees it."""

    name: str
    numeric: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table of findings.

    Attributes:
        name: the study's name for it.
        stem: its file's name without suffix.
        csv: the whole table, every digit, UTF-8: NaN and missing as `nan`, infinities as `inf` and `-inf`.
        columns: its first rows, formatted; empty where the table is only linked.
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
        columns = tuple(_column(frame, place) for place in range(frame.shape[1])) if shown else ()
        return Table(name, stem, csv_text(frame), columns, len(frame), shown)

    @property
    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The formatted cells, row by row."""
        return tuple(zip(*(column.cells for column in self.columns), strict=True))

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
