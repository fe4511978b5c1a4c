"""The memory that a probe's kernels write to: one row of words a tensor seen, and the non-empty cells of its histogram.

Rows and cells grow in blocks of fixed size, which the kernels fill and `Ledger` puts aside; nothing here refers to the
tensors themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

# Words of a row. Those from SUM on hold float64, the others int64. A sum that would overflow is kept divided by two to
# the power of its SHRUNK word, which is else 0.
SLOT, STEP, MOMENT, COUNT, ZEROS, NANS, POSITIVE_INFINITIES, NEGATIVE_INFINITIES, CELLS = range(9)
SUM_SHRUNK, SQUARES_SHRUNK = range(9, 11)
SUM, SUM_OF_SQUARES, MIN, MAX, SUM_OF_LOG2 = range(11, 16)
WORDS = 16

# What float64 takes: 2^64 of its numbers times 2^-64, and 2^64 squares of its numbers times 2^-600, do not overflow.
SHRINK, SHRINK_ROOT = 64, 600

# STEP holds a step, and above it the number of a forward pass whose step was not certain yet, or 0 (see steps.py).
ATTEMPT_BITS = 40
# MOMENT holds which call of a layer it was, which backward pass above that, and the sign of a layer's evaluation mode.
PASS_BITS = 32
EVALUATION = 1 << 62

# Companion memory: nothing; a copy to be made of the tensor; the copy that the tensor's change is taken from.
OBSERVE, OBSERVE_AND_KEEP, OBSERVE_CHANGE = range(3)

Job = tuple[int, int, int, int, int, int]
"""Address, numbers, bytes of each, what to do with companion memory, its address, slot."""

# A cell is one word: its key (formats.cell_key) above COUNT_BITS, its count below.
COUNT_BITS = 47
KEYS = (1074 + 1024) * 16

ROWS_A_BLOCK = 4096
CELLS_A_BLOCK = 1 << 19  # 4 MiB, at least one row of the widest possible histogram (KEYS) and commonly 5,000 rows


_Words = TypeVar("_Words", int, NDArray[np.int64])


def step_of(word: _Words) -> _Words:
    """The step of a STEP."""
    return word & ((1 << ATTEMPT_BITS) - 1)


NONFINITE = slice(NANS, NEGATIVE_INFINITIES + 1)  # words that count numbers which are not finite


@dataclass(frozen=True)
class Rows:
    """The recorded rows, column by column.

    Attributes:
        words: (n, WORDS) int64, the rows.
        keys: (cells,) the cells of all rows, one row after the other.
        counts: (cells,) values in the cell.
        starts: (n,) index of each row's first cell.
    """

    words: NDArray[np.int64]
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    starts: NDArray[np.int64]

    def number(self, word: int) -> NDArray[np.float64]:
        """A float64 column."""
        return self.words.view(np.float64)[:, word]

    def sums_by_row(self, of_cells: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum over each row's cells; 0 for a row without any."""
        total = np.concatenate([[0.0], np.cumsum(of_cells)])
        ends = np.append(self.starts[1:], len(of_cells))
        return cast("NDArray[np.float64]", total[ends] - total[self.starts])

    @property
    def steps(self) -> NDArray[np.int64]:
        """(n,) the step of each row, as it was believed to be when the row was written."""
        return step_of(self.words[:, STEP])

    @property
    def attempts(self) -> NDArray[np.int64]:
        """(n,) the number of the forward pass whose step was not certain; 0 where it was."""
        return self.words[:, STEP] >> ATTEMPT_BITS

    @property
    def calls(self) -> NDArray[np.int64]:
        """(n,) which call of the layer."""
        return self.words[:, MOMENT] & ((1 << PASS_BITS) - 1)

    @property
    def passes(self) -> NDArray[np.int64]:
        """(n,) which backward pass."""
        return (self.words[:, MOMENT] & (EVALUATION - 1)) >> PASS_BITS

    @property
    def training(self) -> NDArray[np.bool_]:
        """(n,) whether the layer was in training mode."""
        return self.words[:, MOMENT] < EVALUATION

    @property
    def nonfinite(self) -> NDArray[np.bool_]:
        """(n,) whether the row counts numbers that are not finite."""
        return cast("NDArray[np.bool_]", self.words[:, NONFINITE].any(axis=1))

    def chosen(self, rows: NDArray[np.bool_]) -> Rows:
        """Some of the rows, with their cells."""
        return self.taken(np.flatnonzero(rows))

    def taken(self, rows: NDArray[np.intp]) -> Rows:
        """The rows of these numbers in that order, with their cells."""
        words = self.words[rows]
        starts = np.cumsum(words[:, CELLS]) - words[:, CELLS]
        cells = np.repeat(self.starts[rows] - starts, words[:, CELLS])
        cells += np.arange(len(cells))
        return Rows(words, self.keys[cells], self.counts[cells], starts)


