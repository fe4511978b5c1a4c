"""A ring of the last rows of a long training, which stops at the first value that is not finite and tells of it."""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from depthgauge.probe.nonfinite import NonFinite
from depthgauge.probe.plain import PlainKernel
from depthgauge.probe.record import Record
from depthgauge.probe.session import Session

INSIDE = (str(Path(__file__).parent), str(Path(torch.__file__).parent), contextlib.__file__)


class NonFiniteWarning(UserWarning):
    """Warning of the first value that is not finite, and of what led to it, as `Record.first_nonfinite` says it."""


class Ring:
    """Looks at the rows of each recorded step when it ends, and keeps the last of them.

    Args:
        session: the session, which records no more once a value that is not finite has been found.
        last: number of rows.
        on_step: called with the record after each recorded step.
    """

    def __init__(self, session: Session, last: int, on_step: Callable[[Record], None] | None) -> None:
        self._record = session.record
        self._record._last = last
        self._last = last
        self._stop = session.stop
        self._on_step = on_step
        session.on_step = self.end_step

    def end_step(self, record: Record) -> None:
        """Look at the rows of a step that has ended; at those on a device, once they have been fetched."""
        first = None
        if any(record._has_fault(kernel.nonfinite()) for kernel in record._kernels):
            first = self._freeze()
        else:
            for kernel in record._kernels:
                kernel.trim(self._last)
            record._forget_old_steps()
        if self._on_step is not None:
            self._on_step(record)
        _warn(first)

    def finish(self) -> None:
        """Look at all rows, at the end of the block."""
        _warn(self._freeze())

    def explain(self, error: Exception) -> None:
        """Add to an exception which value was the first that is not finite, if there is one."""
        self._record._ended = math.inf  # no scaler will skip what is pending
        if (first := self._freeze()) is not None:
            error.add_note(f"depthgauge: {first}")

    def _freeze(self) -> NonFinite | None:
        """Find the first value that is not finite; from then on the record holds its chain alone."""
        record = self._record
        if record._first is not None or (found := record._find(self._last)) is None:
            return None
        record._first, rows = found
        record._kernels[:] = [PlainKernel.holding(rows)]
        self._stop()
        return record._first


def _warn(first: NonFinite | None) -> None:
    if first is not None:
        warn_outside(str(first), NonFiniteWarning)


def warn_outside(text: str, category: type[Warning]) -> None:
    """Warn at the line of the program that called torch or the block."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
