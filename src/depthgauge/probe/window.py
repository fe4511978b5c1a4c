"""Blocks of float32 by the sixteen binades below their largest number, or by a table where these hold too few.

The parts that `planes` and `shuffles` share: all but how numbers in a window of sixteen binades are counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthgauge.probe import binades, table
from depthgauge.probe.binades import (
    BINADES,
    NOTHING,
    OPEN_AT,
    classifies,
    file_binades,
    file_powers,
    how_many_open,
    measures,
)
from depthgauge.probe.blocks import Part, Word, at, compiled, compiled_for
from depthgauge.probe.rows import ZEROS

# Words of the state. COUNTS_AT, POWERS_AT: the window's, as `file_binades` and `file_powers` read them. SPREAD: whether
# numbers of this tensor lie too far apart for a window.
COUNTS_AT, POWERS_AT, SPREAD = range(table.NEXT_WORD, table.NEXT_WORD + 3)
NEXT_WORD = SPREAD + 1

GROUP = 512  # numbers: a window's are a multiple
NORMAL = 16  # the largest exponent field of 16 binades that end above the subnormal numbers


@compiled
def none_of_powers(state: Word, data: Word, n: Word, field: Word) -> None:
    """Leave powers of two to the table, in place of a `count_powers`."""


def block_functions(  # noqa: PLR0917 # the parts of a method
    method: str, lanes: int, least: int, count_window: Part, place_of: Part, count_powers: Part = none_of_powers
) -> tuple[Part, Part]:
    """The functions `block32` and `finish` of a method; see `blocks.observers`.

    Args:
        method: its name.
        lanes: numbers that are read at once for moments, and for the table: 16 or 32.
        least: numbers from which on a window takes less time than the table; at least GROUP.
        count_window: `(state, data, n, field, ahead, beside)` counts those of n <= BLOCK numbers, a multiple of GROUP,
            that lie in the 16 binades from the exponent field on, but for powers of two and the last 128th of a binade.
            It writes the counts, and which numbers are open: neither counted nor zero.
        place_of: which number of 64 a bit of an open word is.
        count_powers: `(state, data, n, field)` counts powers of two in the same 16 binades, as many quantized numbers
            are, where that takes less time than the table. It writes four counts of each, and which are open yet.
    """
    measure, classify_open = measures(method, lanes), classifies(method, place_of)
    tabulate, add_up = table.functions(method, lanes)

    @compiled_for(method)
    def histogram(state: Word, row: Word, data: Word, n: Word, field: Word, ahead: Word, beside: Word) -> Word:  # noqa: PLR0917 # see blocks.observers
        """Count n numbers, or none where they lie too far apart; returns how many."""
        words = at(state, np.int64)
        field = max(field, NORMAL)
        count_window(state, data, n, field, ahead, beside)
        left = n
        if how_many_open(words[OPEN_AT], n) > n >> 4:  # the table takes as long for all as to classify these
            count_powers(state, data, n, field)
            if how_many_open(words[OPEN_AT], n) > n >> 4:
                words[SPREAD] = 1
                return 0
            left -= file_powers(state, words[POWERS_AT], field)
        left -= file_binades(state, words[COUNTS_AT], field)
        at(row, np.int64)[ZEROS] += left - classify_open(state, row, data, n)
        return n

    @compiled_for(method)
    def block32(state: Word, row: Word, data: Word, n: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
        field = measure(state, row, data, n)
        if field == NOTHING:
            return
        done: Word = 0
        if n >= least and not at(state, np.int64)[SPREAD]:
            done = histogram(state, row, data, n & ~(GROUP - 1), field, ahead, beside)
        if done < n:
            tabulate(state, row, data + 4 * done, n - done, field, ahead, beside)

    @compiled_for(method)
    def finish(state: Word, row: Word) -> None:
        add_up(state, row)
        at(state, np.int64)[SPREAD] = 0

    return block32, finish


def buffers() -> dict[int, NDArray[Any]]:
    """Arrays that these functions need."""
    counts = {COUNTS_AT: np.zeros(4 * BINADES, np.uint16), POWERS_AT: np.zeros(4 * BINADES, np.uint16)}
    return {**binades.buffers(), **table.buffers(), **counts}
