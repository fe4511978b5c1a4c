"""A histogram of exponents in a table in memory: for numbers that lie too far apart to count bits, and for few numbers.

Each number becomes a code, in vector registers: its exponent field, and which of five parts of its binade it is in. An
entry of a table of all codes is then incremented for each number, which takes no longer for numbers that lie further
apart. Equal numbers in a row would wait for each other's increments: four tables take turns. Their sum goes to the
cells when the tensor ends. Subnormal numbers, and significands from 127/128 of a binade on, are classified one at a
time instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthgauge.probe import blocks
from depthgauge.probe.binades import FIRST_WORD, OPEN_AT, ask_for, classifies, inline
from depthgauge.probe.blocks import Part, Word, at, classify32, compiled, compiled_for, copy, touch
from depthgauge.probe.rows import ZEROS
from depthgauge.probe.turns import even_places, odd_places
from depthgauge.probe.vectors import (
    Vector,
    bits_of,
    least_of,
    lesser,
    load,
    splat,
    store,
    where,
)

u16, u32, u64 = np.uint16, np.uint32, np.uint64

# Words of the state. LOWEST, HIGHEST: the range of exponent fields in the table; TABULATED: how many numbers are.
CODES_AT, TABLES_AT, PADDED_AT, LOWEST, HIGHEST, TABULATED = range(FIRST_WORD, FIRST_WORD + 6)
NEXT_WORD = TABULATED + 1

CHUNK = 512  # numbers that are encoded at once
PARTS = (
    8  # entries for each exponent field: powers of two, four segments, what is left to `classify_open`, and two more
)
ENTRIES = 256 * PARTS
TABLES = 4
ENTRY = Vector("u16", PARTS)  # of an exponent field
FEW = 16  # numbers that are classified one at a time
# Numbers in the tables before a block of 4096, and zeros that fill its last vector: sums of entries have 16 bits.
MOST = 65535 - 4096 - 32


def buffers() -> dict[int, NDArray[Any]]:
    """Arrays that a table needs."""
    return {
        CODES_AT: np.zeros(CHUNK, u16),
        TABLES_AT: np.zeros(TABLES * ENTRIES, u16),
        PADDED_AT: np.zeros(64, u32),
    }


@compiled
def _classify(state: Word, row: Word, data: Word, n: Word) -> None:
    bits = at(data, np.uint32)
    for i in range(n):
        classify32(state, row, bits[i])


@compiled
def _pad(target: Word, data: Word, n: Word, lanes: Word) -> None:
    """Copy n numbers, and zeros up to `lanes`."""
    copy(target, data, 0, n)
    padded = at(target, np.uint32)
    for i in range(n, lanes):
        padded[i] = u32(0)


@compiled
def _increment(codes_at: Word, n: Word, tables_at: Word) -> None:
    """Increment the entries of n codes, a multiple of 4."""
    fours = at(codes_at, np.uint64)
    first, second = at(tables_at, np.uint16), at(tables_at + 2 * ENTRIES, np.uint16)
    third, fourth = at(tables_at + 4 * ENTRIES, np.uint16), at(tables_at + 6 * ENTRIES, np.uint16)
    for i in range(n >> 2):
        four = fours[i]
        first[four & u64(0xFFFF)] += u16(1)
        second[(four >> u64(16)) & u64(0xFFFF)] += u16(1)
        third[(four >> u64(32)) & u64(0xFFFF)] += u16(1)
        fourth[four >> u64(48)] += u16(1)


@compiled
def _add_up(state: Word, row: Word) -> None:
    words = at(state, np.int64)
    if not words[TABULATED]:
        return
    dense = at(words[blocks.DENSE_AT], np.int64)
    totals = at(words[CODES_AT], np.uint16)
    # Entries of field 0 come first: zeros, and subnormal numbers, which are in cells already.
    lowest = min(max(words[LOWEST], 1), words[HIGHEST] + 1)
    for field in range(lowest - 1, words[HIGHEST] + 1):
        first = field * PARTS if field >= lowest else 0
        place = words[TABLES_AT] + 2 * first
        total = splat(0, ENTRY)
        for table in range(TABLES):
            total = total + load(place + table * 2 * ENTRIES, ENTRY)
            store(place + table * 2 * ENTRIES, splat(0, ENTRY))
        store(words[CODES_AT], total)
        if not first:
            at(row, np.int64)[ZEROS] += np.int64(totals[0])
            continue
        cell = (field - 127 + 1074) * 16
        for part in range(5):
            dense[cell + part] += np.int64(totals[part])
    touch(state, lowest - 127, words[HIGHEST] - 127)
    words[TABULATED], words[LOWEST], words[HIGHEST] = 0, 256, 0


def functions(method: str, lanes: int) -> tuple[Part, Part]:
    """The functions of a table for vectors of that many 16-bit numbers, 16 or 32.

    The first, `(state, row, data, n, field, ahead, beside)`, counts n finite numbers, none of them above the binade of
    that exponent field, and asks for memory meanwhile as a method's `block32` does. The other, `(state, row)`, adds the
    tables up into cells and clears them.
    """
    halves, half = Vector("u16", lanes), lanes // 2

    # Left and right halves of a vector's numbers are in turns.
    @inline
    def place_of(place: Word) -> Word:
        return (place & ~(lanes - 1)) | ((place & 1) * half) | ((place & (lanes - 1)) >> 1)

    classify_open = classifies(f"{method}.table", place_of)

    @inline
    def encode(data: Word, codes_at: Word, flagged_at: Word) -> Any:
        """The codes of `lanes` numbers; returns one less than their magnitudes."""
        left, right = load(data, halves), load(data + 2 * lanes, halves)
        high = odd_places(left, right)
        # Without the sign: 8 bits of exponent, 7 of the fraction, and whether there is more of it.
        magnitude = (high + high) | lesser(even_places(left, right), splat(1, halves))
        fraction = magnitude & 255
        below = magnitude - 1
        # The edges of formats.EDGES below 127/128, in units of 1/256.
        code = ((magnitude >> 8) << 3) + lesser(fraction, splat(1, halves))
        code = code + where(fraction > 191, splat(1, halves), 0) + where(fraction > 208, splat(1, halves), 0)
        code = code + where(fraction > 223, splat(1, halves), 0) + where(fraction > 253, splat(1, halves), 0)
        store(codes_at, code)
        flagged = bits_of((fraction > 253) | (below < 255))
        if lanes == 16:
            at(flagged_at, np.uint16)[0] = flagged
        else:
            at(flagged_at, np.uint32)[0] = flagged
        return below

    @compiled_for(method)
    def encode_all(state: Word, data: Word, n: Word) -> Word:
        """Codes of n <= CHUNK numbers, and zeros up to a multiple of `lanes`."""
        words = at(state, np.int64)
        whole = n & ~(lanes - 1)
        at(words[OPEN_AT], np.uint64)[(n - 1) >> 6] = u64(0)
        below = splat(0xFFFF, halves)
        for i in range(0, whole, lanes):
            below = lesser(below, encode(data + 4 * i, words[CODES_AT] + 2 * i, words[OPEN_AT] + (i >> 3)))
        if n > whole:
            _pad(words[PADDED_AT], data + 4 * whole, n - whole, lanes)
            last = encode(words[PADDED_AT], words[CODES_AT] + 2 * whole, words[OPEN_AT] + (whole >> 3))
            below, whole = lesser(below, last), whole + lanes
        words[LOWEST] = min(words[LOWEST], np.int64(least_of(below)) >> 8)
        return whole

    @compiled_for(method)
    def count(state: Word, row: Word, data: Word, n: Word, field: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
        words = at(state, np.int64)
        if n < FEW:
            _classify(state, row, data, n)
            return
        if words[TABULATED] > MOST:
            _add_up(state, row)
        if not words[TABULATED]:
            words[LOWEST], words[HIGHEST] = 256, 0
        words[HIGHEST] = max(words[HIGHEST], field)
        for start in range(0, n, CHUNK):
            size, source = min(CHUNK, n - start), data + start * 4
            padded = encode_all(state, source, size)
            ask_for(ahead + start * 4, size * 4)
            if beside:
                ask_for(beside + start * 4, size * 4)
            _increment(words[CODES_AT], padded, words[TABLES_AT])
            at(row, np.int64)[ZEROS] -= padded - size
            classify_open(state, row, source, (size + 63) & ~63)
        words[TABULATED] += n

    return count, _add_up
