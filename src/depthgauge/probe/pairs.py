"""A histogram of exponents by counting pairs of numbers in memory: for processors without AVX-512.

What decides a kernel's speed is the histogram: an increment of a counter in memory is a load, an add and a store, and
equal neighbours wait for each other. Hence

- codes: a vectorized loop turns each number into 7 bits: its binade below the largest one (31 of them), and the part
  of that binade in quarters of unequal length. The eighth bit flags what needs a closer look: powers of two,
  significands that start with seven ones, and whatever lies outside of the 31 binades;
- pairs: the codes of two neighbours together index one counter, so that two numbers cost one increment; the counters
  are added up along rows and columns when the tensor ends;
- flagged numbers, about one in a hundred, are classified one at a time.

Each result of 32-bit arithmetic is narrowed again, as numba's widening halves the length of vectors.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from depthgauge.probe import blocks
from depthgauge.probe.blocks import (
    COMMON_WORDS,
    Word,
    as_float32,
    at,
    block32_with_nonfinite,
    classify32,
    compiled,
    copy,
    prefetch,
    put,
    touch,
    trailing_zeros,
)
from depthgauge.probe.rows import MAX, MIN, SUM, SUM_OF_LOG2, SUM_OF_SQUARES, ZEROS

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64

# Words of the state. BASE: the exponent field of the codes' first binade, or 0 while there is none; PAIRED: pairs
# counted since the counters were last added up; WIDEST: the largest code among these.
CODES_AT, PAIRS_AT, TOTALS_AT, BASE, PAIRED, WIDEST = range(COMMON_WORDS, COMMON_WORDS + 6)

BLOCK = 1024  # numbers: 4 KiB, so that the block and the counters stay in the first-level cache
CODES = 128
# Codes 4 to 127 are 31 binades of four parts; 1 to 3 stand for zero, too, in a pair of zeros; FLAG alone is a number
# outside of the 31 binades.
ZERO, FIRST, FLAG = 0, 4, 128
MOST_PAIRS = 65535 - BLOCK // 2  # counters have 16 bits: 32 KiB of them are as much as that cache holds

# Sums may be taken in any order, else they are not vectorized; the order is fixed at compilation, so that equal
# inputs give equal bits. Non-finite numbers never get there.
_ORDER = {"reassoc", "nsz", "contract"}


def _reordered(function: blocks.Function) -> blocks.Function:
    return cast("blocks.Function", njit(fastmath=_ORDER, **blocks.OPTIONS)(function))


@compiled
def _look_closer(state: Word, row: Word, bits: Any, code: Word) -> None:
    """Move a flagged number from the part of its binade that its code stands for to its true segment."""
    if code == ZERO:
        at(row, np.int64)[ZEROS] -= 1
        classify32(state, row, bits)
        return
    exponent = np.int64((bits & u32(0x7FFFFFFF)) >> u32(23)) - 127
    put(state, np.int64(bits & u32(0x7FFFFF)) << 29, exponent, 1)
    at(at(state, np.int64)[blocks.DENSE_AT], np.int64)[(exponent + 1074) * 16 + 1 + (code & 3)] -= 1


@compiled
def _add_up(state: Word, row: Word) -> None:
    """Add the counters of pairs up along rows and columns into cells, and clear them."""
    words = at(state, np.int64)
    if not words[PAIRED]:
        return
    pairs = at(words[PAIRS_AT], np.uint16)
    totals = at(words[TOTALS_AT], np.uint16)
    width = (words[WIDEST] + 32) & ~31
    for second in range(width):
        totals[second] = u16(0)
    for first in range(words[WIDEST] + 1):
        total = u16(0)
        for second in range(width):
            n = pairs[first * CODES + second]
            total = u16(total + n)
            totals[second] = u16(totals[second] + n)
            pairs[first * CODES + second] = u16(0)
        totals[CODES + first] = total
    dense = at(words[blocks.DENSE_AT], np.int64)
    zeros = at(row, np.int64)
    for code in range(ZERO, FIRST):
        zeros[ZEROS] += np.int64(totals[code])
    zeros[ZEROS] += np.int64(totals[CODES + ZERO])
    for code in range(FIRST, words[WIDEST] + 1):
        n = np.int64(totals[code]) + np.int64(totals[CODES + code])
        exponent = words[BASE] - (code - FIRST) // 4 - 127
        dense[(exponent + 1074) * 16 + 1 + (code & 3)] += n
    if words[WIDEST] >= FIRST:
        touch(state, words[BASE] - (words[WIDEST] - FIRST) // 4 - 127, words[BASE] - 127)
    words[PAIRED] = 0
    words[WIDEST] = 0


@_reordered
def _moments32(data: Word, n: Word, row: Word) -> None:
    """Sums of n <= BLOCK finite numbers, of their squares, and of the logarithms of their significands."""
    x = at(data, np.float32)
    bits = at(data, np.uint32)
    row_numbers = at(row, np.float64)
    total = 0.0
    squares = 0.0
    for i in range(n):
        value = np.float64(x[i])
        total += value
        squares += value * value
    row_numbers[SUM] += total
    row_numbers[SUM_OF_SQUARES] += squares
    # The product of 64 significands is below 2^64 and needs one logarithm instead of 64; 8 of these stay below 2^512.
    product = 1.0
    whole = n >> 6
    for part in range(whole):
        p = np.float32(1)
        for i in range(64):
            p *= as_float32(u32(u32(bits[part * 64 + i] & u32(0x7FFFFF)) | u32(0x3F800000)))
        product *= np.float64(p)
        if part & 7 == 7:
            row_numbers[SUM_OF_LOG2] += np.log2(product)
            product = 1.0
    for i in range(whole << 6, n):
        product *= np.float64(as_float32(u32(u32(bits[i] & u32(0x7FFFFF)) | u32(0x3F800000))))
    row_numbers[SUM_OF_LOG2] += np.log2(product)


@compiled
def _encode32(codes_at: Word, data: Word, n: Word, base_field: Word) -> Word:
    """Write a code for each number; returns the largest, without flags."""
    codes = at(codes_at, np.uint8)
    halves = at(data, np.uint16)
    # Sixteenths of a binade, of which 0 to 11 are one part, and 14 and 15 another.
    top = u16(FIRST + 4 * base_field - 11)
    widest = u8(0)
    for i in range(n):
        low = halves[2 * i]
        high = halves[2 * i + 1]
        magnitude = u16(high & u16(0x7FFF))
        part = min(max(u16(u16(high >> u16(3)) & u16(15)), u16(11)), u16(14))
        # Beyond 31 binades, which is where zeros and subnormal numbers are too, the flag's bit is reached.
        code = min(u16(u16(top - u16(u16(magnitude >> u16(7)) << u16(2))) + part), u16(FLAG))
        flagged = u16(high & u16(0x7F)) == u16(0x7F) or u16(u16(high & u16(7)) | low) == u16(0)
        code = u16(code | u16(FLAG)) if flagged else code
        code = u16(ZERO) if u16(magnitude | low) == u16(0) else code
        codes[i] = u8(code)
        widest = max(widest, u8(code & u16(FLAG - 1)))
    return np.int64(widest)


@compiled
def _block32(state: Word, row: Word, data: Word, n: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
    """Count n <= BLOCK numbers of float32; meanwhile, ask for two blocks that will be needed next."""
    bits = at(data, np.uint32)
    signed = at(data, np.int32)
    # Bits order like numbers of one sign; of the negative ones, the largest bits are the smallest number.
    least, most, most_signed = u32(0xFFFFFFFF), u32(0), np.int32(-0x80000000)
    for i in range(n):
        least = min(least, bits[i])
        most = max(most, bits[i])
        most_signed = max(most_signed, signed[i])
    any_negative = most >= u32(0x80000000)
    any_positive = most_signed >= np.int32(0)
    largest = np.int64(most_signed) if any_positive else np.int64(0)
    if any_negative:
        largest = max(largest, np.int64(most & u32(0x7FFFFFFF)))
    if largest >= 0x7F800000:
        block32_with_nonfinite(state, row, data, n)
        return
    row_numbers = at(row, np.float64)
    row_numbers[MIN] = min(row_numbers[MIN], np.float64(as_float32(most if any_negative else least)))
    row_numbers[MAX] = max(row_numbers[MAX], np.float64(as_float32(u32(most_signed) if any_positive else least)))
    if largest == 0:
        at(row, np.int64)[ZEROS] += n
        return
    _moments32(data, n, row)
    paired = n & ~7
    words = at(state, np.int64)
    field = largest >> 23
    if not words[BASE] or field > words[BASE]:
        _add_up(state, row)
        # One binade of slack, as the next block often exceeds the first; 31 binades down end above the subnormals.
        words[BASE] = max(min(field + 1, 254), 31)
    elif words[PAIRED] > MOST_PAIRS:
        _add_up(state, row)
    words[WIDEST] = max(words[WIDEST], _encode32(words[CODES_AT], data, paired, words[BASE]))
    words[PAIRED] += paired >> 1
    _count_pairs(state, row, data, paired, ahead, beside)
    for i in range(paired, n):
        classify32(state, row, bits[i])


@compiled
def _count_pairs(state: Word, row: Word, data: Word, paired: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
    words = at(state, np.int64)
    codes = at(words[CODES_AT], np.uint8)
    eights = at(words[CODES_AT], np.uint64)
    bits = at(data, np.uint32)
    for i in range(paired >> 3):
        flags = eights[i] & u64(0x8080808080808080)
        while flags:
            place = i * 8 + (np.int64(trailing_zeros(flags)) >> 3)
            _look_closer(state, row, bits[place], np.int64(codes[place]) & (FLAG - 1))
            flags &= flags - u64(1)
    # Two codes of seven bits side by side, in place. Two zeros are what pairs of a rectified gradient are most often:
    # they take turns at four counters, as one would have to wait for its own last increment.
    twos = at(words[CODES_AT], np.uint16)
    for i in range(paired >> 1):
        two = u16(u16(twos[i] & u16(0x7F)) | u16(u16(twos[i] >> u16(1)) & u16(0x3F80)))
        twos[i] = u16(u16(i) & u16(3)) if two == u16(0) else two
    pairs = at(words[PAIRS_AT], np.uint16)
    beside = beside or ahead
    for i in range(u64(paired) >> u64(3)):
        # The next block comes from memory while this loop is busy with counters: a line of 64 bytes for 16 numbers.
        prefetch((beside if i & u64(1) else ahead) + np.int64(i >> u64(1)) * 64)
        first = i << u64(2)
        pairs[twos[first]] += u16(1)
        pairs[twos[first | u64(1)]] += u16(1)
        pairs[twos[first | u64(2)]] += u16(1)
        pairs[twos[first | u64(3)]] += u16(1)


@compiled
def _finish(state: Word, row: Word) -> None:
    _add_up(state, row)
    at(state, np.int64)[BASE] = 0


@compiled
def _keep(target: Word, source: Word, nbytes: Word) -> None:
    copy(target, source, 0, nbytes >> 2)


def _buffers() -> dict[int, NDArray[Any]]:
    return {
        CODES_AT: np.zeros(BLOCK, u8),
        PAIRS_AT: np.zeros(CODES * CODES, u16),
        TOTALS_AT: np.zeros(2 * CODES, u16),
    }


observe, observe_all = blocks.observers("pairs", _block32, _finish, _keep, BLOCK)
METHOD = blocks.Method(*blocks.entry_points(sys.modules[__name__]), BLOCK, _buffers, WIDEST + 1)
