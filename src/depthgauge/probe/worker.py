"""The thread that reads beside the step: compiled code that never takes Python's lock.

A thread of Python's would have to take the lock whenever it has read something, and the step would wait for it. This
one is called once a block, without the lock, and stays within. It looks for jobs for about a millisecond after the last
one, as it costs the step some 30 µs to wake a thread, and sleeps on a pipe after that.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist
from numba import types
from numpy.typing import NDArray

from depthgauge.probe.blocks import SOURCES, Method, Word, at, compiled, entry_point, lowering

# Words of the mailbox. TARGET: how many jobs may be done in all. DONE: how many are. ASLEEP: whether the worker reads
# INBOX; a message is a ticket there, which it answers, and how many are done, when it has nothing to do or no room: 0
# for no answer, -1 to end. BASE: the number of the job that lies first in memory; numbers only grow, as the worker may
# look at any moment.
READ_AT, WRITE_AT, INBOX, OUTBOX, OBSERVE_ALL_AT, STATE_AT, JOBS_AT, TICKET, ANSWERED, ANSWER = range(10)
RETURNED, RAISED, BASE = 10, 11, 12
TARGET, DONE, ASLEEP = 16, 24, 32  # in cache lines of their own
MAILBOX_WORDS = 40
JOB_BYTES = 64  # six words of `rows.Job`, STEP and MOMENT
CAPACITY = 4096  # jobs
TRIES = 1000  # a pipe that fails so often in a row has been closed
SPIN = 100e-6  # seconds: shorter than to fall asleep and wake up again
LOOKS = 100_000  # at TARGET, about a millisecond

# What another processor writes in order is seen in order without further ado.
_ORDERED = platform.machine() in {"x86_64", "AMD64"}
_ticket, _answer = struct.Struct("q"), struct.Struct("2q")
_WORD = ir.IntType(64)
_PAUSES = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}


@lowering
def _transfer(_context: Any, function: Any, file: Any, address: Any, nbytes: Any) -> Any:
    """Call `read` or `write` of the C library by its address."""
    del function, file, address, nbytes

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function, file, address, nbytes = arguments
        kind = ir.FunctionType(_WORD, [ir.IntType(32), _WORD, _WORD])
        return builder.call(
            builder.inttoptr(function, kind.as_pointer()), [builder.trunc(file, ir.IntType(32)), address, nbytes]
        )

    return types.int64(types.int64, types.int64, types.int64, types.int64), generate


@lowering
def _call_compiled(_context: Any, function: Any, returned: Any, job: Any, state: Any, step: Any, moment: Any) -> Any:  # noqa: PLR0917 # an intrinsic takes no keywords
    """Call a method's `observe_all` for one job by its address; numba's functions return through a pointer."""
    del function, returned, job, state, step, moment

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        function, returned, job, state, step, moment = arguments
        kind = ir.FunctionType(ir.IntType(32), [_WORD] * 8)
        raised = builder.add(returned, _WORD(8))
        status = builder.call(
            builder.inttoptr(function, kind.as_pointer()),
            [returned, raised, state, job, _WORD(1), _WORD(0), step, moment],
        )
        return builder.sext(status, _WORD)

    return types.int64(*[types.int64] * 6), generate


@lowering
def _publish(_context: Any, address: Any, value: Any) -> Any:
    """Write a word after all that was read and written before."""
    del address, value

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        builder.store_atomic(arguments[1], pointer, "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@lowering
def _seen(_context: Any, address: Any) -> Any:
    """Read a word that another thread writes, after a moment in which the processor rests."""
    del address

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if (pause := _PAUSES.get(platform.machine())) is not None:
            builder.call(builder.module.declare_intrinsic(pause, (), ir.FunctionType(ir.VoidType(), [])), [])
        return builder.load_atomic(builder.inttoptr(arguments[0], _WORD.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), generate


@compiled
def _work(mailbox: Word, job: Word, target: Word) -> Word:
    """Do jobs up to a number; returns how many are done in all, fewer where there is no room."""
    words = at(mailbox, np.int64)
    while job < target:
        fields_at = words[JOBS_AT] + (job - words[BASE]) * JOB_BYTES
        fields = at(fields_at, np.int64)
        words[RETURNED] = 0
        status = _call_compiled(
            words[OBSERVE_ALL_AT], mailbox + RETURNED * 8, fields_at, words[STATE_AT], fields[6], fields[7]
        )
        if status != 0 or words[RETURNED] == 0:
            return job
        job += 1
        _publish(mailbox + DONE * 8, job)
    return job


@compiled
def _look(mailbox: Word) -> None:
    """Do jobs as they are put, until there are none for a while, or there is no room."""
    words = at(mailbox, np.int64)
    looks = 0
    while looks < LOOKS:
        target = _seen(mailbox + TARGET * 8)
        looks += 1
        if target > words[DONE]:
            looks = 0
            if _work(mailbox, words[DONE], target) < target:
                return


def _server(sources: int = SOURCES) -> Callable[[int], int]:
    @entry_point
    def serve(mailbox: Word) -> Word:
        """Do jobs until a message says that it is the end, or the pipe is closed."""
        _ = sources
        words = at(mailbox, np.int64)
        failures = 0
        while failures < TRIES:
            _look(mailbox)
            _publish(mailbox + ASLEEP * 8, 1)
            if _seen(mailbox + TARGET * 8) > words[DONE]:
                _work(mailbox, words[DONE], _seen(mailbox + TARGET * 8))
            got = _transfer(words[READ_AT], words[INBOX], mailbox + TICKET * 8, 8)
            _publish(mailbox + ASLEEP * 8, 0)
            if got == 0 or (got == 8 and words[TICKET] < 0):
                return 0
            failures = 0 if got == 8 else failures + 1
            if got == 8 and words[TICKET] > 0:
                words[ANSWER] = _work(mailbox, words[DONE], _seen(mailbox + TARGET * 8))
                words[ANSWERED] = words[TICKET]
                _transfer(words[WRITE_AT], words[OUTBOX], mailbox + ANSWERED * 8, 16)
        return 1

    return serve


_serve: Any = _server()
_SERVE = (types.int64,)
_OBSERVE_ALL = (types.int64,) * 6


def is_possible() -> bool:
    """Tell whether there are `read` and `write` of the C library, and processors that see writes in order."""
    return os.name == "posix" and _ORDERED


def _address_of(dispatcher: Any, signature: tuple[Any, ...]) -> int:
    """The address of compiled code."""
    dispatcher.compile(signature)
    found = dispatcher.overloads[signature]
    return int(found.library.get_pointer_to_function(found.fndesc.llvm_func_name))


class Worker:
    """A thread that does jobs in order, and the memory through which it is told of them.

    Args:
        method: the way of counting.
        state: address of the state of the kernel whose ledger it fills.
        make_room: puts the ledger's rows aside; called while the thread is idle.
        buffers: what the state refers to, kept as long as the thread runs.

    Attributes:
        jobs: number of jobs that were put since the last `reset`.
        memory: where they are put, `JOB_BYTES` each: the six words of `rows.Job`, STEP and MOMENT.
        pack: writes these eight words into the memory at a place.
    """

    def __init__(self, method: Method, state: int, make_room: Callable[[], None], buffers: object) -> None:
        self.jobs = 0
        self._told = 0
        self._base = 0
        self._ticket = 0
        self._make_room = make_room
        self._fence = threading.Lock()  # to take it has what was written before seen before what is read after
        self._mailbox = np.zeros(MAILBOX_WORDS, np.int64)
        self._words = self._mailbox.data
        self._ring = np.zeros(CAPACITY * JOB_BYTES, np.uint8)
        self.memory = self._ring.data
        self.pack = struct.Struct("8q").pack_into
        inbox, self._inbox = os.pipe()
        self._outbox, outbox = os.pipe()
        self._files = [inbox, self._inbox, self._outbox, outbox]
        library = ctypes.CDLL(None)
        read, write = (int(ctypes.cast(each, ctypes.c_void_p).value or 0) for each in (library.read, library.write))
        observe_all = _address_of(method.observe_all, _OBSERVE_ALL)
        self._mailbox[: JOBS_AT + 1] = read, write, inbox, outbox, observe_all, state, self._ring.ctypes.data
        serve = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 3)(_address_of(_serve, _SERVE))
        arguments = serve, self._mailbox, self._ring, buffers
        self._thread = threading.Thread(target=_run, args=arguments, name="depthgauge-probe", daemon=True)
        self._thread.start()

    @property
    def done(self) -> int:
        """Number of jobs that are done, of those since the last `reset`."""
        return int(self._words[DONE]) - self._base

    def tell(self) -> None:
        """Let the worker do what was put."""
        if self.jobs > self._told:
            self._told = self.jobs
            self._words[TARGET] = self._base + self.jobs
            with self._fence:
                asleep = self._words[ASLEEP]
            if asleep:
                os.write(self._inbox, _ticket.pack(0))

    def wait(self) -> None:
        """Let the worker do what was put, and wait for it."""
        self.tell()
        end = time.monotonic() + SPIN
        while _ORDERED and self.done < self.jobs and time.monotonic() < end:
            pass
        while not (_ORDERED and self.done == self.jobs) and self._answer() < self.jobs:
            self._make_room()

    def _answer(self) -> int:
        """The number of jobs that are done when the worker has nothing to do, or no room."""
        self._ticket += 1
        os.write(self._inbox, _ticket.pack(self._ticket))
        while True:  # an answer that was not waited for, as an exception came in between, may lie there
            ticket, done = _answer.unpack(os.read(self._outbox, _answer.size))
            if ticket == self._ticket:
                return int(done) - self._base

    def reset(self) -> None:
        """Begin anew, after `wait`."""
        self._base += self.jobs
        self._words[BASE] = self._base
        self.jobs = self._told = 0

    def stop(self) -> None:
        """End the thread, after `wait`."""
        os.write(self._inbox, _ticket.pack(-1))
        self._thread.join()
        self.abandon()

    def abandon(self) -> None:
        """Close the files of a worker that has ended, or lives in another process."""
        for file in self._files:
            with contextlib.suppress(OSError):
                os.close(file)
        self._files.clear()


def _run(serve: Callable[[int, int, int], int], mailbox: NDArray[np.int64], *_kept: object) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the others
    address = int(mailbox.ctypes.data)
    returned = np.zeros(2, np.int64)
    serve(int(returned.ctypes.data), int(returned.ctypes.data) + 8, address)
