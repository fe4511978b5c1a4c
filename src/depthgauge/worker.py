"""What happens to a chunk in the process that runs it: equal conditions, a watchdog, failures as results."""

# ruff: noqa: PLC0415 - numerical libraries read their thread count as they are loaded; `enter` sets it first

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import random
import re
import signal
import socket
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from depthgauge import discovery, environment, target
from depthgauge.environment import Fingerprint
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.study import Case, Chunk, Context, Rows, Study, StudyError

if TYPE_CHECKING:
    from depthgauge.encoding import Encoded, Failure

_SLACK = 120.0  # seconds that a worker may take for imports, on top of the chunk's own limit


class RunError(RuntimeError):
    """The run cannot go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Task:
    """One chunk, and all that a worker needs to know."""

    chunk: Chunk
    study: str | Study  # where to load it from; the study itself in process
    device: str
    limit: float
    fingerprint: Mapping[str, object]
    work: Path
    driver: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))

    @property
    def trace(self) -> Path:
        """Where a dying worker writes its last words."""
        return self.work / f"{self.chunk.study}-{self.chunk.id}.trace"


@dataclass(frozen=True)
class Measured:
    """A chunk's file, the seconds it took, and what was warned of meanwhile."""

    encoded: Encoded
    seconds: float
    warnings: tuple[str, ...]


