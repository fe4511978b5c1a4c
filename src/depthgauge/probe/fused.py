"""The same rows by one fused pass on a CUDA device, written in Triton.

Each program of the grid walks over its share of the tensor and keeps histogram, sums and extremes in registers; then
it adds its histogram to the row's with atomic additions, which are exact in any order, and stores its sums in a place
of its own, so that equal inputs give equal bits. Rows stay on the device until a block of them is full or is read;
nothing is waited for before that.

With `TRITON_INTERPRET=1` the kernel runs on the processor, where the tests hold it against the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from depthgauge.formats import cell_key
from depthgauge.probe.plain import PlainKernel
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
    SLOT,
    STEP,
    SUM,
    SUM_OF_LOG2,
    SUM_OF_SQUARES,
    WORDS,
    ZEROS,
    Ledger,
    Rows,
    joined,
)
from depthgauge.probe.tensors import address_of, numbers_of

BLOCK = 2048  # numbers that a program takes at a time
PROGRAMS = 512  # at most; each leaves FIGURES float64 in a row
FIGURES = 5
ROWS = 256  # rows on the device before they are fetched: 10 MiB

# The histogram's bins: 16 for each exponent field, then 16 for each binade of subnormal numbers.
# Field 0 holds zeros in bin 0, and bin 15 what is masked; field 255 holds inf, -inf and NaN.
FIELDS = tl.constexpr(4096)
SUBNORMALS = tl.constexpr(512)
BINS = 4096 + 512


@triton.jit  # type: ignore[untyped-decorator] # triton is not typed
def _segment(fraction: Any) -> Any:
    """Count the edges of formats.EDGES that a 23-bit fraction has passed."""
    return (
        (fraction > 0).to(tl.int32)
        + (fraction >= 0x600000).to(tl.int32)
        + (fraction > 0x680000).to(tl.int32)
        + (fraction >= 0x700000).to(tl.int32)
        + (fraction >= 0x7F0000).to(tl.int32)
        + (fraction >= 0x7F8000).to(tl.int32)
        + (fraction >= 0x7FE000).to(tl.int32)
        + (fraction >= 0x7FF000).to(tl.int32)
        + (fraction >= 0x7FFFFF).to(tl.int32)
    )


@triton.jit  # type: ignore[untyped-decorator] # triton is not typed
def _observe(  # noqa: PLR0917 # a kernel is launched by position
    data: Any, n: Any, bins: Any, figures: Any, blocks: Any, size: tl.constexpr
) -> None:
    program = tl.program_id(0)
    counts = tl.zeros([FIELDS], tl.int32)
    total = tl.zeros([size], tl.float64)
    squares = tl.zeros([size], tl.float64)
    logs = tl.zeros([size], tl.float64)
    least = tl.full([size], float("inf"), tl.float32)
    most = tl.full([size], float("-inf"), tl.float32)
    for block in range(blocks):
        place = (program.to(tl.int64) * blocks + block) * size + tl.arange(0, size)
        inside = place < n
        x = tl.load(data + place, mask=inside, other=0.0).to(tl.float32)
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        field = magnitude >> 23
        fraction = magnitude & 0x7FFFFF
        finite = inside & (field != 255)
        subnormal = inside & (field == 0) & (fraction != 0)
        special = tl.where(fraction != 0, 2, tl.where(bits < 0, 1, 0))
        segment = tl.where(field == 255, special, tl.where(field == 0, 0, _segment(fraction)))
        key = tl.where(inside & (subnormal == 0), field * 16 + segment, 15)
        counts += tl.histogram(key, FIELDS)
        # A subnormal number's fraction as an integer, made a float, has its true exponent and fraction.
        widened = fraction.to(tl.float32).to(tl.int32, bitcast=True)
        true_fraction = tl.where(subnormal, widened & 0x7FFFFF, fraction)
        if tl.max(subnormal.to(tl.int32), 0) > 0:
            small = tl.where(subnormal, ((widened >> 23) - 127) * 16 + _segment(true_fraction), SUBNORMALS - 1)
            tl.atomic_add(bins + FIELDS + tl.arange(0, SUBNORMALS), tl.histogram(small, SUBNORMALS))
        value = tl.where(finite, x, 0.0).to(tl.float64)
        total += value
        squares += value * value
        significand = tl.where(finite, true_fraction | 0x3F800000, 0x3F800000).to(tl.float32, bitcast=True)
        logs += tl.log2(significand).to(tl.float64)
        least = tl.minimum(least, tl.where(finite, x, float("inf")))
        most = tl.maximum(most, tl.where(finite, x, float("-inf")))
    bin_number = tl.arange(0, FIELDS)
    tl.atomic_add(bins + bin_number, counts, mask=(counts > 0) & (bin_number != 15))
    partial_sums = figures + program * 5
    tl.store(partial_sums, tl.sum(total, 0))
    tl.store(partial_sums + 1, tl.sum(squares, 0))
    tl.store(partial_sums + 2, tl.sum(logs, 0))
    tl.store(partial_sums + 3, tl.min(least, 0).to(tl.float64))
    tl.store(partial_sums + 4, tl.max(most, 0).to(tl.float64))


class FusedKernel:
    """Appends rows on a device, and fetches them when they are read.

    Args:
        device: the tensors' device; `"cpu"` for Triton's interpreter.
    """

    native: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

    def __init__(self, device: str = "cuda") -> None:
        self._ledger = Ledger()
        self._wide = PlainKernel()
        self._labels: list[tuple[int, int, int, int]] = []
        self._bins = torch.zeros(ROWS, BINS, dtype=torch.int32, device=device)
        self._figures = torch.zeros(ROWS, PROGRAMS, FIGURES, dtype=torch.float64, device=device)

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row; float64 is not worth a kernel and goes through main memory. Integers leave none.

        Raises:
            Unreadable: the tensor's numbers cannot be had.
        """
        values = numbers_of(tensor, self.native)
        if values is None:
            return
        tensor = values
        if tensor.dtype is torch.float64:
            self._wide.observe(tensor, slot, step, moment)
            return
        if len(self._labels) == ROWS:
            self._fetch()
        address_of(tensor)
        row, n = len(self._labels), tensor.numel()
        self._labels.append((slot, step, moment, n))
        blocks = triton.cdiv(triton.cdiv(n, BLOCK), PROGRAMS) or 1
        programs = triton.cdiv(n, BLOCK * blocks) or 1
        with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call] # torch does not type it
            _observe[(programs,)](tensor, n, self._bins[row], self._figures[row], blocks, size=BLOCK)

    def read(self) -> Rows:
        """All rows since the last `clear`."""
        self._fetch()
        return joined([self._ledger.read(), self._wide.read()])

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep` or more."""
        if keep is not None:
            self._fetch()
        self._labels.clear()
        self._bins.zero_()
        self._figures.zero_()
        self._ledger.clear(keep)
        self._wide.clear(keep)

    def nonfinite(self) -> NDArray[np.int64]:
        """Rows with numbers that are not finite, without cells, as far as they were fetched."""
        return np.concatenate([self._ledger.nonfinite(), self._wide.nonfinite()])

    def trim(self, last: int) -> None:
        """Forget all fetched rows but the last."""
        self._ledger.trim(last)
        self._wide.trim(last)

    def _fetch(self) -> None:
        """Move the rows on the device into the ledger; this waits for the device."""
        bins = self._bins[: len(self._labels)].cpu().numpy()
        figures = self._figures[: len(self._labels)].cpu().numpy()
        for row, label in enumerate(self._labels):
            self._ledger.add(*_finished(label, bins[row], figures[row]))
        self._labels.clear()
        self._bins.zero_()
        self._figures.zero_()


def _finished(
    label: tuple[int, int, int, int], bins: NDArray[np.int32], figures: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row and its cells, from what the device has counted."""
    words = np.zeros((1, WORDS), np.int64)
    slot, step, moment, n = label
    words[0, [SLOT, STEP, MOMENT, COUNT]] = slot, step, moment, n
    words[0, ZEROS] = bins[0]
    words[0, [POSITIVE_INFINITIES, NEGATIVE_INFINITIES, NANS]] = bins[255 * 16 : 255 * 16 + 3]
    filled = np.flatnonzero(bins)
    filled = filled[(filled >= 16) & (filled < 255 * 16) | (filled >= 256 * 16)]
    filled = filled[filled != BINS - 1]
    exponents = np.where(filled < 256 * 16, filled // 16 - 127, (filled - 256 * 16) // 16 - 149)
    order = np.argsort(exponents, kind="stable")
    counts = bins[filled].astype(np.int64)
    words[0, CELLS] = len(filled)
    used = figures[: triton.cdiv(n, BLOCK * (triton.cdiv(triton.cdiv(n, BLOCK), PROGRAMS) or 1)) or 1]
    numbers = words.view(np.float64)[0]
    numbers[[SUM, SUM_OF_SQUARES]] = used[:, 0].sum(), used[:, 1].sum()
    numbers[SUM_OF_LOG2] = used[:, 2].sum() + (exponents * counts).sum()
    least, most = used[:, 3].min(), used[:, 4].max()
    numbers[[MIN, MAX]] = (least, most) if least <= most else (np.nan, np.nan)
    cells = (cell_key(exponents, filled % 16) << COUNT_BITS) | counts
    return words, cells[order]
