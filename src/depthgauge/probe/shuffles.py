"""A histogram of exponents by looking up bytes in vector registers: for processors with AVX2, or ARM's NEON.

As in `planes`, a number becomes one set bit of 16, which says how many binades it lies below the largest one, repeated
if it lies above 3/4, 13/16 and 7/8 of its binade; how often each bit is set is counted in binary. These processors
shift 16-bit numbers slowly or keep fewer of them in a register. Hence

- exponents and fractions, eight bits each, go to vectors of bytes, and the bit is looked up, in a register of 16 bytes:
  32 numbers fill eight vectors, of two bytes for each of the four parts;
- the eight vectors are written to memory, in the first-level cache, and added up by themselves, since the digits of all
  of them are more than there are registers;
- where more than one in 16 numbers get no bit, the block and those that follow in the tensor are counted in a table.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthgauge.probe import blocks, lookup, window
from depthgauge.probe.binades import BLOCK, OPEN_AT, ask_for, inline, keep
from depthgauge.probe.blocks import Part, Word, at, compiled, compiled_for
from depthgauge.probe.lookup import BYTES
from depthgauge.probe.turns import even_places, halves_of, odd_places
from depthgauge.probe.vectors import (
    Vector,
    bits_as,
    bits_of,
    load,
    splat,
    store,
    where,
)
from depthgauge.probe.window import GROUP

u16, u32, u64 = np.uint16, np.uint32, np.uint64

# Words of the state.
PLANES_AT, DIGITS_AT, SIXTEENS_AT = range(window.NEXT_WORD, window.NEXT_WORD + 3)

GROUPS = BLOCK // GROUP  # of 16 vectors in each plane
PLANES = 8  # vectors that 32 numbers become
WIDTH = 32  # bytes of a vector
ROW = PLANES * WIDTH  # bytes of a digit
PLANE = GROUP  # bytes that a plane of a group has in memory: one a number
DIGITS = 8  # of how often a bit is set in one place, up to 255: 1 to 128; of all 32 places, five more

HALVES, INTEGERS = Vector("u16", 16), Vector("u32", 8)


@inline
def _magnitudes(data: Word) -> Any:
    """16 numbers 0, 8, 1, 9, ... without sign: 8 bits of exponent, 7 of the fraction, whether there is more; less 1.

    The 1 costs nothing, as it is the bit for whether there is more, and puts powers of two beside the last fractions.
    """
    left, right = load(data, HALVES), load(data + 32, HALVES)
    high = odd_places(left, right)
    return high + high + where(even_places(left, right) != 0, 0, splat(0xFFFF, HALVES))


@inline
def _place_of(place: Word) -> Word:
    """Which number a bit of an open word is: of 32, bytes and halves of the four vectors are in turns."""
    return (place & ~31) | ((place & 1) << 4) | ((place & 2) << 2) | ((place & 31) >> 2)


@inline
def _add(digit: Any, left: Any, right: Any) -> Any:
    """Add two vectors of one binary digit to a third, bit by bit: the digit, and what is carried to the next."""
    differ = left ^ right
    return differ ^ digit, left ^ (differ & (left ^ digit))


@inline
def _add_4(plane: Word, ones: Any, twos: Any) -> Any:
    ones, first = _add(ones, load(plane, BYTES), load(plane + WIDTH, BYTES))
    ones, second = _add(ones, load(plane + 2 * WIDTH, BYTES), load(plane + 3 * WIDTH, BYTES))
    twos, carry = _add(twos, first, second)
    return ones, twos, carry


@inline
def _add_8(plane: Word, ones: Any, twos: Any, fours: Any) -> Any:
    ones, twos, first = _add_4(plane, ones, twos)
    ones, twos, second = _add_4(plane + 4 * WIDTH, ones, twos)
    fours, carry = _add(fours, first, second)
    return ones, twos, fours, carry


@compiled
def _add_16(planes_at: Word, digits_at: Word, sixteens_at: Word) -> None:
    """Add the 16 vectors of each plane to its digits 1 to 8; their carries are the sixteens."""
    for plane in range(PLANES):
        source, digits = planes_at + plane * PLANE, digits_at + plane * WIDTH
        ones, twos = load(digits, BYTES), load(digits + ROW, BYTES)
        fours, eights = load(digits + 2 * ROW, BYTES), load(digits + 3 * ROW, BYTES)
        ones, twos, fours, first = _add_8(source, ones, twos, fours)
        ones, twos, fours, second = _add_8(source + 8 * WIDTH, ones, twos, fours)
        eights, carry = _add(eights, first, second)
        store(digits, ones)
        store(digits + ROW, twos)
        store(digits + 2 * ROW, fours)
        store(digits + 3 * ROW, eights)
        store(sixteens_at + plane * WIDTH, carry)


@compiled
def _add_sixteens(sixteens_at: Word, digits_at: Word) -> None:
    """Add the sixteens of eight groups: digits 16 to 128."""
    for plane in range(PLANES):
        source, digits = sixteens_at + plane * WIDTH, digits_at + 4 * ROW + plane * WIDTH
        d16, first = _add(load(source, BYTES), load(source + ROW, BYTES), load(source + 2 * ROW, BYTES))
        d16, second = _add(d16, load(source + 3 * ROW, BYTES), load(source + 4 * ROW, BYTES))
        d16, third = _add(d16, load(source + 5 * ROW, BYTES), load(source + 6 * ROW, BYTES))
        last = load(source + 7 * ROW, BYTES)
        fourth = d16 & last
        d32, carry = _add(first, second, third)
        more = d32 & fourth
        store(digits, d16 ^ last)
        store(digits + ROW, d32 ^ fourth)
        store(digits + 2 * ROW, carry ^ more)
        store(digits + 3 * ROW, carry & more)


def _halving(size: int) -> Part:
    """The function that adds up places of half the vectors' `size`-byte parts, for all digits of two vectors at a time.

    It reads `digits` digits of `vectors` vectors, writes one digit more of half as many, and may do so in place.
    """
    left_halves, right_halves = halves_of(size)

    @compiled_for(f"shuffles.{size}")
    def halve(digits_at: Word, vectors: Word, digits: Word) -> None:
        for pair in range(vectors >> 1):
            carry = splat(0, BYTES)
            for digit in range(digits):
                source = digits_at + digit * ROW + pair * 2 * WIDTH
                first, second = load(source, BYTES), load(source + WIDTH, BYTES)
                total, carry = _add(left_halves(first, second), right_halves(first, second), carry)
                store(digits_at + digit * ROW + pair * WIDTH, total)
            store(digits_at + digits * ROW + pair * WIDTH, carry)

    return halve


_halve_32, _halve_16, _halve_8 = _halving(32), _halving(16), _halving(8)


@compiled
def _halve_last(digits_at: Word, digits: Word, bits: Word) -> None:
    """Add places `bits` apart up inside of one vector's 32-bit parts."""
    carry = splat(0, INTEGERS)
    for digit in range(digits):
        value = load(digits_at + digit * ROW, INTEGERS)
        total, carry = _add(value, value >> bits, carry)
        store(digits_at + digit * ROW, total)
    store(digits_at + digits * ROW, carry)


