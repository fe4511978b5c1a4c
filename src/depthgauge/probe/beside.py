"""Reading beside the step: a large tensor is handed to another thread, and kept until it has been read there.

Nothing is written by two threads. The one that reads owns a kernel and a copy of the numbers, and returns rows by
value. It never looks at the step's memory by itself, as a program may free that at any moment
(`untyped_storage().resize_(0)`): it asks the system for a copy, which is refused where there is no memory.

What may wait is learned: in the first step each tensor is read at once, and one that was changed in place by the end of
that step is read at once from then on. Of the others, PyTorch counts the changes in place (`Tensor._version`). They are
compared when the reading is over, in the thread that computes, as no change can be under way there: a tensor that was
changed meanwhile leaves no row, is told of, and is read at once from then on. Nothing waits beyond its step.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray

from depthgauge.probe.blocks import entry_without_lock
from depthgauge.probe.compiled import WAY, CompiledKernel
from depthgauge.probe.rows import ROWS_A_BLOCK, Rows, joined
from depthgauge.probe.tensors import EXACT, Unreadable, dispatch_modes, in_transform, is_plain, tracing

HELD = 24 << 20  # bytes of tensors that wait at most; what does not fit is read at once
LEAST = 1 << 18  # numbers: to hand fewer over, and to keep them out of the caches, takes as long as to read them
CHANGED = "changed in place while they waited to be read"
FORKED = "waiting to be read when the process was copied"

_get_ident = threading.get_ident
_at_once = CompiledKernel.observe
_here = threading.local()  # `reads`: whether this thread is one that reads beside another


class Held(NamedTuple):
    """A tensor that waits: an alias without its graph, what it was, and where its row belongs.

    Attributes:
        before: number of rows that were written at once before it came.
        row: its row, none where its memory is gone.
    """

    tensor: torch.Tensor
    version: int
    address: int
    slot: int
    before: int
    row: Future[Rows | None]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return 4 * self.tensor.numel()

    def is_same(self) -> bool:
        """Tell whether numbers and memory are those that were handed over."""
        try:
            return self.tensor._version == self.version and self.tensor.data_ptr() == self.address
        except RuntimeError:  # without memory
            return False


class _Piece(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


@cache
def _system_call() -> Any:
    """The call `process_vm_readv` of Linux, which lets others have Python's lock; None elsewhere."""
    function: Any = getattr(ctypes.CDLL(None), "process_vm_readv", None) if os.name == "posix" else None
    if function is not None:
        pieces, number = ctypes.POINTER(_Piece), ctypes.c_ulong
        function.argtypes = (ctypes.c_int, pieces, number, pieces, number, number)
        function.restype = ctypes.c_ssize_t
    return function


def copy_by_system(target: int, source: int, nbytes: int) -> bool:
    """Copy memory of this process, or tell that it cannot be copied."""
    function, to, of = _system_call(), _Piece(target, nbytes), _Piece(source, nbytes)
    return function is not None and bool(function(os.getpid(), to, 1, of, 1, 0) == nbytes)


def pays() -> bool:
    """Tell whether there is a processor that PyTorch leaves idle, and a system that copies."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    there, here = np.ones(1), np.zeros(1)
    return cores > torch.get_num_threads() and copy_by_system(here.ctypes.data, there.ctypes.data, 8)


@cache
def _observe() -> Any:
    """`Method.observe`, compiled before there is a second thread, that lets others have Python's lock."""
    observe = entry_without_lock(WAY)
    observe.compile((types.int64,) * 7)
    return observe


