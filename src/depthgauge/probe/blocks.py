"""Steps that every compiled kernel shares: it reads a tensor in memory block by block and appends a row to the ledger.

A method of counting (`planes`, `pairs`) brings the part that decides the speed, the histogram of float32, and its own
two functions that Python calls; numbers that need a closer look, float64, and the ledger are dealt with here.

Everything crosses the boundary as integers, addresses and lengths, because that is the cheapest call there is.
32-bit arithmetic is spelled `u32(...)` throughout: numba widens integers to 64 bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from depthgauge.probe.machine_code import Forgiving, folder, kept_in
from depthgauge.probe.rows import (
    CELLS,
    CELLS_A_BLOCK,
    COUNT,
    COUNT_BITS,
    KEYS,
    MAX,
    MIN,
    MOMENT,
    NANS,
    NEGATIVE_INFINITIES,
    OBSERVE,
    OBSERVE_AND_KEEP,
    OBSERVE_CHANGE,
    POSITIVE_INFINITIES,
    ROWS_A_BLOCK,
    SHRINK,
    SHRINK_ROOT,
    SLOT,
    SQUARES_SHRUNK,
    STEP,
    SUM,
    SUM_OF_LOG2,
    SUM_OF_SQUARES,
    SUM_SHRUNK,
    WORDS,
    ZEROS,
)

u32, u64 = np.uint32, np.uint64

SOME_SIZE = 512  # numbers: fewer are there before they have been asked for

# Words of a kernel's state, before those that its method adds. LOW, HIGH: the range of cells touched. JOB: the first
# of the words of a job (`rows.Job`) that is none of a list.
ROWS_AT, ROWS_USED, CELLS_AT, CELLS_USED, DENSE_AT, CHANGE_AT, LOW, HIGH, JOB = range(9)
JOB_WORDS = 6
COMMON_WORDS = JOB + JOB_WORDS

OPTIONS: Any = {"error_model": "numpy", "boundscheck": False}

Word = Any  # an int64 inside of compiled code, an int where Python calls it
Part = Any  # a compiled function of a method
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Method:
    """A way of counting.

    Attributes:
        observe: appends one row; see `observers`.
        observe_all: appends a row for each job; see `observers`.
        block: numbers that are read at once.
        buffers: makes what the method needs in memory, by word of the state that holds the address.
        words: words of the state.
    """

    observe: Callable[..., int]
    observe_all: Callable[..., int]
    block: int
    buffers: Callable[[], dict[int, NDArray[Any]]]
    words: int


def digest_of(folder: Path) -> int:
    """A number of 63 bits that changes with any of a folder's modules."""
    sources = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    return int.from_bytes(hashlib.sha256(sources).digest()[:8], "big") >> 1


# numba keeps machine code on disk as long as the file of the function that it was compiled from stays as it is, but
# that code has the functions of other files in it. Hence only what Python calls is kept, and this number is part of
# what numba finds it by: a variable of the function's closure.
SOURCES = digest_of(Path(__file__).parent)
_FOLDER = folder()


# numba's own decorators carry no types.
def compiled(function: Function) -> Function:
    """Compile for calls by other compiled functions."""
    return cast("Function", njit(**OPTIONS)(function))


def compiled_for(method: str) -> Callable[[Function], Function]:
    """Compile a function that each method has in a form of its own, under a name of its own.

    numba's symbol of a function is its module, its qualified name, and how many functions the process compiled before.
    Two methods that two processes compiled and kept have the same symbols for different code where only the closure
    differs; a process that loads both would call one in the place of the other.
    """

    def compile_named(function: Function) -> Function:
        function.__qualname__ = f"{method}.{function.__qualname__}"
        return compiled(function)

    return compile_named


def entry_point(function: Function, **options: Any) -> Function:
    """Compile for calls by Python, and keep the machine code on disk; the function's closure must hold `SOURCES`."""
    with kept_in(_FOLDER) as keep:
        dispatcher: Any = njit(cache=keep, **OPTIONS, **options)(function)
    dispatcher._cache = Forgiving(dispatcher._cache, _FOLDER)
    return cast("Function", dispatcher)


def lowering(function: Callable[..., Any]) -> Any:
    """Compile to the LLVM code that the function writes."""
    return intrinsic(function)


