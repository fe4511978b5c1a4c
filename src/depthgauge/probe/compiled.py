"""The kernel for tensors in main memory: exponent histogram, moments and extremes in one pass, compiled by numba."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge.probe import pairs, planes, shuffles
from depthgauge.probe.blocks import CELLS_AT, CELLS_USED, CHANGE_AT, DENSE_AT, ROWS_AT, ROWS_USED, Method
from depthgauge.probe.parameters import Look
from depthgauge.probe.processor import vectors
from depthgauge.probe.rows import KEYS, ROWS_A_BLOCK, Job, Ledger, Rows
from depthgauge.probe.tensors import EXACT, SUSPECT, Unreadable, address_of, numbers_of, tracing

VECTORS = vectors()
WAY = {"avx512bw": planes, "avx2": shuffles, "neon": shuffles}.get(VECTORS or "", pairs)
METHOD = WAY.METHOD
_FLOAT, _DOUBLE, _STRIDED = torch.float32, torch.float64, torch.strided


class CompiledKernel:
    """Appends rows to a ledger; one at a time, as Python's lock guarantees."""

    native: tuple[torch.dtype, ...] = (_FLOAT, _DOUBLE)

    def __init__(self, method: Method = METHOD) -> None:
        self._method = method
        self._ledger = Ledger()
        self._buffers: dict[int, NDArray[Any]] = {
            ROWS_AT: self._ledger.rows,
            CELLS_AT: self._ledger.cells,
            DENSE_AT: np.zeros(KEYS, np.int64),
            CHANGE_AT: np.zeros(method.block, np.float64),
            **method.buffers(),
        }
        self._state = np.zeros(method.words, np.int64)
        for word, buffer in self._buffers.items():
            self._state[word] = buffer.ctypes.data
        self._at = int(self._state.ctypes.data)

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row for a tensor of any kind; integers leave none.

        Raises:
            Unreadable: the tensor's numbers cannot be had.
        """
        if not (
            type(tensor) in EXACT
            and tensor.dtype is _FLOAT
            and tensor.is_cpu
            and tensor.layout is _STRIDED
            and tensor.is_contiguous()
            and not tensor.is_neg()
        ):  # no call, which is a tenth of what a small tensor costs
            values = numbers_of(tensor, self.native)
            if values is None:
                return
            tensor = values if values.is_cpu else values.cpu()
        try:
            address = tensor.data_ptr()
        except RuntimeError:
            address = 0
        if address < SUSPECT or tracing() is not None:
            address_of(tensor)
        width = 4 if tensor.dtype is _FLOAT else 8
        while self._method.observe(self._at, address, tensor.numel(), width, slot, step, moment):
            self._make_room()

    def observe_all(self, looks: Sequence[Look], step: int, moment: int) -> list[Look]:
        """Append a row for each tensor that can be read where it lies, in one call; returns the others."""
        if tracing() is not None:
            return list(looks)
        jobs: list[Job] = []
        others: list[Look] = []
        for look in looks:
            tensor, slot, what, memory = look
            try:
                if (
                    type(tensor) in EXACT
                    and ((dtype := tensor.dtype) is _FLOAT or dtype is _DOUBLE)
                    and tensor.is_cpu
                    and tensor.layout is _STRIDED
                    and tensor.is_contiguous()
                    and not tensor.is_neg()
                    and ((n := tensor.numel()) == memory.numbers and dtype is memory.dtype if memory else True)
                ):
                    if (address := tensor.data_ptr()) < SUSPECT:
                        address_of(tensor)
                    width, beside = 4 if dtype is _FLOAT else 8, memory.address if memory else 0
                    jobs.append((address, n if memory else tensor.numel(), width, what, beside, slot))
                else:
                    others.append(look)
            except (Unreadable, RuntimeError):
                others.append(look)
        if jobs:
            self._observe_all(np.array(jobs, np.int64), step, moment)
        return others

    def _observe_all(self, jobs: NDArray[np.int64], step: int, moment: int) -> None:
        n, done = len(jobs), 0
        while (done := self._method.observe_all(self._at, jobs.ctypes.data, n, done, step, moment)) < n:
            self._make_room()

    @property
    def rows(self) -> int:
        """Number of rows since the last `clear`."""
        return self._ledger.held + int(self._state[ROWS_USED])

    def _make_room(self) -> None:
        self._ledger.put_aside(int(self._state[ROWS_USED]), int(self._state[CELLS_USED]))
        self._state[[ROWS_USED, CELLS_USED]] = 0

    def read(self) -> Rows:
        """All rows since the last `clear`."""
        self._make_room()
        return self._ledger.read()

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep` or more."""
        if keep is None:
            self._state[[ROWS_USED, CELLS_USED]] = 0
        else:
            self._make_room()
        self._ledger.clear(keep)

    def nonfinite(self) -> NDArray[np.int64]:
        """Rows with numbers that are not finite, without cells."""
        return self._ledger.nonfinite(int(self._state[ROWS_USED]))

    def trim(self, last: int) -> None:
        """Forget all rows but the last, and up to a quarter of a block more, as it is not worth while each time."""
        if self.rows > last + ROWS_A_BLOCK // 4:
            self._make_room()
            self._ledger.trim(last)
