"""One pass over a tensor in memory: exponent histogram, moments and extremes, compiled for the processor by numba.

Most tensors of a small network hold a few thousand numbers, so that a call must cost well below a microsecond, and a
number well below a nanosecond. What decides it is the histogram: an increment of a counter in memory is a load, an
add and a store for each number. There are none here:

- a number becomes one set bit: bit k of 16 says that it lies k binades below the largest one. Three more words repeat
  that bit if the number lies above 3/4, 13/16 and 7/8 of its binade;
- 32 numbers fill the words of four vectors, and how often each bit is set over many vectors is counted in binary, all
  bits at once, by the logic of a full adder: vectors for the digits 1, 2, 4, ... (a positional population count, as in
  Klarqvist, Mula, Lemire: Efficient computation of positional population counts using SIMD instructions, 2019);
- a number stays open if no bit stands for it: powers of two, significands from 127/128 of a binade on, about one in a
  hundred together, and whatever lies below the 16 binades. If these are many, the 16 binades below get a pass of
  their own; the rest is classified one at a time.

Everything crosses the boundary as integers, addresses and lengths, because that is the cheapest call there is.
32-bit arithmetic is spelled `u32(...)` throughout: numba widens integers to 64 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from depthgauge.probe.parameters import OBSERVE, OBSERVE_AND_KEEP, OBSERVE_CHANGE, Job
from depthgauge.probe.rows import (
    CALL,
    CELLS,
    CELLS_A_BLOCK,
    COUNT,
    COUNT_BITS,
    KEYS,
    MAX,
    MIN,
    NANS,
    NEGATIVE_INFINITIES,
    POSITIVE_INFINITIES,
    ROWS_A_BLOCK,
    SLOT,
    STEP,
    SUM,
    SUM_OF_LOG2,
    SUM_OF_SQUARES,
    WORDS,
    ZEROS,
    Ledger,
    Rows,
)
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

# Words of the kernel's state. LOW, HIGH: the range of cells touched.
ROWS_AT, ROWS_USED, CELLS_AT, CELLS_USED, OPEN_AT, COUNTS_AT, PADDED_AT, DENSE_AT, CHANGE_AT = range(9)
PLACES_AT, SEGMENTS_AT, LOW, HIGH = range(9, 13)
STATE_WORDS = 13

GROUP = 512  # numbers: 16 vectors of each plane, so that the digits from 16 on change once in a group
BLOCK = 4096  # numbers: 16 KiB, so that a block stays in the first-level cache; their digits are 1 to 128
BINADES = 16
POWERS, FRACTIONS = 0, 1  # what a pass counts: powers of two, or what lies between them
NORMAL = 16  # the largest exponent field of 16 binades that end above the subnormal numbers

_OPTIONS: Any = {"cache": True, "error_model": "numpy", "boundscheck": False}

Word = Any  # an int64 inside of compiled code, an int where Python calls it
Function = TypeVar("Function", bound=Callable[..., Any])


# numba's own decorators carry no types.
def _compile(function: Function) -> Function:
    return cast("Function", njit(**_OPTIONS)(function))


def _inline(function: Function) -> Function:
    return cast("Function", njit(forceinline=True, **_OPTIONS)(function))


def _intrinsic(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


@_intrinsic
def at(_context: Any, address: Any, dtype: Any) -> Any:
    """The memory at an address, as numbers of that type."""
    del address
    pointer: Any = types.CPointer
    signature = pointer(dtype.dtype)(types.int64, dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@_intrinsic
def as_float32(_context: Any, bits: Any) -> Any:
    """The float32 of these 32 bits."""
    del bits
    return types.float32(types.uint32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.FloatType())


@_intrinsic
def float32_bits(_context: Any, value: Any) -> Any:
    """The 32 bits of this float32."""
    del value
    return types.uint32(types.float32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@_intrinsic
def as_float64(_context: Any, bits: Any) -> Any:
    """The float64 of these 64 bits."""
    del bits
    return types.float64(types.uint64), lambda _c, builder, _s, arguments: builder.bitcast(
        arguments[0], ir.DoubleType()
    )


@_intrinsic
def _trailing_zeros(_context: Any, bits: Any) -> Any:
    del bits
    return types.uint64(types.uint64), lambda _c, builder, _s, arguments: builder.cttz(
        arguments[0], ir.Constant(ir.IntType(1), 0)
    )


@_intrinsic
def _leading_zeros(_context: Any, bits: Any) -> Any:
    del bits
    return types.uint32(types.uint32), lambda _c, builder, _s, arguments: builder.ctlz(
        arguments[0], ir.Constant(ir.IntType(1), 0)
    )


@_intrinsic
def _prefetch(_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not be valid."""
    del address

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, flag, flag, flag])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(prefetch, [pointer, flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@_intrinsic
def _set_bits(_context: Any, bits: Any) -> Any:
    del bits
    return types.uint64(types.uint64), lambda _c, builder, _s, arguments: builder.ctpop(arguments[0])


@_compile
def _file(state: Word, fraction: Word, exponent: Word, count: Word) -> Word:
    """Put numbers of that exponent into the cell of their 52-bit fraction; returns the cell's segment."""
    segment = 0
    if fraction > 0:
        # The edges of formats.EDGES, in units of 2^-52.
        segment = (
            1
            + (fraction >= 3 << 50)
            + (fraction > 13 << 48)
            + (fraction >= 7 << 49)
            + (fraction >= 127 << 45)
            + (fraction >= 255 << 44)
            + (fraction >= 1023 << 42)
            + (fraction >= 2047 << 41)
            + (fraction >= ((1 << 23) - 1) << 29)
            + (fraction >= ((1 << 24) - 1) << 28)
            + (fraction >= (1 << 52) - 1)
        )
    at(at(state, np.int64)[DENSE_AT], np.int64)[(exponent + 1074) * 16 + segment] += count
    _touch(state, exponent, exponent)
    return segment


@_compile
def _touch(state: Word, low: Word, high: Word) -> None:
    words = at(state, np.int64)
    words[LOW] = min(words[LOW], low)
    words[HIGH] = max(words[HIGH], high)


@_compile
def _classify32(state: Word, row: Word, bits: Any) -> None:
    """Count one float32 of whatever kind."""
    magnitude = np.int64(bits & u32(0x7FFFFFFF))
    fraction = magnitude & 0x7FFFFF
    field = magnitude >> 23
    words = at(row, np.int64)
    if magnitude == 0:
        words[ZEROS] += 1
    elif field == 255:
        if fraction:
            words[NANS] += 1
        elif bits >> u32(31):
            words[NEGATIVE_INFINITIES] += 1
        else:
            words[POSITIVE_INFINITIES] += 1
    elif field:
        _file(state, fraction << 29, field - 127, 1)
    else:
        exponent = -127
        while not fraction & 0x800000:
            fraction <<= 1
            exponent -= 1
        exponent += 1
        fraction &= 0x7FFFFF
        _file(state, fraction << 29, exponent, 1)
        # The product of significands took the field of fractions as it stood.
        at(row, np.float64)[SUM_OF_LOG2] += np.log2(1 + fraction / 2.0**23) - np.log2(1 + (magnitude / 2.0**23))


@_compile
def _block32_with_nonfinite(state: Word, row: Word, data: Word, n: Word) -> None:
    """A block one number at a time; sums and extremes are those of the finite numbers."""
    bits = at(data, np.uint32)
    x = at(data, np.float32)
    row_numbers = at(row, np.float64)
    for i in range(n):
        _classify32(state, row, bits[i])
        if bits[i] & u32(0x7F800000) != u32(0x7F800000):
            value = np.float64(x[i])
            row_numbers[SUM] += value
            row_numbers[SUM_OF_SQUARES] += value * value
            row_numbers[MIN] = min(row_numbers[MIN], value)
            row_numbers[MAX] = max(row_numbers[MAX], value)
            row_numbers[SUM_OF_LOG2] += np.log2(1 + np.float64(bits[i] & u32(0x7FFFFF)) / 2.0**23)


@_compile
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
def _add(digit: Any, one: Any, other: Any) -> Any:
    """Add two vectors of one binary digit to a third, bit by bit: the digit, and what is carried to the next."""
    return digit ^ one ^ other, majority(digit, one, other)


@_inline
def _add_2(data: Word, field: Word, fractions: Word, open_at: Word, ones: Any) -> Any:
    return _add(ones, _planes(data, field, fractions, open_at), _planes(data + 128, field, fractions, open_at + 4))


@_inline
def _add_4(data: Word, field: Word, fractions: Word, open_at: Word, ones: Any, twos: Any) -> Any:  # noqa: PLR0917 # see _observe
    ones, first = _add_2(data, field, fractions, open_at, ones)
    ones, second = _add_2(data + 256, field, fractions, open_at + 8, ones)
    twos, carry = _add(twos, first, second)
    return ones, twos, carry


@_inline
def _add_8(data: Word, field: Word, fractions: Word, open_at: Word, ones: Any, twos: Any, fours: Any) -> Any:  # noqa: PLR0917 # see _observe
    ones, twos, first = _add_4(data, field, fractions, open_at, ones, twos)
    ones, twos, second = _add_4(data + 512, field, fractions, open_at + 16, ones, twos)
    fours, carry = _add(fours, first, second)
    return ones, twos, fours, carry


@_inline
def _ask_for(address: Word, nbytes: Word) -> None:
    for line in range(0, nbytes, 64):
        _prefetch(address + line)


@_compile
def _count_binades(  # noqa: PLR0917 # see _observe
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


@_compile
def _file_binades(state: Word, field: Word, fractions: Word) -> Word:
    """Put the counts of 16 binades into their cells; returns how many numbers that were."""
    words = at(state, np.int64)
    counts = at(words[COUNTS_AT], np.uint16)
    dense = at(words[DENSE_AT], np.int64)
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
            _touch(state, exponent, exponent)
    return total


@_compile
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
        places[n] = u16(i * 64 + np.int64(_trailing_zeros(rest)))
        after = rest & (rest - u64(1))
        places[n + 1] = u16(i * 64 + np.int64(_trailing_zeros(after)))
        end = n + np.int64(_set_bits(rest))
        n += 2
        after &= after - u64(1)
        while n < end:
            places[n] = u16(i * 64 + np.int64(_trailing_zeros(after)))
            after &= after - u64(1)
            n += 1
        n = end
    bits = at(data, np.uint32)
    dense = at(words[DENSE_AT], np.int64)
    segments = at(words[SEGMENTS_AT], np.int64)
    lowest: Word = 2000
    for i in range(n):
        magnitude = bits[np.int64(places[i])] & u32(0x7FFFFFFF)
        field = np.int64(magnitude >> u32(23))
        fraction = u32(magnitude << u32(9))
        leading_ones = np.int64(_leading_zeros(u32(~fraction)))
        if not field or (fraction and leading_ones < 7):
            _classify32(state, row, magnitude)
            continue
        segment = segments[leading_ones] if fraction else 0
        dense[(field - 127 + 1074) * 16 + segment] += 1
        lowest = min(lowest, field - 127)
    words[LOW] = min(words[LOW], lowest)
    return n


@_compile
def _histogram32(  # noqa: PLR0917 # see _observe
    state: Word, row: Word, data: Word, n: Word, padded: Word, field: Word, ahead: Word, beside: Word
) -> None:
    """Count n <= BLOCK finite numbers, none of them above the binade of that exponent field; zeros fill a group up."""
    words = at(state, np.int64)
    open_words = at(words[OPEN_AT], np.uint64)
    for i in range(padded >> 6):
        open_words[i] = ~u64(0)
    _touch(state, field - 127, field - 127)
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


@_compile
def _block32(state: Word, row: Word, data: Word, n: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see _observe
    """Count n <= BLOCK numbers of float32."""
    total, squares, least, most, logarithms = _measure(data, n)
    if not np.isfinite(squares):
        _block32_with_nonfinite(state, row, data, n)
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


@_compile
def _block64(state: Word, row: Word, data: Word, n: Word) -> None:
    """Count numbers of float64, one at a time: they are for reference runs, not for speed."""
    bits = at(data, np.uint64)
    x = at(data, np.float64)
    words = at(row, np.int64)
    row_numbers = at(row, np.float64)
    for i in range(n):
        value = x[i]
        magnitude = np.int64(bits[i] & u64(0x7FFFFFFFFFFFFFFF))
        fraction = magnitude & 0xFFFFFFFFFFFFF
        field = magnitude >> 52
        if field == 2047:
            if fraction:
                words[NANS] += 1
            elif value < 0:
                words[NEGATIVE_INFINITIES] += 1
            else:
                words[POSITIVE_INFINITIES] += 1
            continue
        row_numbers[SUM] += value
        row_numbers[SUM_OF_SQUARES] += value * value
        row_numbers[MIN] = min(row_numbers[MIN], value)
        row_numbers[MAX] = max(row_numbers[MAX], value)
        if magnitude == 0:
            words[ZEROS] += 1
            continue
        exponent: Word = field - 1023
        if not field:
            exponent = -1022
            while not fraction & (1 << 52):
                fraction <<= 1
                exponent -= 1
            fraction &= 0xFFFFFFFFFFFFF
        _file(state, fraction, exponent, 1)
        row_numbers[SUM_OF_LOG2] += np.log2(1 + fraction / 2.0**52)


@_compile
def _subtract(width: Word, change: Word, data: Word, earlier: Word, n: Word) -> None:
    if width == 4:
        difference, now, before = at(change, np.float32), at(data, np.float32), at(earlier, np.float32)
        for i in range(n):
            difference[i] = now[i] - before[i]
    else:
        _subtract64(change, data, earlier, n)


@_compile
def _subtract64(change: Word, data: Word, earlier: Word, n: Word) -> None:
    difference, now, before = at(change, np.float64), at(data, np.float64), at(earlier, np.float64)
    for i in range(n):
        difference[i] = now[i] - before[i]


@_compile
def _keep(target: Word, source: Word, nbytes: Word) -> None:
    """Copy numbers; they are read again after the optimizer's step, when caches have forgotten most of them."""
    whole = 0 if target & 63 else nbytes & ~127
    for i in range(0, whole, 128):
        store_past_caches(target + i, load(source + i, FLOATS))
    to, of = at(target, np.uint32), at(source, np.uint32)
    for i in range(whole >> 2, nbytes >> 2):
        to[i] = of[i]


@_compile
def _finish(state: Word, row: Word) -> None:
    """Move the touched cells into the ledger and clear them."""
    words = at(state, np.int64)
    dense = at(words[DENSE_AT], np.int64)
    cells = at(words[CELLS_AT], np.int64)
    first = words[CELLS_USED]
    used = first
    exponents = 0
    for exponent in range(words[LOW], words[HIGH] + 1):
        for key in range((exponent + 1074) * 16, (exponent + 1074) * 16 + 12):
            n = dense[key]
            cells[used] = (key << COUNT_BITS) | n
            used += n != 0
            exponents += exponent * n
            dense[key] = 0
    words[CELLS_USED] = used
    at(row, np.int64)[CELLS] = used - first
    at(row, np.float64)[SUM_OF_LOG2] += exponents
    words[ROWS_USED] += 1


@_compile
def _append(  # noqa: PLR0917 # see _observe
    state: Word,
    data: Word,
    n: Word,
    width: Word,
    what: Word,
    companion: Word,
    slot: Word,
    step: Word,
    call: Word,
    then: Word,
    then_beside: Word,
) -> Word:
    """Append one row for n numbers of 4 or 8 bytes; 1 if the ledger has no room for it, else 0.

    `then` and `then_beside` are addresses of what is read next, and of its companion, or 0.
    """
    words = at(state, np.int64)
    if words[ROWS_USED] == ROWS_A_BLOCK or CELLS_A_BLOCK - words[CELLS_USED] < KEYS:
        return 1
    row = words[ROWS_AT] + words[ROWS_USED] * WORDS * 8
    row_words = at(row, np.int64)
    for i in range(WORDS):
        row_words[i] = 0
    row_words[SLOT], row_words[STEP], row_words[CALL], row_words[COUNT] = slot, step, call, n
    row_numbers = at(row, np.float64)
    row_numbers[MIN], row_numbers[MAX] = np.inf, -np.inf
    words[LOW], words[HIGH] = 2000, -2000
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        source, beside = data + start * width, companion + start * width
        if what == OBSERVE_CHANGE:
            _subtract(width, words[CHANGE_AT], source, beside, size)
            source = words[CHANGE_AT]
        if width == 8:
            _block64(state, row, source, size)
        elif start + BLOCK >= n:
            _block32(state, row, source, size, then, then_beside)
        else:
            after = data + (start + BLOCK) * 4
            _block32(state, row, source, size, after, beside + BLOCK * 4 if what == OBSERVE_CHANGE else 0)
        if what == OBSERVE_AND_KEEP:
            _keep(beside, source, size * width)
    if row_words[NANS] + row_words[POSITIVE_INFINITIES] + row_words[NEGATIVE_INFINITIES] == n:
        row_numbers[MIN] = row_numbers[MAX] = np.nan
    _finish(state, row)
    return 0


@_compile
def _observe(  # noqa: PLR0917 # keywords cost as much as the call
    state: Word, data: Word, n: Word, width: Word, slot: Word, step: Word, call: Word
) -> Word:
    """Append one row for n numbers of 4 or 8 bytes; 1 if the ledger has no room for it, else 0."""
    return _append(state, data, n, width, OBSERVE, 0, slot, step, call, 0, 0)


@_compile
def _observe_all(state: Word, jobs: Word, n: Word, first: Word, step: Word) -> Word:
    """Observe job `first` and its followers of n jobs (six words each); the number of the first without room, or n."""
    words = at(jobs, np.int64)
    then_at = first * 6
    for job in range(first, n):
        at_job = job * 6
        # What is asked for meanwhile is the next tensor of some size.
        while then_at <= at_job or (then_at < n * 6 and words[then_at + 1] < GROUP):
            then_at += 6
        then, then_beside = 0, 0
        if then_at < n * 6:
            then = words[then_at]
            if words[then_at + 3] == OBSERVE_CHANGE:
                then_beside = words[then_at + 4]
        if _append(
            state,
            words[at_job],
            words[at_job + 1],
            words[at_job + 2],
            words[at_job + 3],
            words[at_job + 4],
            words[at_job + 5],
            step,
            0,
            then,
            then_beside,
        ):
            return job
    return n


class CompiledKernel:
    """Appends rows to a ledger; one at a time, as Python's lock guarantees."""

    native: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._buffers: dict[int, NDArray[Any]] = {
            ROWS_AT: self._ledger.rows,
            CELLS_AT: self._ledger.cells,
            OPEN_AT: np.zeros(BLOCK // 64, u64),
            COUNTS_AT: np.zeros(4 * BINADES, u16),
            PLACES_AT: np.zeros(BLOCK + 2, u16),
            # By how many ones a fraction begins with; what begins with fewer than 7 is not looked up.
            SEGMENTS_AT: np.array([0] * 7 + [5, 6, 6, 7] + [8] * 12 + [9], np.int64),
            PADDED_AT: np.zeros(GROUP, u32),
            DENSE_AT: np.zeros(KEYS, np.int64),
            CHANGE_AT: np.zeros(BLOCK, np.float64),
        }
        self._state = np.zeros(STATE_WORDS, np.int64)
        for word, buffer in self._buffers.items():
            self._state[word] = buffer.ctypes.data
        self._at = int(self._state.ctypes.data)

    def observe(self, tensor: torch.Tensor, slot: int, step: int, call: int) -> None:
        """Append a row for a dense float32 or float64 tensor in main memory."""
        width = 4 if tensor.dtype is torch.float32 else 8
        while _observe(self._at, tensor.data_ptr(), tensor.numel(), width, slot, step, call):
            self._make_room()

    def observe_all(self, jobs: list[Job], step: int) -> None:
        """Append a row for each job: address, numbers, bytes of each, what to do, companion's address, slot."""
        words = np.array(jobs, np.int64)
        done = 0
        while (done := _observe_all(self._at, words.ctypes.data, len(jobs), done, step)) < len(jobs):
            self._make_room()

    def _make_room(self) -> None:
        self._ledger.put_aside(int(self._state[ROWS_USED]), int(self._state[CELLS_USED]))
        self._state[[ROWS_USED, CELLS_USED]] = 0

    def read(self) -> Rows:
        """All rows since the last `clear`."""
        self._make_room()
        return self._ledger.read()

    def clear(self) -> None:
        """Forget all rows."""
        self._make_room()
        self._ledger.clear()
