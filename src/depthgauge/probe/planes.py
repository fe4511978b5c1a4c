"""A histogram of exponents by counting bits in vector registers: for processors with AVX-512.

What decides a kernel's speed is the histogram: an increment of a counter in memory is a load, an add and a store for
each number. There are none here:

- a number becomes one set bit: bit k of 16 says that it lies k binades below the largest one. Three more words repeat
  that bit if the number lies above 3/4, 13/16 and 7/8 of its binade;
- 32 numbers fill the words of four vectors, and how often each bit is set over many vectors is counted in binary, all
  bits at once, by the logic of a full adder: vectors for the digits 1, 2, 4, ... (a positional population count, as in
  Klarqvist, Mula, Lemire: Efficient computation of positional population counts using SIMD instructions, 2019);
- a number stays open if no bit stands for it: powers of two, significands from 127/128 of a binade on, about one in a
  hundred together, and whatever lies below the 16 binades. If these are many, the 16 binades below get a pass of
  their own; the rest is classified one at a time.
"""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist
from numba import njit, types
from numpy.typing import NDArray

from depthgauge.probe import blocks
from depthgauge.probe.blocks import (
    COMMON_WORDS,
    LOW,
    Word,
    as_float32,
    at,
    block32_with_nonfinite,
    classify32,
    compiled,
    copy,
    lowering,
    prefetch,
    touch,
    trailing_zeros,
)
from depthgauge.probe.rows import MAX, MIN, SUM, SUM_OF_LOG2, SUM_OF_SQUARES, ZEROS
from depthgauge.probe.vectors import (
    DOUBLES,
    FLOATS,
    HALVES,
    HALVES_OF_32,
    INTEGERS,
    LONGS,
    PLANES,
    bits_as,
    bits_of,
    column_counts,
    greater,
    greatest_of,
    least_of,
    lesser,
    load,
    low_and_high,
    majority,
    mask_of,
    plus_square,
    product_of,
    side_by_side,
    splat,
    store,
    store_past_caches,
    total_of,
    where,
    widened,
    with_sticky_bit,
)

u16, u32, u64 = np.uint16, np.uint32, np.uint64

# Words of the state.
OPEN_AT, COUNTS_AT, PADDED_AT, PLACES_AT, SEGMENTS_AT = range(COMMON_WORDS, COMMON_WORDS + 5)

NEEDS = "avx512bw"  # as LLVM calls it: 512 bits as 16-bit numbers; AVX-512F is part of it

GROUP = 512  # numbers: 16 vectors of each plane, so that the digits from 16 on change once in a group
BLOCK = 4096  # numbers: 16 KiB, so that a block stays in the first-level cache; their digits are 1 to 128
BINADES = 16
POWERS, FRACTIONS = 0, 1  # what a pass counts: powers of two, or what lies between them
NORMAL = 16  # the largest exponent field of 16 binades that end above the subnormal numbers


def _inline(function: blocks.Function) -> blocks.Function:
    return cast("blocks.Function", njit(forceinline=True, **blocks.OPTIONS)(function))


@lowering
def float32_bits(_context: Any, value: Any) -> Any:
    """The 32 bits of this float32."""
    del value
    return types.uint32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@lowering
def _leading_zeros(_context: Any, bits: Any) -> Any:
    del bits
    return types.uint32(types.uint32), lambda _c, builder, _s, arguments: builder.ctlz(
        arguments[0], ir.Constant(ir.IntType(1), 0)
    )


@lowering
def _set_bits(_context: Any, bits: Any) -> Any:
    del bits
    return types.uint64(types.uint64), lambda _c, builder, _s, arguments: builder.ctpop(arguments[0])


