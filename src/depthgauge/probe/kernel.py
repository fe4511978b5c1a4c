"""A kernel's interface: what reads tensors and keeps the rows."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge.probe.rows import Rows


class Kernel(Protocol):
    """Reads tensors, appends rows."""

    native: tuple[torch.dtype, ...]

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row for a tensor; raises `tensors.Unreadable` where its numbers cannot be had."""

    def read(self) -> Rows:
        """All rows since the last `clear`."""

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep` or more."""

    def nonfinite(self) -> NDArray[np.int64]:
        """Words of rows that are not finite; of those in main memory, as nothing is waited for."""

    def trim(self, last: int) -> None:
        """Forget all rows but the last, or keep some more."""
