"""The memory that a probe's kernels write to: one row of words a tensor seen, and the non-empty cells of its histogram.

Rows and cells grow in blocks of fixed size, which the kernels fill and `Ledger` puts aside; nothing here refers to the
tensors themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

# Words of a row. Those from SUM on hold float64, the others int64. A sum that would overflow is kept divided by two to
# the power of its SHRUNK word, which is else 0.
SLOT, STEP, CALL, COUNT, ZEROS, NANS, POSITIVE_INFINITIES, NEGATIVE_INFINITIES, CELLS = range(9)
SUM_SHRUNK, SQUARES_SHRUNK = range(9, 11)
SUM, SUM_OF_SQUARES, MIN, MAX, SUM_OF_LOG2 = range(11, 16)
WORDS = 16

# What float64 takes: 2^64 of its numbers times 2^-64, and 2^64 squares of its numbers times 2^-600, do not overflow.
SHRINK, SHRINK_ROOT = 64, 600

# A cell is one word: its key (formats.cell_key) above COUNT_BITS, its count below.
COUNT_BITS = 47
KEYS = (1074 + 1024) * 16

ROWS_A_BLOCK = 4096
CELLS_A_BLOCK = 1 << 19  # 4 MiB, at least one row of the widest possible histogram (KEYS) and commonly 5,000 rows


@dataclass(frozen=True)
class Rows:
    """What was recorded, column by column.

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

    def clear(self) -> None:
        """Forget what was put aside."""
        self._full.clear()

    def read(self) -> Rows:
        """Everything put aside so far."""
        words = np.concatenate([np.zeros((0, WORDS), np.int64), *(words for words, _ in self._full)])
        cells = np.concatenate([np.zeros(0, np.int64), *(cells for _, cells in self._full)])
        starts = np.cumsum(words[:, CELLS]) - words[:, CELLS]
        return Rows(words, cells >> COUNT_BITS, cells & ((1 << COUNT_BITS) - 1), starts)
