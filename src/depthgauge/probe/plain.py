"""The same rows by numpy, for tensors that no compiled kernel reads: correct, and about fifty times slower."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge.formats import ExponentHistogram, cell_key
from depthgauge.probe.rows import (
    CELLS,
    COUNT,
    COUNT_BITS,
    MAX,
    MIN,
    MOMENT,
    NANS,
    NEGATIVE_INFINITIES,
    POSITIVE_INFINITIES,
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
    Ledger,
    Rows,
)
from depthgauge.probe.tensors import numbers_of


class PlainKernel:
    """Appends rows to a ledger; copies a tensor that lies on a device to main memory and waits for it."""

    native: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    def __init__(self) -> None:
        self._ledger = Ledger()

    @classmethod
    def holding(cls, rows: Rows) -> PlainKernel:
        """A kernel that has appended these rows."""
        kernel = cls()
        kernel._ledger.put_back(rows)
        return kernel

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row for a tensor of any kind; integers leave none.

        Raises:
            Unreadable: the tensor's numbers cannot be had.
        """
        numbers_there = numbers_of(tensor, self.native)
        if numbers_there is None:
            return
        values = numbers_there.cpu().numpy().ravel()
        histogram = ExponentHistogram.of(values)
        finite = values[np.isfinite(values)].astype(np.float64)
        words = np.zeros((1, WORDS), np.int64)
        words[0, [SLOT, STEP, MOMENT, COUNT]] = slot, step, moment, len(values)
        words[0, [ZEROS, NANS]] = histogram.zeros, histogram.nans
        words[0, [POSITIVE_INFINITIES, NEGATIVE_INFINITIES]] = (
            histogram.positive_infinities,
            histogram.negative_infinities,
        )
        words[0, CELLS] = len(histogram.counts)
        numbers = words.view(np.float64)[0]
        with np.errstate(over="ignore"):
            numbers[[SUM, SUM_OF_SQUARES]] = finite.sum(), finite @ finite
        if np.isinf(numbers[SUM]):
            words[0, SUM_SHRUNK], numbers[SUM] = SHRINK, np.ldexp(finite, -SHRINK).sum()
        if np.isinf(numbers[SUM_OF_SQUARES]):
            roots = np.ldexp(finite, -SHRINK_ROOT)
            words[0, SQUARES_SHRUNK], numbers[SUM_OF_SQUARES] = 2 * SHRINK_ROOT, roots @ roots
        numbers[[MIN, MAX]] = (finite.min(), finite.max()) if len(finite) else (np.nan, np.nan)
        numbers[SUM_OF_LOG2] = np.log2(np.abs(finite[finite != 0])).sum()
        keys = cell_key(histogram.exponents, histogram.segments)
        self._ledger.add(words, (keys << COUNT_BITS) | histogram.counts)

    def read(self) -> Rows:
        """All rows since the last `clear`."""
        return self._ledger.read()

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep` or more."""
        self._ledger.clear(keep)

    def nonfinite(self) -> NDArray[np.int64]:
        """Rows with numbers that are not finite, without cells."""
        return self._ledger.nonfinite()

    def trim(self, last: int) -> None:
        """Forget all rows but the last."""
        self._ledger.trim(last)