def enter() -> None:
    """Makes a worker of a new process, before numerical libraries are loaded.

    They get one thread each. Ctrl-C is the driver's. The worker and what it starts form a process group, so that none
    of them outlives the driver, however that ends.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    driver = multiprocessing.parent_process()
    if driver is not None:
        threading.Thread(target=_leave_with, args=(driver.sentinel,), daemon=True).start()


def _leave_with(sentinel: int) -> None:
    wait([sentinel])
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@cache
def _here(device: str) -> Fingerprint:
    return environment.identity(device)


def ready() -> None:
    """What a worker that can start at all can do."""


def measure(task: Task) -> Measured:
    """Runs one chunk, wherever this is called."""
    with warnings.catch_warnings(record=True) as caught, _watchdog(task) as rearm:
        warnings.resetwarnings()  # the same for every caller, or a warning might be an error in some
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        import depthgauge.encoding  # noqa: F401 - here, where the time limit does not count yet

        study = task.study
        if isinstance(study, str):
            study = discovery.load(study, task.chunk.study)
            changed = environment.differences(task.fingerprint, _here(task.device))
            changed += target.differences(task.fingerprint)
            if changed:
                where = f"a worker on {socket.gethostname()}"
                raise RunError(
                    f"{where} would give other numbers: {', '.join(changed)} (code must not change in a run)"
                )
        started = time.perf_counter()
        encoded = _run_chunk(task, study, rearm)
        seconds = time.perf_counter() - started
    told = dict.fromkeys(
        f"{task.chunk.study}: {w.category.__name__}: {' '.join(str(w.message).split())}" for w in caught
    )
    return Measured(encoded, seconds, tuple(told))


def _run_chunk(task: Task, study: Study, rearm: Callable[[], None]) -> Encoded:
    from depthgauge.encoding import encode

    chunk = task.chunk
    try:
        with contextlib.closing(_rows(task, study, chunk, rearm)) as rows:
            return encode(chunk, rows, task.fingerprint)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a study may raise anything, and that is a result
        first = _failure(study, chunk.cases[0], error)
    if len(chunk.cases) == 1:
        return encode(chunk, [first], task.fingerprint)
    return encode(chunk, _one_by_one(task, study, rearm), task.fingerprint)


def _one_by_one(task: Task, study: Study, rearm: Callable[[], None]) -> Iterator[Rows | Failure]:
    """Each case alone, to find which of them it is that raises."""
    from depthgauge.encoding import encode

    for case in task.chunk.cases:
        alone = Chunk(task.chunk.study, (case,))
        kept: list[Rows] = []
        try:
            with contextlib.closing(_rows(task, study, alone, rearm)) as rows:
                encode(alone, _noting(rows, kept), task.fingerprint)  # for its checks
        except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
            yield _failure(study, case, error)
        else:
            yield from kept


def _noting(rows: Iterable[Rows], kept: list[Rows]) -> Iterator[Rows]:
    """Keeps what passes, as it is now: a study may go on to fill the same buffer."""
    import numpy as np

    for row in rows:
        yield row
        kept.append(replace(row, value=np.array(row.value)))


def _rows(task: Task, study: Study, chunk: Chunk, rearm: Callable[[], None]) -> Generator[Rows]:
    rearm()
    with (
        _isolated(chunk.id, study.threads, task.device),
        tempfile.TemporaryDirectory(prefix="scratch-", dir=task.work if task.work.is_dir() else None) as scratch,
    ):
        yield from study.run(chunk.cases, Context(task.device, Path(scratch)))


def _failure(study: Study, case: Case, error: BaseException) -> Failure:
    from depthgauge.encoding import ERROR, Failure

    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        # No property of the case: it must not be recorded as its result.
        raise RunError(f"the disk is full: {error}; make room, and run the same command again") from error
    file = getattr(getattr(study.run, "__code__", None), "co_filename", "")
    frames = traceback.extract_tb(error.__traceback__)
    raised = next((frame for frame in reversed(frames) if frame.filename == file), frames[-1])
    where = "" if isinstance(error, StudyError) else f" ({_place(raised.name, raised.filename, raised.lineno)})"
    return Failure(case, ERROR, f"{type(error).__name__}: {error}{where}")


def _place(name: str, file: str, line: int | str | None) -> str:
    return f"in {name}, {Path(file).name}:{line}"


@contextlib.contextmanager
def _watchdog(task: Task) -> Iterator[Callable[[], None]]:
    """Ends a worker process whose chunk exceeds its limit; yields what sets the clock back.

    The watchdog of `faulthandler` is a thread in C: it needs no GIL, so that a hang in native code ends too. It also
    writes down where a crash happened. In the driver's own process nothing is ended.
    """
    if task.driver == (socket.gethostname(), os.getpid()):
        yield lambda: None
        return
    with contextlib.ExitStack() as stack:
        path = task.trace if task.work.is_dir() else Path(stack.enter_context(tempfile.TemporaryDirectory()), "trace")
        file: TextIO = stack.enter_context(path.open("w"))
        faulthandler.enable(file)
        faulthandler.dump_traceback_later(task.limit + _SLACK, exit=True, file=file)
        try:
            yield lambda: faulthandler.dump_traceback_later(task.limit, exit=True, file=file)
        finally:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.disable()
        path.unlink()


@contextlib.contextmanager
def _isolated(chunk: str, threads: int, device: str) -> Iterator[None]:
    """Global states that a chunk finds: random states from `chunk`, torch's defaults, `threads` threads; then restored.

    Studies draw from generators of their own; this keeps one that forgot from depending on what ran before it.
    """
    import numpy as np
    import threadpoolctl  # type: ignore[import-untyped] # it has no type information
    import torch

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what is guarded
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    precision, exact = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    gpu = device != "cpu"
    with (
        torch.random.fork_rng(devices=[torch.device(device).index or 0] if gpu else []),
        threadpoolctl.threadpool_limits(threads),
    ):
        try:
            seed_globals(0, Purpose.UNGUARDED, chunk, device=device)
            torch.set_num_threads(threads)
            torch.set_default_dtype(torch.float32)
            torch.set_grad_enabled(True)
            torch.set_float32_matmul_precision("highest")
            torch.set_flush_denormal(False)  # subnormals are among what is measured
            if gpu:
                # Atomic additions would make equal requests differ; operations that have no other way warn.
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            if gpu:  # not otherwise: the call imports the compiler, which takes seconds
                torch.use_deterministic_algorithms(exact)
            torch.set_float32_matmul_precision(precision)
            torch.set_num_threads(before[0])
            torch.set_default_dtype(before[1])
            torch.set_grad_enabled(before[2])
            np.random.set_state(legacy)  # noqa: NPY002 - as above
            random.setstate(python)


_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


def last_words(task: Task, times: str = " twice") -> tuple[str, str]:
    """What became of a worker that ended so often, from what its watchdog wrote down: status and message."""
    from depthgauge.encoding import LOST, TIMEOUT

    try:
        text = task.trace.read_text(errors="replace")
    except OSError:
        text = ""
    stacks = re.split(r"^(?=(?:Current t|T)hread 0x)", text, flags=re.MULTILINE)
    crashed = [stack for stack in stacks if stack.startswith("Current")]
    frames = list(_FRAME.finditer((crashed or stacks)[-1]))  # the main thread comes last
    origin = task.study if isinstance(task.study, str) else ""
    stem = Path(origin).stem if origin.endswith(".py") else origin.rpartition(".")[2]
    own = [frame for frame in frames if Path(frame["file"]).stem == stem] or frames
    where = f" ({_place(own[0]['name'], own[0]['file'], own[0]['line'])})" if own else ""
    if text.startswith("Timeout"):
        return TIMEOUT, f"exceeded the limit of {task.limit:g} s{times}{where}"
    fatal = re.search(r"^Fatal Python error: (.+)$", text, re.MULTILINE)
    return LOST, f"the worker ended{times}: {fatal[1] if fatal else 'killed from outside, or out of memory'}{where}"
