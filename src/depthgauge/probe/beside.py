"""Reading beside the step: tensors that nobody overwrites are handed to another thread, and kept until they are read.

What may wait is learned: in the first step each tensor is read at once, and one that was changed in place by the end of
that step is read at once from then on. Of the others, PyTorch counts the changes in place (`Tensor._version`). They are
compared when the reading is over, in the thread that computes, as no change can be under way there: a tensor that was
changed meanwhile leaves no row, is told of, and is read at once from then on.

Two ledgers are filled, and made one, in the order in which the tensors were seen, when rows are read.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from depthgauge.probe.compiled import CompiledKernel
from depthgauge.probe.parameters import Look
from depthgauge.probe.rows import OBSERVE, ROWS_A_BLOCK, Job, Rows, joined
from depthgauge.probe.tensors import (
    EXACT,
    SUSPECT,
    Unreadable,
    dispatch_modes,
    in_transform,
    tracing,
    without_dispatch,
    without_torch_function,
)
from depthgauge.probe.worker import CAPACITY, JOB_BYTES, Worker, is_possible

HELD = 64 << 20  # bytes of tensors that wait at most; what does not fit is read at once
LEAST = 1 << 13  # numbers: to hand fewer over takes as long as to read them
CHUNK = 1 << 16  # numbers that are handed over together: some 30 µs of reading
SHARED = 1 << 16  # numbers of parameters that it pays to share
CHANGED = "changed in place while they waited to be read"

_FLOAT, _STRIDED = torch.float32, torch.strided
_get_ident = threading.get_ident

Held = tuple[torch.Tensor | None, object, int, int, int]
"""A tensor that is being read, its memory, its version, slot and bytes; no tensor where the step itself waits."""

READY, NEVER = 1, 2
_UNKNOWN = bytes(1024)


def pays() -> bool:
    """Tell whether there is a processor that PyTorch leaves idle, and a way to use it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return is_possible() and cores > torch.get_num_threads()


