"""A histogram of exponents by counting bits in vector registers: for processors with AVX-512.

What decides a kernel's speed is the histogram: an increment of a counter in memory is a load, an add and a store for
each number. There are none here:

- a number becomes one set bit: bit k of 16 says that it lies k binades below the largest one. Three more words repeat
  that bit if the number lies above 3/4, 13/16 and 7/8 of its binade;
- 32 numbers fill the words of four vectors, and how often each bit is set over many vectors is counted in binary, all
  bits at once, by the logic of a full adder: vectors for the digits 1, 2, 4, ... (a positional population count, as in
  Klarqvist, Mula, Lemire: Efficient computation of positional population counts using SIMD instructions, 2019);
- a number stays open if no bit stands for it: powers of two, significands from 127/128 of a binade on, about one in a
  hundred together, and whatever lies below the 16 binades. These are classified one at a time; where more than one in
  16 is open, the block and those that follow in the tensor are counted in a table.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from depthgauge.probe import blocks, window
from depthgauge.probe.binades import BINADES, BLOCK, OPEN_AT, ask_for, inline, keep
from depthgauge.probe.blocks import Word, at, compiled
from depthgauge.probe.vectors import (
    HALVES,
    HALVES_OF_32,
    PLANES,
    bits_of,
    column_counts,
    load,
    low_and_high,
    majority,
    side_by_side,
    splat,
    store,
    where,
    with_sticky_bit,
)


@inline
def _planes(data: Word, field: Word, open_at: Word) -> Any:
    """32 numbers as set bits; those without one stay open, but for zeros."""
    low, high = low_and_high(load(data, HALVES))
    # Without the sign: 8 bits of exponent, 7 of the fraction, and whether there is more of it.
    magnitude = with_sticky_bit(high + high, low)
    fraction = magnitude & 255
    below = splat(field, HALVES_OF_32) - (magnitude >> 8)
    counted = (below < BINADES) & (fraction - 1 < 253)  # neither powers of two nor from 254 of 256 on
    binade = where(counted, splat(1, HALVES_OF_32) << below, 0)
    at(open_at, np.uint32)[0] = bits_of((magnitude != 0) & ((below >= BINADES) | (fraction - 1 >= 253)))
    # The edges of formats.EDGES below 127/128, in units of 1/256.
    return side_by_side(
        binade, where(fraction >= 192, binade, 0), where(fraction > 208, binade, 0), where(fraction >= 224, binade, 0)
    )


@inline
def _add(digit: Any, left: Any, right: Any) -> Any:
    """Add two vectors of one binary digit to a third, bit by bit: the digit, and what is carried to the next."""
    return digit ^ left ^ right, majority(digit, left, right)


@inline
def _add_2(data: Word, field: Word, open_at: Word, ones: Any) -> Any:
    return _add(ones, _planes(data, field, open_at), _planes(data + 128, field, open_at + 4))


@inline
def _add_4(data: Word, field: Word, open_at: Word, ones: Any, twos: Any) -> Any:
    ones, first = _add_2(data, field, open_at, ones)
    ones, second = _add_2(data + 256, field, open_at + 8, ones)
    twos, carry = _add(twos, first, second)
    return ones, twos, carry


@inline
def _add_8(data: Word, field: Word, open_at: Word, ones: Any, twos: Any, fours: Any) -> Any:  # noqa: PLR0917 # see blocks.observers
    ones, twos, first = _add_4(data, field, open_at, ones, twos)
    ones, twos, second = _add_4(data + 512, field, open_at + 16, ones, twos)
    fours, carry = _add(fours, first, second)
    return ones, twos, fours, carry


@compiled
def _count_window(state: Word, data: Word, n: Word, field: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see blocks.observers
    """Count n numbers; see `window.block_functions`. Their digits are 1 to 128."""
    words = at(state, np.int64)
    open_at = words[OPEN_AT]
    ones = twos = fours = eights = c16 = c32 = c64 = c128 = splat(0, PLANES)
    for _ in range(0, n, window.GROUP):
        ask_for(ahead, 2 * window.GROUP)
        if beside:
            ask_for(beside, 2 * window.GROUP)
        ones, twos, fours, first = _add_8(data, field, open_at, ones, twos, fours)
        ask_for(ahead + 2 * window.GROUP, 2 * window.GROUP)
        if beside:
            ask_for(beside + 2 * window.GROUP, 2 * window.GROUP)
            beside += 4 * window.GROUP
        ones, twos, fours, second = _add_8(data + 1024, field, open_at + 32, ones, twos, fours)
        eights, carry = _add(eights, first, second)
        c16, carry = c16 ^ carry, c16 & carry
        c32, carry = c32 ^ carry, c32 & carry
        c64, carry = c64 ^ carry, c64 & carry
        c128 = c128 ^ carry
        data += 4 * window.GROUP
        ahead += 4 * window.GROUP
        open_at += window.GROUP // 8
    store(words[window.COUNTS_AT], column_counts((ones, twos, fours, eights, c16, c32, c64, c128)))


@inline
def _powers(data: Word, field: Word, open_at: Word) -> Any:
    """32 numbers as set bits where they are powers of two within the window; these are open no more."""
    low, high = low_and_high(load(data, HALVES))
    magnitude = with_sticky_bit(high + high, low)
    below = splat(field, HALVES_OF_32) - (magnitude >> 8)
    counted = (below < BINADES) & ((magnitude & 255) < 1)
    at(open_at, np.uint32)[0] &= ~bits_of(counted)
    return where(counted, splat(1, HALVES_OF_32) << below, 0)


@inline
def _powers_of_128(data: Word, field: Word, open_at: Word) -> Any:
    """The same of 128 numbers, a plane for each 32."""
    return side_by_side(
        _powers(data, field, open_at),
        _powers(data + 128, field, open_at + 4),
        _powers(data + 256, field, open_at + 8),
        _powers(data + 384, field, open_at + 12),
    )


@compiled
def _count_powers(state: Word, data: Word, n: Word, field: Word) -> None:
    """Count powers of two among n numbers; see `window.block_functions`. Their digits are 1 to 32."""
    words = at(state, np.int64)
    open_at = words[OPEN_AT]
    ones = twos = fours = eights = c16 = c32 = splat(0, PLANES)
    for _ in range(0, n, window.GROUP):
        left, right = _powers_of_128(data, field, open_at), _powers_of_128(data + 512, field, open_at + 16)
        ones, first = _add(ones, left, right)
        left, right = _powers_of_128(data + 1024, field, open_at + 32), _powers_of_128(data + 1536, field, open_at + 48)
        ones, second = _add(ones, left, right)
        twos, carry = _add(twos, first, second)
        fours, carry = fours ^ carry, fours & carry
        eights, carry = eights ^ carry, eights & carry
        c16, carry = c16 ^ carry, c16 & carry
        c32 = c32 ^ carry
        data += 4 * window.GROUP
        open_at += window.GROUP // 8
    store(words[window.POWERS_AT], column_counts((ones, twos, fours, eights, c16, c32)))


_block32, _finish = window.block_functions(
    "planes", 32, window.GROUP, _count_window, inline(lambda place: place), _count_powers
)
observe, observe_all = blocks.observers("planes", _block32, _finish, keep, BLOCK)
METHOD = blocks.Method(*blocks.entry_points(sys.modules[__name__]), BLOCK, window.buffers, window.NEXT_WORD)