@compiled
def _measure(data: Word, n: Word) -> tuple[float, float, float, float, float]:
    """Sum, sum of squares, extremes, and sum of the logarithms of the significands of n <= BLOCK float32.

    Numbers that are not finite make the sum of squares not finite; finite ones cannot.
    """
    x = at(data, np.float32)
    totals, squares, products = splat(0.0, DOUBLES), splat(0.0, DOUBLES), splat(1.0, DOUBLES)
    leasts = mosts = splat(x[0], FLOATS)
    whole = n & ~31
    for start in range(0, whole, 2048):
        # The product of 64 significands is below 2^64, and needs one logarithm instead of 64.
        product = splat(np.float32(1), FLOATS)
        for i in range(start, min(start + 2048, whole), 32):
            values = load(data + i * 4, FLOATS)
            leasts, mosts = lesser(values, leasts), greater(values, mosts)
            product = product * bits_as((bits_as(values, INTEGERS) & 0x7FFFFF) | 0x3F800000, FLOATS)
            doubles = widened(values)
            totals = totals + doubles
            squares = plus_square(squares, doubles)
        products = products * widened(product)
    total, square, least, most = total_of(totals), total_of(squares), least_of(leasts), greatest_of(mosts)
    # Products of up to 2^256: exponents are added, significands multiplied.
    exponents = np.int64(total_of(bits_as(products, LONGS) >> 52)) - 32 * 1023
    product_of_all = product_of(bits_as((bits_as(products, LONGS) & 0xFFFFFFFFFFFFF) | (1023 << 52), DOUBLES))
    bits = at(data, np.uint32)
    for i in range(whole, n):
        value = np.float64(x[i])
        total += value
        square += value * value
        least, most = min(least, x[i]), max(most, x[i])
        product_of_all *= np.float64(as_float32(u32(u32(bits[i] & u32(0x7FFFFF)) | u32(0x3F800000))))
    return total, square, np.float64(least), np.float64(most), exponents + np.log2(product_of_all)


@_inline
def _planes(data: Word, field: Word, fractions: Word, open_at: Word) -> Any:
    """32 numbers as set bits; closes those that got one, and zeros."""
    low, high = low_and_high(load(data, HALVES))
    # Without the sign: 8 bits of exponent, 7 of the fraction, and whether there is more of it.
    magnitude = with_sticky_bit(high + high, low)
    fraction = magnitude & 255
    below = splat(field, HALVES_OF_32) - (magnitude >> 8)
    open_bits = at(open_at, np.uint32)
    still_open = mask_of(open_bits[0])
    # FRACTIONS: more than 0 and less than 254 of 256; POWERS: 0.
    counted = still_open & (below < BINADES) & (fraction - fractions < 252 * fractions + 1)
    binade = where(counted, splat(1, HALVES_OF_32) << below, 0)
    open_bits[0] = bits_of((still_open ^ counted) & (magnitude != 0))
    # The edges of formats.EDGES below 127/128, in units of 1/256.
    return side_by_side(
        binade, where(fraction >= 192, binade, 0), where(fraction > 208, binade, 0), where(fraction >= 224, binade, 0)
    )


@_inline
def _add(digit: Any, left: Any, right: Any) -> Any:
    """Add two vectors of one binary digit to a third, bit by bit: the digit, and what is carried to the next."""
    return digit ^ left ^ right, majority(digit, left, right)


@_inline
def _add_2(data: Word, field: Word, fractions: Word, open_at: Word, ones: Any) -> Any:
    return _add(ones, _planes(data, field, fractions, open_at), _planes(data + 128, field, fractions, open_at + 4))


@_inline
def _add_4(data: Word, field: Word, fractions: Word, open_at: Word, ones: Any, twos: Any) -> Any:  # noqa: PLR0917 # see blocks.observers
    ones, first = _add_2(data, field, fractions, open_at, ones)
    ones, second = _add_2(data + 256, field, fractions, open_at + 8, ones)
    twos, carry = _add(twos, first, second)
    return ones, twos, carry


@_inline
def _add_8(data: Word, field: Word, fractions: Word, open_at: Word, ones: Any, twos: Any, fours: Any) -> Any:  # noqa: PLR0917 # see blocks.observers
    ones, twos, first = _add_4(data, field, fractions, open_at, ones, twos)
    ones, twos, second = _add_4(data + 512, field, fractions, open_at + 16, ones, twos)
    fours, carry = _add(fours, first, second)
    return ones, twos, fours, carry


@_inline
def _ask_for(address: Word, nbytes: Word) -> None:
    for line in range(0, nbytes, 64):
        prefetch(address + line)