@compiled
def _count_columns(digits_at: Word, counts_at: Word) -> None:
    """In how many places each bit of each plane is set, as 64 counts; the digits are written over."""
    _halve_32(digits_at, 8, DIGITS)
    _halve_16(digits_at, 4, DIGITS + 1)
    _halve_8(digits_at, 2, DIGITS + 2)
    _halve_last(digits_at, DIGITS + 3, 16)
    _halve_last(digits_at, DIGITS + 4, 8)
    counts = at(counts_at, np.uint16)
    for i in range(64):
        counts[i] = u16(0)
    for digit in range(DIGITS + 5):
        lowest = at(digits_at + digit * ROW, np.uint32)
        for plane in range(PLANES):
            bits = lowest[plane]
            for bit in range(8):
                counts[plane * 8 + bit] += u16(((bits >> u32(bit)) & u32(1)) << u32(digit))


def counts_by(look_up: Any) -> Part:
    """The function that counts the numbers in a window, by a way of looking up."""
    one_bit = lookup.one_bit_of_16(look_up)

    @inline
    def expand(data: Word, field: Word, open_at: Word, planes_at: Word) -> None:
        """32 numbers as set bits; those without one stay open, but for zeros."""
        first, second = _magnitudes(data), _magnitudes(data + 64)
        exponents = odd_places(bits_as(first, BYTES), bits_as(second, BYTES))
        fractions = even_places(bits_as(first, BYTES), bits_as(second, BYTES))
        # From 253 on are the fractions from 254 of 256 on, and that of powers of two: 255, as is zero's exponent.
        below = where(fractions >= 253, splat(255, BYTES), splat(field, BYTES) - exponents)
        low, high, uncounted = one_bit(below)
        at(open_at, np.uint32)[0] = bits_of(uncounted & (exponents != 255))
        store(planes_at, low)
        store(planes_at + PLANE, high)
        # The edges of formats.EDGES below 127/128, in units of 1/256, less 1.
        part = fractions >= 191
        store(planes_at + 2 * PLANE, where(part, low, 0))
        store(planes_at + 3 * PLANE, where(part, high, 0))
        part = fractions > 207
        store(planes_at + 4 * PLANE, where(part, low, 0))
        store(planes_at + 5 * PLANE, where(part, high, 0))
        part = fractions >= 223
        store(planes_at + 6 * PLANE, where(part, low, 0))
        store(planes_at + 7 * PLANE, where(part, high, 0))

    @compiled_for(f"shuffles.{look_up.__name__}")
    def count_window(state: Word, data: Word, n: Word, field: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
        """Count n numbers; see `window.block_functions`."""
        words = at(state, np.int64)
        planes_at, sixteens_at, open_at = words[PLANES_AT], words[SIXTEENS_AT], words[OPEN_AT]
        digits = at(words[DIGITS_AT], np.uint64)
        for i in range(4 * ROW >> 3):
            digits[i] = u64(0)
        for group in range(n // GROUP):
            for i in range(0, GROUP, 32):
                ask_for(ahead + i * 4, 128)
                if beside:
                    ask_for(beside + i * 4, 128)
                expand(data + i * 4, field, open_at + (i >> 3), planes_at + i)
            _add_16(planes_at, words[DIGITS_AT], sixteens_at + group * ROW)
            data += 4 * GROUP
            ahead += 4 * GROUP
            beside += 4 * GROUP if beside else 0
            open_at += GROUP >> 3
        missing = at(sixteens_at + (n // GROUP) * ROW, np.uint64)
        for i in range((GROUPS - n // GROUP) * ROW >> 3):
            missing[i] = u64(0)
        _add_sixteens(sixteens_at, words[DIGITS_AT])
        _count_columns(words[DIGITS_AT], words[window.COUNTS_AT])

    return count_window


def _buffers() -> dict[int, NDArray[Any]]:
    return {
        **window.buffers(),
        PLANES_AT: np.zeros(PLANES * PLANE, np.uint8),
        DIGITS_AT: np.zeros((DIGITS + 5) * ROW, np.uint8),
        SIXTEENS_AT: np.zeros(GROUPS * ROW, np.uint8),
    }


_block32, _finish = window.block_functions("shuffles", 16, 3 * GROUP, counts_by(lookup.CHOSEN), _place_of)
observe, observe_all = blocks.observers("shuffles", _block32, _finish, keep, BLOCK)
METHOD = blocks.Method(*blocks.entry_points(sys.modules[__name__]), BLOCK, _buffers, SIXTEENS_AT + 1)
