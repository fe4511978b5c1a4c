"""Sums of many columns at once, every result of an addition rounded to a number format.

    values = torch.randn(4096, 256)                                        # 256 sums of 4,096 numbers
    sums = partial_sums(values, "bfloat16", "naive", lengths=(256, 4096))    # shape (2, 256)
    error = sums.double() - exact_sums(values, (256, 4096))

An addition is done in the dtype of the values and then rounded once to the format: exactly the format's own addition
where the dtype has more than twice the format's bits, so float32 for the 16-bit formats and float64 for float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from depthgauge import formats
from depthgauge.formats.arguments import check_dense, kind, whole
from depthgauge.theory.summation import Method

Formula = Literal["two-pass", "one-pass", "welford"]
FORMULAS: tuple[Formula, ...] = ("two-pass", "one-pass", "welford")
METHODS: tuple[Method, ...] = ("naive", "pairwise", "blocked", "compensated", "stochastic")


def partial_sums(
    values: Tensor, fmt: str, method: Method, *, lengths: Sequence[int], block: int = 32,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Sums of the first `lengths` rows of every column.

    Args:
        values: shape (n, columns), float32 or float64; in the format, or products of two numbers in it.
        fmt: format that every addition's result is rounded to.
        method: `naive`: from the first row to the last; `stochastic`: likewise, rounded stochastically; `pairwise`:
            neighbours, then their sums; `blocked`: each block naively, then their sums; `compensated`: Kahan's, in
            four rounded operations a row.
        lengths: ascending, at most n; powers of two for `pairwise`, multiples of the block beyond it for `blocked`.
        block: rows of a block.
        generator: of the stochastic roundings.

    Returns:
        Shape (len(lengths), columns), in the values' dtype.

    Raises:
        ValueError: unknown format or method, stochastic rounding without a generator, values of another shape, a format
            of more bits than the values', or lengths that the method cannot have.
        TypeError: values that are no tensor of float32 or float64.
    """
    _check_values(values, fmt)
    lengths, block = _checked_lengths(lengths, len(values)), whole("block", block)
    if method not in METHODS:
        raise ValueError(f"no method of summation is called {method!r}: there are {', '.join(METHODS)}")
    if method == "stochastic" and generator is None:
        raise ValueError("stochastic rounding needs a generator")
    if method == "pairwise":
        return torch.stack([_halved(values[:n], fmt) for n in lengths])
    if method == "blocked":
        return torch.stack([_blocked(values[:n], fmt, block) for n in lengths])
    if method == "compensated":
        return _compensated(values, fmt, lengths)
    return _in_order(values, fmt, lengths, generator if method == "stochastic" else None)


def variances(values: Tensor, fmt: str, formula: Formula) -> Tensor:
    """Variances (of n, not n - 1) of every column, every result of an operation rounded to the format.

    Args:
        values: shape (n, columns), float32, in the format.
        fmt: format, at most float32.
        formula: `two-pass`: mean of the squared deviations from the mean; `one-pass`: mean of the squares minus the
            squared mean, both with pairwise sums of a power of two of rows; `welford`: mean and sum of squared
            deviations, both updated row by row.

    Returns:
        Shape (columns,), in the values' dtype; the one-pass formula can give negative variances.

    Raises:
        ValueError: unknown format or formula, values of another shape, a format of more bits than the values', or rows
            whose number is no power of two, but for `welford`.
        TypeError: values that are no tensor of float32 or float64.

    Sources: Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (1983); Welford, "Note on a method
    for calculating corrected sums of squares and products" (1962).
    """
    _check_values(values, fmt)
    if formula not in FORMULAS:
        raise ValueError(f"no formula of a variance is called {formula!r}: there are {', '.join(FORMULAS)}")
    n = len(values)

    def to(x: Tensor) -> Tensor:
        return formats.round(x, fmt)

    def mean(x: Tensor) -> Tensor:
        return to(_halved(x, fmt) / n)

    if formula == "two-pass":
        return mean(to(to(values - mean(values)).square()))
    if formula == "one-pass":
        return to(mean(to(values.square())) - to(mean(values).square()))
    middle, squares = values[0], torch.zeros_like(values[0])
    for k, row in enumerate(values[1:], 2):
        off = to(row - middle)
        middle = to(middle + to(off / k))
        squares = to(squares + to(off * to(row - middle)))
    return to(squares / n)


def exact_sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same sums in float64, shape (len(lengths), columns); errors as in `partial_sums`."""
    _check_values(values, "float16")
    lengths = _checked_lengths(lengths, len(values))
    parts = [values[start:stop].sum(0, dtype=torch.float64) for start, stop in pairwise((0, *lengths))]
    return torch.stack(parts).cumsum(0)


def _check_values(values: Tensor, fmt: str) -> None:
    """Refuse what is no matrix of numbers that hold the format."""
    if not isinstance(values, Tensor):
        raise TypeError(f"values is {kind(values)}, where a tensor of shape (n, columns) was expected")
    check_dense("values", values)
    if values.dtype not in {torch.float32, torch.float64}:
        raise TypeError(f"values are of {values.dtype}, where float32 or float64 was expected")
    if values.dim() != 2 or not len(values):
        shape = tuple(values.shape)
        raise ValueError(f"values are of the shape {shape}, where (n, columns) was expected, with a row at least")
    known = formats.elementwise(fmt)
    if known.epsilon < torch.finfo(values.dtype).eps:
        raise ValueError(f"{known.name} has more bits than {values.dtype}, in which the values are added")


def _checked_lengths(lengths: Sequence[int], rows: int) -> tuple[int, ...]:
    try:
        found = tuple(whole("a length", length) for length in lengths)
    except (TypeError, ValueError):
        found = ()
    if not found or list(found) != sorted(found) or found[-1] > rows:
        raise ValueError(
            f"lengths is {lengths!r}, where ascending whole numbers from 1 to {rows}, the rows there are, were expected"
        )
    return found


def _in_order(values: Tensor, fmt: str, lengths: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    total, found = formats.round(values[0], fmt), []
    for start, stop in pairwise((1, *lengths)):
        for row in values[start:stop]:
            total = formats.round(total + row, fmt, stochastic=generator)
        found.append(total)
    return torch.stack(found)


def _halved(values: Tensor, fmt: str) -> Tensor:
    while len(values) > 1:
        if len(values) % 2:
            raise ValueError(f"a pairwise sum takes a power of two, here it has {len(values)} rows left")
        values = formats.round(values[::2] + values[1::2], fmt)
    return formats.round(values[0], fmt)


def _blocked(values: Tensor, fmt: str, block: int) -> Tensor:
    n, columns = values.shape
    if n <= block:
        return _in_order(values, fmt, (n,))[0]
    if n % block:
        raise ValueError(f"{n} rows are no multiple of the block, {block}")
    by_block = values.reshape(n // block, block, columns).transpose(0, 1).reshape(block, -1)
    return _in_order(_in_order(by_block, fmt, (block,))[0].reshape(-1, columns), fmt, (n // block,))[0]


def _compensated(values: Tensor, fmt: str, lengths: Sequence[int]) -> Tensor:
    """Kahan's: what the last addition lost is taken off the next row. Its first step is exact."""
    total, lost, found = formats.round(values[0], fmt), torch.zeros_like(values[0]), []
    for start, stop in pairwise((1, *lengths)):
        for row in values[start:stop]:
            wanted = formats.round(row - lost, fmt)
            following = formats.round(total + wanted, fmt)
            lost = formats.round(formats.round(following - total, fmt) - wanted, fmt)
            total = following
        found.append(total)
    return torch.stack(found)