@lowering
def at(_context: Any, address: Any, dtype: Any) -> Any:
    """The memory at an address, as numbers of that type."""
    del address
    pointer: Any = types.CPointer
    signature = pointer(dtype.dtype)(types.int64, dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, generate


@lowering
def as_float32(_context: Any, bits: Any) -> Any:
    """The float32 of these 32 bits."""
    del bits
    return types.float32(types.uint32), lambda _c, builder, _s, arguments: builder.bitcast(arguments[0], ir.FloatType())


@lowering
def trailing_zeros(_context: Any, bits: Any) -> Any:
    """Count the zeros that follow the last set bit; 64 if no bit is set."""
    del bits
    return types.uint64(types.uint64), lambda _c, builder, _s, arguments: builder.cttz(
        arguments[0], ir.Constant(ir.IntType(1), 0)
    )


@lowering
def prefetch(_context: Any, address: Any) -> Any:
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


@compiled
def put(state: Word, fraction: Word, exponent: Word, count: Word) -> Word:
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
    touch(state, exponent, exponent)
    return segment


@compiled
def touch(state: Word, low: Word, high: Word) -> None:
    """Widen the range of exponents whose cells are looked at when the row ends."""
    words = at(state, np.int64)
    words[LOW] = min(words[LOW], low)
    words[HIGH] = max(words[HIGH], high)


@compiled
def classify32(state: Word, row: Word, bits: Any) -> None:
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
        put(state, fraction << 29, field - 127, 1)
    else:
        exponent = -127
        while not fraction & 0x800000:
            fraction <<= 1
            exponent -= 1
        exponent += 1
        fraction &= 0x7FFFFF
        put(state, fraction << 29, exponent, 1)
        # The product of significands took the field of fractions as it stood.
        at(row, np.float64)[SUM_OF_LOG2] += np.log2(1 + fraction / 2.0**23) - np.log2(1 + (magnitude / 2.0**23))


@compiled
def block32_with_nonfinite(state: Word, row: Word, data: Word, n: Word) -> None:
    """A block one number at a time; sums and extremes are those of the finite numbers."""
    bits = at(data, np.uint32)
    x = at(data, np.float32)
    row_numbers = at(row, np.float64)
    for i in range(n):
        classify32(state, row, bits[i])
        if bits[i] & u32(0x7F800000) != u32(0x7F800000):
            value = np.float64(x[i])
            row_numbers[SUM] += value
            row_numbers[SUM_OF_SQUARES] += value * value
            row_numbers[MIN] = min(row_numbers[MIN], value)
            row_numbers[MAX] = max(row_numbers[MAX], value)
            row_numbers[SUM_OF_LOG2] += np.log2(1 + np.float64(bits[i] & u32(0x7FFFFF)) / 2.0**23)


@compiled
def _add64(row: Word, value: Word) -> None:
    """Add to the sums of a row, which are shrunk once before they overflow."""
    words, numbers = at(row, np.int64), at(row, np.float64)
    small = 2.0**-SHRINK
    total = numbers[SUM] + (value * small if words[SUM_SHRUNK] else value)
    if np.isinf(total):
        words[SUM_SHRUNK] = SHRINK
        total = numbers[SUM] * small + value * small
    numbers[SUM] = total
    small = 2.0**-SHRINK_ROOT
    root = value * small if words[SQUARES_SHRUNK] else value
    total = numbers[SUM_OF_SQUARES] + root * root
    if np.isinf(total):
        words[SQUARES_SHRUNK] = 2 * SHRINK_ROOT
        total = numbers[SUM_OF_SQUARES] * small * small + value * small * (value * small)
    numbers[SUM_OF_SQUARES] = total


@compiled
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
        _add64(row, value)
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
        put(state, fraction, exponent, 1)
        row_numbers[SUM_OF_LOG2] += np.log2(1 + fraction / 2.0**52)


@compiled
def _subtract(width: Word, change: Word, data: Word, earlier: Word, n: Word) -> None:
    if width == 4:
        difference, now, before = at(change, np.float32), at(data, np.float32), at(earlier, np.float32)
        for i in range(n):
            difference[i] = now[i] - before[i]
    else:
        _subtract64(change, data, earlier, n)


@compiled
def _subtract64(change: Word, data: Word, earlier: Word, n: Word) -> None:
    difference, now, before = at(change, np.float64), at(data, np.float64), at(earlier, np.float64)
    for i in range(n):
        difference[i] = now[i] - before[i]


@compiled
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


def observers(method: str, block32: Part, finish: Part, keep: Part, block: int) -> tuple[Part, Part]:
    """The two functions of a method that Python calls, from its parts; an `entry_point` is to call them.

    Args:
        method: its name, unlike any other's.
        block32: `(state, row, data, n, ahead, beside)` counts n <= `block` numbers of float32, and may ask for the
            memory of what is needed next at one or two addresses, or 0.
        finish: `(state, row)` brings into cells what is counted elsewhere, when a row ends.
        keep: `(target, source, nbytes)` copies numbers that are read again after the optimizer's step.
        block: numbers that are read at once.
    """
    append = _appender(method, block32, finish, keep, block)

    @compiled_for(method)
    def observe(state: Word, data: Word, n: Word, width: Word, slot: Word, step: Word, moment: Word) -> Word:  # noqa: PLR0917 # keywords cost as much as the call
        """Append one row for n numbers of 4 or 8 bytes; 1 if the ledger has no room for it, else 0."""
        words = at(state, np.int64)
        words[JOB], words[JOB + 1], words[JOB + 2] = data, n, width
        words[JOB + 3], words[JOB + 4], words[JOB + 5] = OBSERVE, 0, slot
        return append(state, state + JOB * 8, step, moment, 0, 0)

    @compiled_for(method)
    def observe_all(state: Word, jobs: Word, n: Word, first: Word, step: Word, moment: Word) -> Word:  # noqa: PLR0917 # see observe
        """Observe job `first` and its followers of n (six words each); the number of the first without room, or n."""
        words = at(jobs, np.int64)
        then_at = first * JOB_WORDS
        for job in range(first, n):
            at_job = job * JOB_WORDS
            # What is asked for meanwhile is the next tensor of some size.
            while then_at <= at_job or (then_at < n * JOB_WORDS and words[then_at + 1] < SOME_SIZE):
                then_at += JOB_WORDS
            then, then_beside = 0, 0
            if then_at < n * JOB_WORDS:
                then = words[then_at]
                if words[then_at + 3] == OBSERVE_CHANGE:
                    then_beside = words[then_at + 4]
            if append(state, jobs + at_job * 8, step, moment, then, then_beside):
                return job
        return n

    return observe, observe_all


def _appender(method: str, block32: Part, finish: Part, keep: Part, block: int) -> Part:
    @compiled_for(method)
    def append(state: Word, job: Word, step: Word, moment: Word, then: Word, then_beside: Word) -> Word:  # noqa: PLR0917 # see observers
        """Append one row for a job's numbers; 1 if the ledger has no room for it, else 0.

        `then` and `then_beside` are addresses of what is read next, and of its companion, or 0.
        """
        words = at(state, np.int64)
        if words[ROWS_USED] == ROWS_A_BLOCK or CELLS_A_BLOCK - words[CELLS_USED] < KEYS:
            return 1
        fields = at(job, np.int64)
        data, n, width, what, companion, slot = fields[0], fields[1], fields[2], fields[3], fields[4], fields[5]
        row = words[ROWS_AT] + words[ROWS_USED] * WORDS * 8
        row_words = at(row, np.int64)
        for i in range(WORDS):
            row_words[i] = 0
        row_words[SLOT], row_words[STEP], row_words[MOMENT], row_words[COUNT] = slot, step, moment, n
        row_numbers = at(row, np.float64)
        row_numbers[MIN], row_numbers[MAX] = np.inf, -np.inf
        words[LOW], words[HIGH] = 2000, -2000
        for start in range(0, n, block):
            size = min(block, n - start)
            source, beside = data + start * width, companion + start * width
            if what == OBSERVE_CHANGE:
                _subtract(width, words[CHANGE_AT], source, beside, size)
                source = words[CHANGE_AT]
            if width == 8:
                _block64(state, row, source, size)
            elif start + block >= n:
                block32(state, row, source, size, then, then_beside)
            else:
                after = data + (start + block) * 4
                block32(state, row, source, size, after, beside + block * 4 if what == OBSERVE_CHANGE else 0)
            if what == OBSERVE_AND_KEEP:
                keep(beside, source, size * width)
        if row_words[NANS] + row_words[POSITIVE_INFINITIES] + row_words[NEGATIVE_INFINITIES] == n:
            row_numbers[MIN] = row_numbers[MAX] = np.nan
        finish(state, row)
        _finish(state, row)
        return 0

    return append


def entry_points(method: ModuleType, sources: int = SOURCES) -> tuple[Callable[..., int], Callable[..., int]]:
    """The two functions of a method that Python calls, from its module, where `observe` and `observe_all` are compiled.

    Both variables of the closure are part of what numba finds machine code by on disk: a function in their place would
    not do, since it has another identity in each process.
    """

    @entry_point
    def observe(state: Word, data: Word, n: Word, width: Word, slot: Word, step: Word, moment: Word) -> Word:  # noqa: PLR0917 # see observers
        _ = sources
        return method.observe(state, data, n, width, slot, step, moment)

    @entry_point
    def observe_all(state: Word, jobs: Word, n: Word, first: Word, step: Word, moment: Word) -> Word:  # noqa: PLR0917 # see observers
        _ = sources
        return method.observe_all(state, jobs, n, first, step, moment)

    return observe, observe_all


def entry_without_lock(method: ModuleType, sources: int = SOURCES) -> Any:
    """A method's `observe`, from its module, for a thread that lets others have Python's lock meanwhile.

    Whoever calls it sees to it that nobody else writes to that state.
    """

    def observe_without_lock(  # noqa: PLR0917 # see observers
        state: Word, data: Word, n: Word, width: Word, slot: Word, step: Word, moment: Word
    ) -> Word:
        _ = sources
        return method.observe(state, data, n, width, slot, step, moment)

    return entry_point(observe_without_lock, nogil=True)


@compiled
def copy(target: Word, source: Word, first: Word, last: Word) -> None:
    """Copy 32-bit words `first` to `last`, this one excluded."""
    to, of = at(target, u32), at(source, u32)
    for i in range(first, last):
        to[i] = of[i]