NONE = Rows(np.zeros((0, WORDS), np.int64), *(np.zeros(0, np.int64) for _ in range(3)))


def joined(parts: Iterable[Rows]) -> Rows:
    """Rows of several kernels as one, part by part."""
    parts = [NONE, *parts]
    words = np.concatenate([part.words for part in parts])
    keys, counts = (np.concatenate([getattr(part, name) for part in parts]) for name in ("keys", "counts"))
    return Rows(words, keys, counts, np.cumsum(words[:, CELLS]) - words[:, CELLS])


def _any(words: NDArray[np.int64]) -> bool:
    return bool(words[:, NONFINITE].any())  # a tenth of what it takes to say which


class Ledger:
    """Blocks of rows and cells: the current one, and those that are full."""

    def __init__(self) -> None:
        self.rows = np.zeros((ROWS_A_BLOCK, WORDS), np.int64)
        self.cells = np.zeros(CELLS_A_BLOCK, np.int64)
        self._full: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def put_aside(self, rows: int, cells: int) -> None:
        """Keep the first rows and cells of the current block, which is then free again."""
        if rows:
            self._full.append((self.rows[:rows].copy(), self.cells[:cells].copy()))

    def add(self, words: NDArray[np.int64], cells: NDArray[np.int64]) -> None:
        """Append finished rows that were made elsewhere."""
        self._full.append((words, cells))

    def clear(self, keep: int | None = None) -> None:
        """Forget what was put aside, but for rows whose STEP is `keep` or more."""
        if keep is None:
            self._full.clear()
            return
        rows = self.read()
        self._full.clear()
        self.put_back(rows.chosen(rows.words[:, STEP] >= keep))

    def trim(self, last: int) -> None:
        """Forget what was put aside, but for the last rows."""
        rows = self.read()
        self._full.clear()
        self.put_back(rows.taken(np.arange(len(rows.words))[-last:]))

    def put_back(self, rows: Rows) -> None:
        """Append rows that were read."""
        self.add(rows.words, (rows.keys << COUNT_BITS) | rows.counts)

    @property
    def held(self) -> int:
        """Number of rows put aside."""
        return sum(len(words) for words, _ in self._full)

    def nonfinite(self, used: int = 0) -> NDArray[np.int64]:
        """Rows with numbers that are not finite, without cells: those put aside, and the first of the current block."""
        parts = [*(words for words, _ in self._full), self.rows[:used]]
        return np.concatenate([NONE.words, *(words[words[:, NONFINITE].any(1)] for words in parts if _any(words))])

    def read(self) -> Rows:
        """Everything put aside so far."""
        words = np.concatenate([np.zeros((0, WORDS), np.int64), *(words for words, _ in self._full)])
        cells = np.concatenate([np.zeros(0, np.int64), *(cells for _, cells in self._full)])
        starts = np.cumsum(words[:, CELLS]) - words[:, CELLS]
        return Rows(words, cells >> COUNT_BITS, cells & ((1 << COUNT_BITS) - 1), starts)
