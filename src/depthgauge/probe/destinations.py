"""Destinations of a watched run's rows: TensorBoard, Parquet, or any function."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Destination = Callable[["pd.DataFrame"], object]

SECONDS = 2.0  # what a crash may cost of a Parquet table: rows wait so long for others to be written with them
_FILE = re.compile(r"(\d{9,})-(\d{9,})")  # the name of a table's file: the first and the last of the writes in it
FANOUT = 16  # files of a size that are joined into one: a table of n writes has at most 16 log16(n) files


def destinations(to: Any) -> list[Destination]:
    """The functions that take each recorded step's rows.

    Args:
        to: a `SummaryWriter` or what has its `add_scalar`, a path that ends in `.parquet`, a function of a frame, a
            list of these, or None.

    Raises:
        ValueError: anything else, or a path at which there is a file.
    """
    if to is None:
        return []
    if isinstance(to, list | tuple):
        return [each for one in to for each in destinations(one)]
    if isinstance(to, str | os.PathLike):
        path = Path(to)
        if path.suffix != ".parquet":
            raise ValueError(
                f"to={str(to)!r} is no table: name a path that ends in .parquet, or pass a function of rows"
            )
        return [Table(path)]
    if callable(getattr(to, "add_scalar", None)):
        return [Scalars(to)]
    if callable(to):
        return [to]
    kind = type(to).__name__
    raise ValueError(
        f"to={kind} takes no rows: pass a SummaryWriter, a path that ends in .parquet, or a function of rows"
    )


def scalars(rows: pd.DataFrame) -> dict[str, float]:
    """The figures of one recorded step by name, as loggers take them: `wandb.log(probe.scalars(rows), step=...)`.

    `weight_gradient/blocks.3.weight` is log2 of the tensor's root mean square over its finite values, left out where
    all are zero; of a layer that ran several times in the step its first call counts. One of several outputs comes
    after a stroke, `activation/encoder/0`. `not_finite` is the number of values that are not, in all tensors together.

    Args:
        rows: of one step, as `watch` hands them on.
    """
    lost = rows[["nans", "positive_infinities", "negative_infinities"]].to_numpy().sum()
    chosen = rows[(rows["call"] == 0) & (rows["pass"] == 0) & rows["training"] & np.isfinite(rows["log2_rms"])]
    values = {_name(row): float(row.log2_rms) for row in chosen.itertuples()}
    return {**values, "not_finite": float(lost)}


def _name(row: Any) -> str:
    name = ".".join(part for part in (row.layer or "(model)", row.parameter) if isinstance(part, str))
    place = f"/{row.output}" if isinstance(row.output, str) else ""  # no layer's name has a stroke
    return f"{row.direction}/{name}{place}"


class Scalars:
    """A TensorBoard writer, or what has its `add_scalar`, as a destination."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, rows: pd.DataFrame) -> None:
        """Write one step."""
        step = int(rows["step"].iloc[-1])
        for name, value in scalars(rows).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Let the writer write: it is its owner who closes it."""
        if callable(flush := getattr(self._writer, "flush", None)):
            flush()


class Table:
    """A Parquet table that grows and can be read at any time, also after a crash: a folder of files.

    `pandas.read_parquet(path)` reads all of it. A file is written beside and renamed: none is ever half written.
    Sixteen files of a size are joined into one, then they go: a crash within these milliseconds leaves rows twice,
    which the next opening mends. Several watches of a process may share a table; files of other names are left alone.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[pd.DataFrame] = []
        self._written = time.monotonic()
        self._began = datetime.now(UTC).isoformat(timespec="seconds")
        if path.is_file():
            raise ValueError(f"to={str(path)!r} is a file, and the table is a folder of files: name another path")
        path.mkdir(parents=True, exist_ok=True)
        for half in path.glob(".*.writing"):
            half.unlink()
        last = -1
        for file in sorted(self._files(), key=lambda file: (_span(file)[0], -_span(file)[1])):
            if _span(file)[1] <= last:
                file.unlink()  # its rows are in the joined file before it
            last = max(last, _span(file)[1])

    def __call__(self, rows: pd.DataFrame) -> None:
        """Add rows; they are on the disk within about two seconds of steps."""
        self._waiting.append(rows.assign(began=self._began))
        if time.monotonic() - self._written >= SECONDS:
            self.write()

    def close(self) -> None:
        """Write what waits."""
        self.write()

    def write(self) -> None:
        """Write what waits, and join files where there are many."""
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        if self._waiting:
            rows, self._waiting = pd.concat(self._waiting, ignore_index=True), []
            for name in ("parameter", "output"):  # a file of missing names alone would be of another type
                rows[name] = rows[name].astype("str")
            number = 1 + max((_span(file)[1] for file in self._files()), default=-1)
            self._put(rows, number, number)
            self._join(number + 1)
        self._written = time.monotonic()

    def _put(self, rows: pd.DataFrame, first: int, last: int) -> None:
        beside = self._path / f".{first}.writing"
        rows.to_parquet(beside, index=False)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.rename(self._path / f"{first:09d}-{last:09d}.parquet")

    def _join(self, written: int) -> None:
        import pandas as pd  # noqa: PLC0415 # half a second, needed only here

        size = 1
        while written % (size := size * FANOUT) == 0:
            first, last = written - size, written - 1
            parts = sorted(file for file in self._files() if _span(file)[0] >= first)
            self._put(pd.concat(map(pd.read_parquet, parts), ignore_index=True), first, last)
            for part in parts:
                part.unlink()

    def _files(self) -> Iterable[Path]:
        return [file for file in self._path.glob("*-*.parquet") if _FILE.fullmatch(file.stem)]


def _span(file: Path) -> tuple[int, int]:
    first, last = file.stem.split("-")
    return int(first), int(last)
