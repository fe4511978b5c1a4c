"""The kernel for tensors in main memory: exponent histogram, moments and extremes in one pass, compiled by numba."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped] # no stubs exist
from numba import config
from numpy.typing import NDArray

from depthgauge.probe import pairs, planes
from depthgauge.probe.blocks import CELLS_AT, CELLS_USED, CHANGE_AT, DENSE_AT, ROWS_AT, ROWS_USED, Method
from depthgauge.probe.parameters import Job
from depthgauge.probe.rows import KEYS, Ledger, Rows

_config: Any = config  # carries no types


def compiles_for(feature: str) -> bool:
    """Whether numba compiles for a processor with that feature, as LLVM calls it; no, if numba is told a processor."""
    told = _config.CPU_NAME is not None or _config.CPU_FEATURES is not None or not _config.ENABLE_AVX
    return not told and bool(get_host_cpu_features().get(feature, False))


METHOD = planes.METHOD if compiles_for(planes.NEEDS) else pairs.METHOD


class CompiledKernel:
    """Appends rows to a ledger; one at a time, as Python's lock guarantees."""

    native: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

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

    def observe(self, tensor: torch.Tensor, slot: int, step: int, call: int) -> None:
        """Append a row for a dense float32 or float64 tensor in main memory."""
        width = 4 if tensor.dtype is torch.float32 else 8
        while self._method.observe(self._at, tensor.data_ptr(), tensor.numel(), width, slot, step, call):
            self._make_room()

    def observe_all(self, jobs: list[Job], step: int) -> None:
        """Append a row for each job: address, numbers, bytes of each, what to do, companion's address, slot."""
        words = np.array(jobs, np.int64)
        done = 0
        while (done := self._method.observe_all(self._at, words.ctypes.data, len(jobs), done, step)) < len(jobs):
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
