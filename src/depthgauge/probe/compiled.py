"""One pass over a tensor in memory: exponent histogram, moments and extremes, compiled for the processor by numba.

Most tensors of a small network hold a few thousand numbers, so that a call must cost well below a microsecond, and a
number well below a nanosecond. What decides it is the histogram: an increment of a counter in memory is a load, an
add and a store, and equal neighbours wait for each other. Hence

- codes: a vectorized loop turns each number into 7 bits: its binade below the largest one (31 of them), and the part
  of that binade in quarters of unequal length. The eighth bit flags what needs a closer look: powers of two,
  significands that start with seven ones, and whatever lies outside of the 31 binades;
- pairs: the codes of two neighbours together index one counter, so that two numbers cost one increment; the counters
  are added up along rows and columns when the tensor ends;
- flagged numbers, about one in a hundred, are classified one at a time.

Everything crosses the boundary as integers, addresses and lengths, because that is the cheapest call there is.
32-bit arithmetic is spelled `u32(...)` throughout: numba widens integers to 64 bits, which halves the vector length,
unless each result is narrowed again.
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

u8, u16, u32, u64 = np.uint8, np.uint16, np.uint32, np.uint64

# Words of the kernel's state. BASE: the exponent field of the codes' first binade, or -1 while there is none;
# PAIRED: pairs counted since the counters were last added up; LOW, HIGH: the range of cells touched.
ROWS_AT, ROWS_USED, CELLS_AT, CELLS_USED, CODES_AT, PAIRS_AT, TOTALS_AT, DENSE_AT, CHANGE_AT = range(9)
BASE, PAIRED, WIDEST, LOW, HIGH = range(9, 14)
STATE_WORDS = 14

BLOCK = 1024  # numbers: 4 KiB, so that the block and the counters stay in the first-level cache
CODES = 128
# Codes 4 to 127 are 31 binades of four parts; 1 to 3 stand for zero, too, in a pair of zeros; FLAG alone is a number
# outside of the 31 binades.
ZERO, FIRST, FLAG = 0, 4, 128
MOST_PAIRS = 65535 - BLOCK // 2  # counters have 16 bits: 32 KiB of them are as much as that cache holds

_OPTIONS: Any = {"cache": True, "error_model": "numpy", "boundscheck": False}
# Sums may be taken in any order, else they are not vectorized; the order is fixed at compilation, so that equal
# inputs give equal bits. Non-finite numbers never get there.
_REORDER = {"reassoc", "nsz", "contract"}

Word = Any  # an int64 inside of compiled code, an int where Python calls it
Function = TypeVar("Function", bound=Callable[..., Any])


# numba's own decorators carry no types.
def _compile(function: Function) -> Function:
    return cast("Function", njit(**_OPTIONS)(function))


def _compile_reordered(function: Function) -> Function:
    return cast("Function", njit(fastmath=_REORDER, **_OPTIONS)(function))


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
        arguments[0], ir.Constant(ir.IntType(1), 1)
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
        # The vectorized product of significands took the field of fractions as it stood.
        at(row, np.float64)[SUM_OF_LOG2] += np.log2(1 + fraction / 2.0**23) - np.log2(1 + (magnitude / 2.0**23))


@_compile
def _look_closer(state: Word, row: Word, bits: Any, code: Word) -> None:
    """Move a flagged number from the part of its binade that its code stands for to its true segment."""
    if code == ZERO:
        at(row, np.int64)[ZEROS] -= 1
        _classify32(state, row, bits)
        return
    exponent = np.int64((bits & u32(0x7FFFFFFF)) >> u32(23)) - 127
    _file(state, np.int64(bits & u32(0x7FFFFF)) << 29, exponent, 1)
    at(at(state, np.int64)[DENSE_AT], np.int64)[(exponent + 1074) * 16 + 1 + (code & 3)] -= 1


@_compile
def _add_up_pairs(state: Word, row: Word) -> None:
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
    dense = at(words[DENSE_AT], np.int64)
    zeros = at(row, np.int64)
    for code in range(ZERO, FIRST):
        zeros[ZEROS] += np.int64(totals[code])
    zeros[ZEROS] += np.int64(totals[CODES + ZERO])
    for code in range(FIRST, words[WIDEST] + 1):
        n = np.int64(totals[code]) + np.int64(totals[CODES + code])
        exponent = words[BASE] - (code - FIRST) // 4 - 127
        dense[(exponent + 1074) * 16 + 1 + (code & 3)] += n
    if words[WIDEST] >= FIRST:
        _touch(state, words[BASE] - (words[WIDEST] - FIRST) // 4 - 127, words[BASE] - 127)
    words[PAIRED] = 0
    words[WIDEST] = 0


@_compile_reordered
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


@_compile
def _block32(state: Word, row: Word, data: Word, n: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see _observe
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
        _block32_with_nonfinite(state, row, data, n)
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
    if field > words[BASE]:
        _add_up_pairs(state, row)
        # One binade of slack, as the next block often exceeds the first; 31 binades down end above the subnormals.
        words[BASE] = max(min(field + 1, 254), 31)
    elif words[PAIRED] > MOST_PAIRS:
        _add_up_pairs(state, row)
    words[WIDEST] = max(words[WIDEST], _encode32(words[CODES_AT], data, paired, words[BASE]))
    words[PAIRED] += paired >> 1
    _count_pairs(state, row, data, paired, ahead, beside)
    for i in range(paired, n):
        _classify32(state, row, bits[i])


@_compile
def _count_pairs(state: Word, row: Word, data: Word, paired: Word, ahead: Word, beside: Word) -> None:  # noqa: PLR0917 # see _observe
    words = at(state, np.int64)
    codes = at(words[CODES_AT], np.uint8)
    eights = at(words[CODES_AT], np.uint64)
    bits = at(data, np.uint32)
    for i in range(paired >> 3):
        flags = eights[i] & u64(0x8080808080808080)
        while flags:
            place = i * 8 + (np.int64(_trailing_zeros(flags)) >> 3)
            _look_closer(state, row, bits[place], np.int64(codes[place]) & (FLAG - 1))
            flags &= flags - u64(1)
    # Two codes of seven bits side by side, in place. Two zeros are what pairs of a rectified gradient are most often:
    # they take turns at four counters, as one would have to wait for its own last increment.
    twos = at(words[CODES_AT], np.uint16)
    for i in range(paired >> 1):
        two = u16(u16(twos[i] & u16(0x7F)) | u16(u16(twos[i] >> u16(1)) & u16(0x3F80)))
        twos[i] = u16(u16(i) & u16(3)) if two == u16(0) else two
    pairs = at(words[PAIRS_AT], np.uint16)
    for i in range(u64(paired) >> u64(3)):
        # The next block comes from memory while this loop is busy with counters: a line of 64 bytes for 16 numbers.
        _prefetch((beside if i & u64(1) else ahead) + np.int64(i >> u64(1)) * 64)
        first = i << u64(2)
        pairs[twos[first]] += u16(1)
        pairs[twos[first | u64(1)]] += u16(1)
        pairs[twos[first | u64(2)]] += u16(1)
        pairs[twos[first | u64(3)]] += u16(1)


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
def _subtract(kind: Any, change: Word, data: Word, earlier: Word, n: Word) -> None:
    difference, now, before = at(change, kind), at(data, kind), at(earlier, kind)
    for i in range(n):
        difference[i] = now[i] - before[i]


@_compile
def _copy(kind: Any, target: Word, source: Word, n: Word) -> None:
    to, of = at(target, kind), at(source, kind)
    for i in range(n):
        to[i] = of[i]


@_compile
def _finish(state: Word, row: Word) -> None:
    """Move the touched cells into the ledger and clear them."""
    words = at(state, np.int64)
    _add_up_pairs(state, row)
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
def _observe(  # noqa: PLR0917 # keywords cost as much as the call
    state: Word, data: Word, n: Word, width: Word, what: Word, companion: Word, slot: Word, step: Word, call: Word
) -> Word:
    """Append one row for n numbers of 4 or 8 bytes; 1 if the ledger has no room for it, else 0."""
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
    words[BASE], words[LOW], words[HIGH] = -1, 2000, -2000
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        source = data + start * width
        if what == OBSERVE_CHANGE:
            source = words[CHANGE_AT]
            if width == 4:
                _subtract(np.float32, source, data + start * width, companion + start * width, size)
            else:
                _subtract(np.float64, source, data + start * width, companion + start * width, size)
        if width == 4:
            after = (start + BLOCK) * 4
            _block32(state, row, source, size, data + after, (companion or data) + after)
        else:
            _block64(state, row, source, size)
        if what == OBSERVE_AND_KEEP:
            if width == 4:
                _copy(np.float32, companion + start * width, source, size)
            else:
                _copy(np.float64, companion + start * width, source, size)
    if row_words[NANS] + row_words[POSITIVE_INFINITIES] + row_words[NEGATIVE_INFINITIES] == n:
        row_numbers[MIN] = row_numbers[MAX] = np.nan
    _finish(state, row)
    return 0


@_compile
def _observe_all(state: Word, jobs: Word, n: Word, first: Word, step: Word) -> Word:
    """Observe job `first` and its followers of n jobs (six words each); the number of the first without room, or n."""
    words = at(jobs, np.int64)
    for job in range(first, n):
        data, numbers, width, what = words[job * 6], words[job * 6 + 1], words[job * 6 + 2], words[job * 6 + 3]
        if _observe(state, data, numbers, width, what, words[job * 6 + 4], words[job * 6 + 5], step, 0):
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
            CODES_AT: np.zeros(BLOCK, u8),
            PAIRS_AT: np.zeros(CODES * CODES, u16),
            TOTALS_AT: np.zeros(2 * CODES, u16),
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
        while _observe(self._at, tensor.data_ptr(), tensor.numel(), width, OBSERVE, 0, slot, step, call):
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