class Reader(CompiledKernel):
    """A kernel and a buffer that the reading thread owns."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = np.empty(0, np.float32)
        self._observe = _observe()

    def row_of(self, address: int, numbers: int, slot: int, step: int, moment: int) -> Rows | None:
        """The row of float32 in memory; None where there is no memory."""
        if numbers > len(self._numbers):
            self._numbers = np.empty(numbers, np.float32)
        target = self._numbers.ctypes.data
        if not copy_by_system(target, address, 4 * numbers):
            return None
        self.clear()
        self._observe(self._at, target, numbers, 4, slot, step, moment)
        return self.read()


class BesideKernel(CompiledKernel):
    """Appends rows at once, or reads beside what this thread computes.

    Args:
        miss: takes the slot of a tensor that could not be read, and why.
    """

    def __init__(self, miss: Callable[[int, Exception], None]) -> None:
        super().__init__()
        self._miss = miss
        self._thread = _get_ident()
        self._lock = threading.RLock()
        self._may: dict[int, bool] = {}  # by slot: whether its tensors may wait
        self._trial: list[tuple[torch.Tensor, int, int]] = []  # with a tensor's counter of changes, without its memory
        self._held: deque[Held] = deque()
        self._nbytes = 0  # of what waits
        self._nothing = torch.empty(0)
        self._parts: list[tuple[int, Rows]] = []  # rows read beside, with `Held.before`
        self._reader: Reader | None = Reader()
        self._worker = ThreadPoolExecutor(1, "depthgauge-probe", initializer=_begin)
        _alive.add(self)

    # Seeing a tensor.

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row for a tensor of any kind, perhaps later; integers leave none.

        Raises:
            Unreadable: the tensor's numbers cannot be had.
        """
        if type(tensor) not in EXACT or tensor.numel() < LEAST or _get_ident() != self._thread:
            _at_once(self, tensor, slot, step, moment)
            return
        may = self._may.get(slot)
        if may and self._put(tensor, slot, step, moment):
            return
        _at_once(self, tensor, slot, step, moment)
        if may is None and _is_holdable(tensor):
            alias = tensor.detach()
            alias.data = self._nothing
            self._trial.append((alias, alias._version, slot))

    def _put(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> bool:
        """Hand a tensor over; False where it cannot wait, or there is no room, or no thread to be had."""
        if self._nbytes + 4 * tensor.numel() > HELD or not _is_holdable(tensor):
            return False
        with self._lock:
            alias, reader = tensor.detach(), self._reader
            address, numbers = alias.data_ptr(), alias.numel()
            if reader is None or not address:
                return False
            try:
                row = self._worker.submit(_row_of, reader, alias, address, numbers, slot, step, moment)
            except RuntimeError:  # the interpreter ends, or has too many threads
                return False
            self._held.append(Held(alias, alias._version, address, slot, self.rows, row))
            self._nbytes += 4 * numbers
            while self._held and self._held[0].row.done() and self._held[0].row.exception() is None:
                self._take()
        return True

    def end_step(self) -> None:
        """Wait for the step's rows, and decide which tensors may wait from now on.

        Raises:
            RuntimeError: the reading thread failed; its cause is the error there.
        """
        self._collect()
        trial, self._trial = self._trial, []
        for tensor, version, slot in trial:
            self._may[slot] = tensor._version == version and self._may.get(slot, True)

    # Taking rows back.

    def _take(self) -> None:
        """Wait for the first tensor that waits, and let go of it."""
        held = self._held[0]
        error = held.row.exception()
        self._held.popleft()
        self._nbytes -= held.nbytes
        if error is not None:
            raise RuntimeError("the thread that reads beside the step has failed") from error
        rows = held.row.result()
        if rows is not None and held.is_same():
            self._parts.append((held.before, rows))
        else:
            self._may[held.slot] = False
            self._miss(held.slot, Unreadable(CHANGED))

    def _collect(self) -> None:
        """Wait until all is read. A thread that reads waits for nobody, should garbage be collected there."""
        if not getattr(_here, "reads", False):
            with self._lock:
                while self._held:
                    self._take()

    def _gather(self) -> None:
        """Bring all rows into the order in which their tensors were seen."""
        self._collect()
        if not self._parts:
            return
        parts, self._parts = self._parts, []
        now = super().read()
        keys = np.array([2 * before for before, _ in parts])
        order = np.argsort(np.concatenate([keys, 2 * np.arange(len(now.words)) + 1]), kind="stable")
        super().clear()
        self._ledger.put_back(joined([*(rows for _, rows in parts), now]).taken(order))

    # Rows.

    def read(self) -> Rows:
        """All rows since the last `clear`."""
        self._gather()
        return super().read()

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep` or more."""
        self._collect()
        if keep is not None:
            self._gather()
        self._parts.clear()
        super().clear(keep)

    def nonfinite(self) -> NDArray[np.int64]:
        """Rows with numbers that are not finite, without cells."""
        self._collect()
        return np.concatenate([*(rows.words[rows.nonfinite] for _, rows in self._parts), super().nonfinite()])

    def trim(self, last: int) -> None:
        """Forget all rows but the last, or keep some more."""
        if self.rows + len(self._parts) > last + ROWS_A_BLOCK // 4:
            self._gather()
            super().trim(last)

    # The end.

    def close(self) -> None:
        """Wait for what is read, and end the thread; what a hook brings that is still running is read at once.

        Raises:
            RuntimeError: as `end_step`.
        """
        self._thread = -1
        self._trial.clear()
        self._reader = None
        try:
            self._collect()
        finally:
            self._worker.shutdown(wait=not getattr(_here, "reads", False))

    def orphan(self) -> None:
        """Go on in a copy of the process, where the reading thread is none."""
        self._lock = threading.RLock()
        self._worker = ThreadPoolExecutor(1, initializer=_begin)  # the other's lock may have been taken
        self._thread = -1
        self._trial.clear()
        for held in self._held:
            if not held.row.done():
                self._miss(held.slot, Unreadable(FORKED))
        self._held = deque(held for held in self._held if held.row.done())


def _begin() -> None:
    _here.reads = True


def _row_of(reader: Reader, _kept: torch.Tensor, *job: int) -> Rows | None:
    return reader.row_of(*job)


def _is_holdable(tensor: torch.Tensor) -> bool:
    """Tell whether an exact tensor's numbers can be read where they lie, and its changes are counted."""
    return (
        tensor.dtype is torch.float32
        and tensor.is_cpu
        and is_plain(tensor)
        and not (tensor.is_inference() or tracing() is not None or dispatch_modes() or in_transform())
    )


_alive: weakref.WeakSet[BesideKernel] = weakref.WeakSet()


def _before_copy() -> None:
    for kernel in list(_alive):
        with contextlib.suppress(RuntimeError):
            kernel._collect()


def _in_copy() -> None:
    for kernel in list(_alive):
        kernel.orphan()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_copy, after_in_child=_in_copy)