class BesideKernel:
    """Appends rows to two ledgers: at once, or beside what this thread computes.

    Args:
        miss: takes the slot of a tensor that could not be read, and why.
        held: bytes of tensors that may wait.
    """

    native: tuple[torch.dtype, ...] = CompiledKernel.native

    def __init__(self, miss: Callable[[int, Exception], None], held: int = HELD) -> None:
        self._miss = miss
        self._most = held
        self._now = CompiledKernel()
        self._later = CompiledKernel()
        self._worker: Worker | None = None
        self._thread = _get_ident()
        self._lock = threading.RLock()
        self._may = bytearray()  # by slot: whether its tensors may wait, 0 where it is not known
        self._trial: list[tuple[torch.Tensor, int, int]] = []
        self._on_trial = 0  # bytes
        self._numbers = 0  # of those that the worker was not told of yet
        self._held: deque[Held] = deque()
        self._nbytes = 0
        self._released = 0  # jobs of the worker
        self._before = 0  # rows of its ledger before its first job
        self._void: list[int] = []  # rows of its ledger
        self._marks: list[tuple[int, int]] = []  # rows of its ledger and of ours, whenever both have grown
        _alive.add(self)

    # Seeing a tensor.

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row for a tensor of any kind, perhaps later; integers leave none.

        Raises:
            Unreadable: the tensor's numbers cannot be had.
        """
        try:
            may = self._may[slot]
        except IndexError:
            self._may += _UNKNOWN * (slot // len(_UNKNOWN) + 1)
            may = 0
        if may != READY or not self._put(tensor, slot, step, moment):
            self.read_now(tensor, slot, step, moment)
            if not may:
                self._try(tensor, slot)

    def _put(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> bool:
        """Give a tensor to the worker; False if it is to be read at once."""
        if not (
            _get_ident() == self._thread
            and type(tensor) in EXACT
            and tensor.dtype is _FLOAT
            and tensor.layout is _STRIDED
            and tensor.is_contiguous()
            and not tensor.is_neg()
        ):
            return False
        try:
            address, version, n = tensor.data_ptr(), tensor._version, tensor.numel()
        except RuntimeError:  # without memory, or an inference tensor
            return False
        if address < SUSPECT or tracing() is not None or self._nbytes + 4 * n > self._most:
            return False
        worker = self._worker
        if worker is None or (job := worker.jobs) == CAPACITY:
            worker = self._ready_worker()
            job = worker.jobs
        if tensor.requires_grad:  # it is kept without its graph
            if dispatch_modes() or in_transform():
                return False
            self._held.append((tensor.detach(), None, version, slot, 4 * n))
        else:  # with its memory, as it may be given another one
            self._held.append((tensor, tensor.untyped_storage(), version, slot, 4 * n))
        worker.pack(worker.memory, job * JOB_BYTES, address, n, 4, OBSERVE, 0, slot, step, moment)
        worker.jobs = job + 1
        self._nbytes += 4 * n
        self._numbers += n
        if self._numbers >= CHUNK:
            self.hand_over()
        return True

    def read_now(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> None:
        """Append a row at once; raises as `observe`."""
        with self._lock:
            if self._worker is not None:
                self._mark()
            self._now.observe(tensor, slot, step, moment)

    def observe_all(self, looks: Sequence[Look], step: int, moment: int) -> list[Look]:
        """Append a row for each tensor that can be read where it lies, shared with the other thread."""
        jobs, others = self._now.jobs_of(looks)
        shared = self._shared(jobs) if _get_ident() == self._thread else 0
        with self._lock:
            if shared:
                for job in jobs[:shared]:
                    worker = self._ready_worker()
                    worker.pack(worker.memory, worker.jobs * JOB_BYTES, *job, step, moment)
                    worker.jobs += 1
                    self._held.append((None, None, 0, job[-1], 0))
                worker.tell()
            self._mark()
            if shared < len(jobs):
                self._now.observe_jobs(np.array(jobs[shared:], np.int64), step, moment)
            if shared:
                worker.wait()
                self._release()
        return others

    def _shared(self, jobs: Sequence[Job]) -> int:
        """How many jobs, the first ones, the other thread should take, so that both are done at the same time."""
        work = [job[1] * (2 if job[3] == OBSERVE else 3) for job in jobs]
        if sum(work) < 2 * SHARED:
            return 0
        self.hand_over()
        half = (sum(work) - self._nbytes / 2) / 2
        count = 0
        while half > 0:
            half -= work[count]
            count += half > 0
        return count

    # What may wait.

    def _try(self, tensor: torch.Tensor, slot: int) -> None:
        """Look whether a tensor that was read stays as it is until the step ends."""
        if _get_ident() != self._thread or in_transform():
            return
        if not _is_plain(tensor) or tensor.is_inference() or tensor.numel() < LEAST:
            self._may[slot] = NEVER
            return
        nbytes = tensor.numel() * tensor.itemsize
        if self._on_trial + nbytes <= self._most:
            self._on_trial += nbytes
            with without_torch_function(), without_dispatch():
                self._trial.append((tensor.detach(), tensor._version, slot))

    def end_step(self) -> None:
        """Decide which tensors may wait from now on, and hand over what waits."""
        if _get_ident() != self._thread:
            return
        self.hand_over()
        self._release()
        if self._trial:
            trial, self._trial, self._on_trial = self._trial, [], 0
            for tensor, version, slot in trial:
                same = tensor._version == version and self._may[slot] != NEVER
                self._may[slot] = READY if same else NEVER

    # Handing over.

    def hand_over(self) -> None:
        """Let the other thread read what was put, and let go of what it has read."""
        if self._worker is not None and self._numbers and _get_ident() == self._thread:
            with self._lock:
                self._numbers = 0
                self._worker.tell()
                self._release()
                if self._later.is_full or self._worker.jobs > CAPACITY // 2:
                    self._join()

    def _ready_worker(self) -> Worker:
        """The worker, with a place for a job."""
        if self._worker is None:
            kernel = self._later
            self._worker = Worker(kernel.method, kernel.at, kernel.make_room, kernel.buffers)
        elif self._worker.jobs == CAPACITY:
            self._join()
        return self._worker

    def _release(self) -> None:
        """Let go of tensors that were read; those that were changed meanwhile leave no row."""
        if self._worker is None:
            return
        take = self._held.popleft
        for job in range(self._released, self._worker.done):
            tensor, _, version, slot, nbytes = take()
            self._nbytes -= nbytes
            if tensor is not None and tensor._version != version:
                self._void.append(self._before + job)
                self._change(slot)
        self._released = self._worker.jobs - len(self._held)

    def _change(self, slot: int) -> None:
        self._may[slot] = NEVER
        self._miss(slot, Unreadable(CHANGED))

    def _mark(self) -> None:
        """Note that a row of ours follows those that the other thread has so far."""
        later = self._before + (self._worker.jobs if self._worker is not None else 0)
        if later > (self._marks[-1][0] if self._marks else 0):
            self._marks.append((later, self._now.rows))

    def _join(self) -> None:
        """Wait until all is read that was handed over."""
        with self._lock:
            if self._worker is not None:
                self._worker.wait()
                self._release()
                self._before += self._worker.jobs
                self._released = 0
                self._worker.reset()

    # Rows.

    def _gather(self) -> None:
        """Wait for the rows, and make the two ledgers one."""
        self.hand_over()
        self._join()
        with self._lock:
            later = self._later.read()
            if n := len(later.words):
                now = self._now.read()
                order = _order(n, len(now.words), self._marks)
                void = np.zeros(len(order), bool)
                void[self._void] = True
                rows = joined([later, now]).taken(order[~void[order]])
                self._now.clear()
                self._now.put_back(rows)
            self._forget()

    def _forget(self) -> None:
        self._later.clear()
        self._void.clear()
        self._marks.clear()
        self._before = 0

    def read(self) -> Rows:
        """All rows since the last `clear`."""
        self._gather()
        return self._now.read()

    def clear(self, keep: int | None = None) -> None:
        """Forget all rows, but for those whose STEP is `keep`."""
        if keep is not None:
            self._gather()
        else:
            self.hand_over()
            self._join()
            self._forget()
        self._now.clear(keep)

    def nonfinite(self) -> NDArray[np.int64]:
        """Rows with numbers that are not finite, without cells."""
        self.hand_over()
        self._join()
        if self._void:
            self._gather()
        return np.concatenate([self._later.nonfinite(), self._now.nonfinite()])

    def trim(self, last: int) -> None:
        """Forget all rows but the last, or keep some more."""
        if self._later.rows + self._now.rows > last + ROWS_A_BLOCK // 4:
            self._gather()
            self._now.trim(last)

    # The end.

    def stop(self) -> CompiledKernel:
        """Read all that waits, and end the thread; returns a kernel that has all rows.

        What a hook brings that is still running is read at once.
        """
        self._gather()
        self._thread = -1
        self._trial.clear()
        if self._worker is not None:
            self._worker.stop()
            self._worker = None
        return self._now

    def drain(self) -> None:
        """Wait, and hold everything, before the process is copied."""
        self._lock.acquire()
        self.hand_over()
        self._join()

    def resume(self) -> None:
        """Go on after `drain`."""
        self._lock.release()

    def orphan(self) -> None:
        """Go on in a copy of the process, where the other thread is none."""
        self._lock = threading.RLock()
        self._thread = -1
        self._held.clear()
        if self._worker is not None:
            self._worker.abandon()
            self._worker = None
        self._mark()


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) in EXACT
        and tensor.dtype is _FLOAT
        and tensor.is_cpu
        and tensor.layout is _STRIDED
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _order(later: int, now: int, marks: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """The rows of the other thread, then ours, by number, in the order in which they were seen."""
    ends = np.array([mark[0] for mark in marks], np.int64)
    ours = np.array([*(mark[1] for mark in marks), now], np.int64)
    keys = ours[np.searchsorted(ends, np.arange(later), side="right")]
    return np.argsort(np.concatenate([2 * keys, 2 * np.arange(now) + 1]), kind="stable")


_alive: weakref.WeakSet[BesideKernel] = weakref.WeakSet()


def _each(what: Callable[[BesideKernel], None]) -> Callable[[], None]:
    def call() -> None:
        for kernel in list(_alive):
            what(kernel)

    return call


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each(BesideKernel.drain),
        after_in_parent=_each(BesideKernel.resume),
        after_in_child=_each(BesideKernel.orphan),
    )