@compiled
def _count_binades(  # noqa: PLR0917 # see blocks.observers
    data: Word,
    n: Word,
    field: Word,
    fractions: Word,
    open_at: Word,
    counts_at: Word,
    ahead: Word,
    beside: Word,
) -> None:
    """Count those of n <= BLOCK numbers, a multiple of GROUP, that are open and lie in 16 binades from the field on.

    Of these, either the powers of two or the rest, but for the last 128th of a binade. Writes 16 counts of each plane,
    and closes what was counted, and zeros. Meanwhile, it asks for the memory of what will be needed next, at one or
    two addresses.
    """
    ones = twos = fours = eights = c16 = c32 = c64 = c128 = splat(0, PLANES)
    for _ in range(0, n, GROUP):
        _ask_for(ahead, 2 * GROUP)
        if beside:
            _ask_for(beside, 2 * GROUP)
        ones, twos, fours, first = _add_8(data, field, fractions, open_at, ones, twos, fours)
        _ask_for(ahead + 2 * GROUP, 2 * GROUP)
        if beside:
            _ask_for(beside + 2 * GROUP, 2 * GROUP)
            beside += 4 * GROUP
        ones, twos, fours, second = _add_8(data + 1024, field, fractions, open_at + 32, ones, twos, fours)
        eights, carry = _add(eights, first, second)
        c16, carry = c16 ^ carry, c16 & carry
        c32, carry = c32 ^ carry, c32 & carry
        c64, carry = c64 ^ carry, c64 & carry
        c128 = c128 ^ carry
        data += 4 * GROUP
        ahead += 4 * GROUP
        open_at += GROUP // 8
    store(counts_at, column_counts((ones, twos, fours, eights, c16, c32, c64, c128)))


@compiled
def _file_binades(state: Word, field: Word, fractions: Word) -> Word:
    """Put the counts of 16 binades into their cells; returns how many numbers that were."""
    words = at(state, np.int64)
    counts = at(words[COUNTS_AT], np.uint16)
    dense = at(words[blocks.DENSE_AT], np.int64)
    total: Word = 0
    for binade in range(BINADES):
        n = np.int64(counts[binade])
        if n:
            total += n
            exponent = field - binade - 127
            cell = (exponent + 1074) * 16 + fractions
            from_12, from_13, from_14 = (
                np.int64(counts[BINADES + binade]),
                np.int64(counts[2 * BINADES + binade]),
                np.int64(counts[3 * BINADES + binade]),
            )
            dense[cell] += n - from_12
            dense[cell + 1] += from_12 - from_13
            dense[cell + 2] += from_13 - from_14
            dense[cell + 3] += from_14
            touch(state, exponent, exponent)
    return total


@compiled
def _classify_open(state: Word, row: Word, data: Word, padded: Word) -> Word:
    """Count the numbers that are open, one at a time; returns how many they are.

    Their places are random, so that the processor cannot predict how many the next 64 numbers have: two are noted
    in any case, and overwritten if there were none.
    """
    words = at(state, np.int64)
    open_words = at(words[OPEN_AT], np.uint64)
    places = at(words[PLACES_AT], np.uint16)
    n: Word = 0
    for i in range(padded >> 6):
        rest = open_words[i]
        places[n] = u16(i * 64 + np.int64(trailing_zeros(rest)))
        after = rest & (rest - u64(1))
        places[n + 1] = u16(i * 64 + np.int64(trailing_zeros(after)))
        end = n + np.int64(_set_bits(rest))
        n += 2
        after &= after - u64(1)
        while n < end:
            places[n] = u16(i * 64 + np.int64(trailing_zeros(after)))
            after &= after - u64(1)
            n += 1
        n = end
    bits = at(data, np.uint32)
    dense = at(words[blocks.DENSE_AT], np.int64)
    segments = at(words[SEGMENTS_AT], np.int64)
    lowest: Word = 2000
    for i in range(n):
        magnitude = bits[np.int64(places[i])] & u32(0x7FFFFFFF)
        field = np.int64(magnitude >> u32(23))
        fraction = u32(magnitude << u32(9))
        leading_ones = np.int64(_leading_zeros(u32(~fraction)))
        if not field or (fraction and leading_ones < 7):
            classify32(state, row, magnitude)
            continue
        segment = segments[leading_ones] if fraction else 0
        dense[(field - 127 + 1074) * 16 + segment] += 1
        lowest = min(lowest, field - 127)
    words[LOW] = min(words[LOW], lowest)
    return n


