"""Parts that the kernels share that count numbers as set bits, sixteen binades at a time (`planes`, `shuffles`).

Both read a block twice: for its moments, which also tell its largest number, and then for the histogram below that
number. A number that got no bit stays open, and is classified by itself.
"""

from __future__ import annotations

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
    compiled_for,
    copy,
    lowering,
    prefetch,
    touch,
    trailing_zeros,
)
from depthgauge.probe.rows import MAX, MIN, SUM, SUM_OF_LOG2, SUM_OF_SQUARES, ZEROS
from depthgauge.probe.vectors import (
    FLOATS,
    Vector,
    bits_as,
    greater,
    greatest_of,
    least_of,
    lesser,
    load,
    plus_square,
    product_of,
    splat,
    store_past_caches,
    total_of,
    widened,
)

u16, u32, u64 = np.uint16, np.uint32, np.uint64

BINADES = 16
NOTHING = -1  # instead of an exponent field
BLOCK = 4096  # numbers: 16 KiB, so that a block stays in the first-level cache

# Words of the state, before those of a method.
OPEN_AT, PLACES_AT, SEGMENTS_AT = range(COMMON_WORDS, COMMON_WORDS + 3)
FIRST_WORD = SEGMENTS_AT + 1


def buffers() -> dict[int, NDArray[Any]]:
    """Arrays that the functions here need."""
    return {
        OPEN_AT: np.zeros(BLOCK // 64, u64),
        PLACES_AT: np.zeros(BLOCK + 2, u16),
        # By how many ones a fraction begins with; what begins with fewer than 7 is not looked up.
        SEGMENTS_AT: np.array([0] * 7 + [5, 6, 6, 7] + [8] * 12 + [9], np.int64),
    }


def inline(function: blocks.Function) -> blocks.Function:
    """Compile into the compiled functions that call it."""
    return cast("blocks.Function", njit(forceinline=True, **blocks.OPTIONS)(function))


@lowering
def float32_bits(_context: Any, value: Any) -> Any:
    """The 32 bits of this float32."""
    del value
    return types.uint32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@lowering
def leading_zeros(_context: Any, bits: Any) -> Any:
    """Count the zeros before the first set bit of 32."""
    del bits
    return types.uint32(types.uint32), lambda _c, builder, _s, arguments: builder.ctlz(
        arguments[0], ir.Constant(ir.IntType(1), 0)
    )


@lowering
def set_bits(_context: Any, bits: Any) -> Any:
    """Count the set bits of 64."""
    del bits
    return types.uint64(types.uint64), lambda _c, builder, _s, arguments: builder.ctpop(arguments[0])


@inline
def ask_for(address: Word, nbytes: Word) -> None:
    """Ask for the memory from an address on, which need not be valid."""
    for line in range(0, nbytes, 64):
        prefetch(address + line)


@inline
def how_many_open(open_at: Word, padded: Word) -> Word:
    """Count the numbers, of a multiple of 64, that are open."""
    open_words = at(open_at, np.uint64)
    n: Word = 0
    for i in range(padded >> 6):
        n += np.int64(set_bits(open_words[i]))
    return n


def measures(method: str, lanes: int) -> Any:
    """The function `(row, data, n)` that adds a block's moments to a row, `lanes` numbers at a time.

    It returns the exponent field of the block's largest number, or NOTHING if all that is to be known of the block's
    n numbers is in the row already: they are all zero, or not all finite.
    """
    floats, doubles = Vector("f32", lanes), Vector("f64", lanes)
    integers, longs = Vector("u32", lanes), Vector("u64", lanes)

    @compiled_for(method)
    def moments(data: Word, n: Word) -> tuple[float, float, float, float, float]:
        """Sum, sum of squares, extremes, and sum of the logarithms of the significands of n float32, at most 4096.

        Numbers that are not finite make the sum of squares not finite; finite ones cannot.
        """
        x = at(data, np.float32)
        whole = n & ~(lanes - 1)
        total, square, product_of_all = 0.0, 0.0, 1.0
        exponents: Word = 0
        least = most = x[0]
        if whole:
            totals, squares, products = splat(0.0, doubles), splat(0.0, doubles), splat(1.0, doubles)
            leasts = mosts = splat(x[0], floats)
            for start in range(0, whole, 64 * lanes):
                # The product of 64 significands is below 2^64, and needs one logarithm instead of 64.
                product = splat(np.float32(1), floats)
                for i in range(start, min(start + 64 * lanes, whole), lanes):
                    values = load(data + i * 4, floats)
                    leasts, mosts = lesser(values, leasts), greater(values, mosts)
                    product = product * bits_as((bits_as(values, integers) & 0x7FFFFF) | 0x3F800000, floats)
                    wide = widened(values)
                    totals = totals + wide
                    squares = plus_square(squares, wide)
                products = products * widened(product)
            total, square, least, most = total_of(totals), total_of(squares), least_of(leasts), greatest_of(mosts)
            # Products of up to 2^256: exponents are added, significands multiplied.
            exponents = np.int64(total_of(bits_as(products, longs) >> 52)) - lanes * 1023
            product_of_all = product_of(bits_as((bits_as(products, longs) & 0xFFFFFFFFFFFFF) | (1023 << 52), doubles))
        bits = at(data, np.uint32)
        for i in range(whole, n):
            value = np.float64(x[i])
            total += value
            square += value * value
            least, most = min(least, x[i]), max(most, x[i])
            product_of_all *= np.float64(as_float32(u32(u32(bits[i] & u32(0x7FFFFF)) | u32(0x3F800000))))
        return total, square, np.float64(least), np.float64(most), exponents + np.log2(product_of_all)

    @compiled_for(method)
    def measure(state: Word, row: Word, data: Word, n: Word) -> Word:
        total, squares, least, most, logarithms = moments(data, n)
        if not np.isfinite(squares):
            block32_with_nonfinite(state, row, data, n)
            return NOTHING
        numbers = at(row, np.float64)
        numbers[SUM] += total
        numbers[SUM_OF_SQUARES] += squares
        numbers[SUM_OF_LOG2] += logarithms
        numbers[MIN], numbers[MAX] = min(numbers[MIN], least), max(numbers[MAX], most)
        largest = max(-least, most)
        if largest == 0:
            at(row, np.int64)[ZEROS] += n
            return NOTHING
        field = np.int64(float32_bits(np.float32(largest)) >> u32(23))
        touch(state, field - 127, field - 127)
        return field

    return measure


@compiled
def file_binades(state: Word, counts_at: Word, field: Word) -> Word:
    """Put the counts of 16 binades into their cells; returns how many numbers that were.

    The counts are four times 16: numbers in a binade, then those in it from 3/4, above 13/16, and from 7/8 of it on.
    """
    counts = at(counts_at, np.uint16)
    dense = at(at(state, np.int64)[blocks.DENSE_AT], np.int64)
    total: Word = 0
    for binade in range(BINADES):
        n = np.int64(counts[binade])
        if n:
            total += n
            exponent = field - binade - 127
            cell = (exponent + 1074) * 16 + 1
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
def file_powers(state: Word, counts_at: Word, field: Word) -> Word:
    """Put the counts of 16 powers of two, four of each, into their cells; returns how many numbers that were."""
    counts = at(counts_at, np.uint16)
    dense = at(at(state, np.int64)[blocks.DENSE_AT], np.int64)
    total: Word = 0
    for binade in range(BINADES):
        n: Word = 0
        for part in range(4):
            n += np.int64(counts[part * BINADES + binade])
        if n:
            total += n
            exponent = field - binade - 127
            dense[(exponent + 1074) * 16] += n
            touch(state, exponent, exponent)
    return total


def classifies(method: str, place_of: Any) -> Any:
    """The function `(state, row, data, padded)` that counts open numbers one at a time and returns how many they are.

    Bit i of the words at OPEN_AT says whether number `place_of(i)` of `padded`, a multiple of 64, is open.
    """

    @compiled_for(method)
    def classify_open(state: Word, row: Word, data: Word, padded: Word) -> Word:
        words = at(state, np.int64)
        open_words, places = at(words[OPEN_AT], np.uint64), at(words[PLACES_AT], np.uint16)
        # Their places are random, so that the processor cannot predict how many the next 64 numbers have: two are
        # noted in any case, and overwritten if there were none.
        n: Word = 0
        for i in range(padded >> 6):
            rest = open_words[i]
            places[n] = u16(i * 64 + np.int64(trailing_zeros(rest)))
            after = rest & (rest - u64(1))
            places[n + 1] = u16(i * 64 + np.int64(trailing_zeros(after)))
            end = n + np.int64(set_bits(rest))
            n += 2
            after &= after - u64(1)
            while n < end:
                places[n] = u16(i * 64 + np.int64(trailing_zeros(after)))
                after &= after - u64(1)
                n += 1
            n = end
        bits, segments = at(data, np.uint32), at(words[SEGMENTS_AT], np.int64)
        dense = at(words[blocks.DENSE_AT], np.int64)
        lowest: Word = 2000
        for i in range(n):
            magnitude = bits[place_of(np.int64(places[i]))] & u32(0x7FFFFFFF)
            field = np.int64(magnitude >> u32(23))
            fraction = u32(magnitude << u32(9))
            leading_ones = np.int64(leading_zeros(u32(~fraction)))
            if not field or (fraction and leading_ones < 7):
                classify32(state, row, magnitude)
                continue
            segment = segments[leading_ones] if fraction else 0
            dense[(field - 127 + 1074) * 16 + segment] += 1
            lowest = min(lowest, field - 127)
        words[LOW] = min(words[LOW], lowest)
        return n

    return classify_open


@compiled
def keep(target: Word, source: Word, nbytes: Word) -> None:
    """Copy numbers; they are read again after the optimizer's step, when caches have forgotten most of them."""
    whole = 0 if target & 63 else nbytes & ~127
    for i in range(0, whole, 128):
        store_past_caches(target + i, load(source + i, FLOATS))
    copy(target, source, whole >> 2, nbytes >> 2)