@compiled
def _histogram32(  # noqa: PLR0917 # see blocks.observers
    state: Word, row: Word, data: Word, n: Word, padded: Word, field: Word, ahead: Word, beside: Word
) -> None:
    """Count n <= BLOCK finite numbers, none of them above the binade of that exponent field; zeros fill a group up."""
    words = at(state, np.int64)
    open_words = at(words[OPEN_AT], np.uint64)
    for i in range(padded >> 6):
        open_words[i] = ~u64(0)
    touch(state, field - 127, field - 127)
    left = n
    # Quantized numbers, and updates of a few units in the last place, are often powers of two.
    field, fractions, quantized = max(field, NORMAL), FRACTIONS, True
    while True:
        _count_binades(data, padded, field, fractions, words[OPEN_AT], words[COUNTS_AT], ahead, beside)
        counted = _file_binades(state, field, fractions)
        left -= counted
        still_open: Word = 0
        for i in range(padded >> 6):
            still_open += np.int64(_set_bits(open_words[i]))
        if still_open <= padded >> 4:  # one at a time costs as much as 16 in a pass
            break
        if fractions == FRACTIONS and quantized:
            fractions = POWERS
            continue
        if fractions == POWERS:
            quantized = counted > padded >> 4
        elif not counted:
            break
        if field == NORMAL:
            break
        field, fractions = max(field - BINADES, NORMAL), FRACTIONS
    at(row, np.int64)[ZEROS] += left - _classify_open(state, row, data, padded)


@compiled
def _block32(state: Word, row: Word, data: Word, n: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
    """Count n <= BLOCK numbers of float32."""
    total, squares, least, most, logarithms = _measure(data, n)
    if not np.isfinite(squares):
        block32_with_nonfinite(state, row, data, n)
        return
    numbers = at(row, np.float64)
    numbers[SUM] += total
    numbers[SUM_OF_SQUARES] += squares
    numbers[SUM_OF_LOG2] += logarithms
    numbers[MIN], numbers[MAX] = min(numbers[MIN], least), max(numbers[MAX], most)
    largest = max(-least, most)
    if largest == 0:
        at(row, np.int64)[ZEROS] += n
        return
    words = at(state, np.int64)
    field = np.int64(float32_bits(np.float32(largest)) >> u32(23))
    whole = n & ~(GROUP - 1)
    if whole:
        _histogram32(state, row, data, whole, whole, field, ahead, beside)
    if n > whole:
        padded = at(words[PADDED_AT], np.uint32)
        bits = at(data, np.uint32)
        for i in range(n - whole):
            padded[i] = bits[whole + i]
        for i in range(n - whole, GROUP):
            padded[i] = u32(0)
        _histogram32(state, row, words[PADDED_AT], n - whole, GROUP, field, ahead, 0)


@compiled
def _finish(_state: Word, _row: Word) -> None:
    """Do nothing: all numbers are in cells already."""


@compiled
def _keep(target: Word, source: Word, nbytes: Word) -> None:
    """Copy numbers; they are read again after the optimizer's step, when caches have forgotten most of them."""
    whole = 0 if target & 63 else nbytes & ~127
    for i in range(0, whole, 128):
        store_past_caches(target + i, load(source + i, FLOATS))
    copy(target, source, whole >> 2, nbytes >> 2)


def _buffers() -> dict[int, NDArray[Any]]:
    return {
        OPEN_AT: np.zeros(BLOCK // 64, u64),
        COUNTS_AT: np.zeros(4 * BINADES, u16),
        PADDED_AT: np.zeros(GROUP, u32),
        PLACES_AT: np.zeros(BLOCK + 2, u16),
        # By how many ones a fraction begins with; what begins with fewer than 7 is not looked up.
        SEGMENTS_AT: np.array([0] * 7 + [5, 6, 6, 7] + [8] * 12 + [9], np.int64),
    }


observe, observe_all = blocks.observers("planes", _block32, _finish, _keep, BLOCK)
METHOD = blocks.Method(*blocks.entry_points(sys.modules[__name__]), BLOCK, _buffers, SEGMENTS_AT + 1)
