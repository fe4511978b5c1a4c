"""Running a chunk in its process: equal conditions, a watchdog, failures as results."""

# ruff: noqa: PLC0415 - numerical libraries read their thread count as they are loaded; `enter` sets it first

from __future__ import annotations

import contextlib
import errno
import faulthandler
import multiprocessing
import os
import re
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from depthgauge import code, discovery, factories, identity, origin
from depthgauge.foreign import as_line, by_machine, contained, original, undivided
from depthgauge.isolation import isolated
from depthgauge.study import Chunk, Context, Rows, Study

if TYPE_CHECKING:
    from depthgauge.encoding import Encoded, Failure

_SLACK = 120.0  # seconds that a worker may take for imports, on top of the chunk's own limit
_is_worker = False


class RunError(RuntimeError):
    """Error that ends a run; the message is one sentence for the user."""


@dataclass(frozen=True)
class Task:
    """A worker's task: one chunk, with its study, device and limits."""

    chunk: Chunk
    study: str | Study  # where to load it from; the study itself in process
    device: str
    limit: float
    fingerprint: Mapping[str, object]
    work: Path
    driver: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))

    @property
    def trace(self) -> Path:
        """The file for the last words of a dying worker."""
        return self.work / f"{self.chunk.study}-{self.chunk.id}.trace"


@dataclass(frozen=True)
class Measured:
    """A chunk's file, the seconds it took, and the warnings meanwhile."""

    encoded: Encoded
    seconds: float
    warnings: tuple[str, ...]


def become_worker() -> None:
    """Makes a worker of a new process, before numerical libraries are loaded.

    They get one thread each. Ctrl-C is the driver's. The worker and what it starts form a process group, so that none
    of them outlives the driver, however that ends.
    """
    global _is_worker  # noqa: PLW0603 - of the process as a whole
    _is_worker = True
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


def is_worker() -> bool:
    """Tell whether this process is a worker of a run."""
    return _is_worker


def ping() -> None:
    """Do nothing: a call that every started worker can answer."""


def measure(task: Task) -> Measured:
    """Runs one chunk, wherever this is called."""
    with warnings.catch_warnings(record=True) as caught, _watchdog(task) as rearm:
        warnings.resetwarnings()  # the same for every caller, or a warning might be an error in some
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        import depthgauge.encoding  # noqa: F401 - here, where the time limit does not count yet

        study = _loaded(task)
        before = code.loaded_files()
        started = time.perf_counter()
        encoded = _run_chunk(task, study, rearm)
        seconds = time.perf_counter() - started
        try:
            code.check_new(before)  # more of the study or the model, imported just now
        except code.ChangedError as error:
            raise _other([str(error)]) from error
    lines = dict.fromkeys(f"{task.chunk.study}: {w.category.__name__}: {as_line(w.message)}" for w in caught)
    return Measured(encoded, seconds, tuple(lines))


def _loaded(task: Task) -> Study:
    """The study; in another process than the driver's, only where that would measure the same."""
    if isinstance(task.study, Study):
        return task.study
    study = discovery.load(task.study, task.chunk.study)
    if isinstance(model := task.fingerprint.get("model"), str) and factories.is_factory(model):
        factories.load(model)
    if changed := identity.of_process(task.fingerprint, task.study, task.device):
        raise _other(changed)
    return study


def _other(changed: Sequence[str]) -> RunError:
    where = f"a worker on {socket.gethostname()}"
    return RunError(
        f"{where} would give other numbers: {', '.join(changed)} (code must not change while a run is under way: run"
        " the same command again)"
    )


def _run_chunk(task: Task, study: Study, rearm: Callable[[], None]) -> Encoded:
    from depthgauge.encoding import MACHINE, Failure, encode

    chunk = task.chunk

    def failed(raised: _Raised) -> Encoded:
        failures = [Failure(case, raised.status, raised.message) for case in chunk.cases]
        return encode(chunk, failures, task.fingerprint)

    whole = _attempt(task, study, chunk, rearm)
    if not isinstance(whole, _Raised):
        return whole
    if len(chunk.cases) == 1:
        return failed(whole)
    alone = encode(chunk, _one_by_one(task, study, rearm), task.fingerprint)
    if whole.status != MACHINE or alone.summary.failed:
        return alone
    # What failed was the machine, for all of them together; alone, their numbers need not be those of a batch.
    again = _attempt(task, study, chunk, rearm)
    return failed(again) if isinstance(again, _Raised) else again


def _one_by_one(task: Task, study: Study, rearm: Callable[[], None]) -> Iterator[Rows | Failure]:
    """Each case alone, to find which of them it is that raises."""
    from depthgauge.encoding import Failure

    for case in task.chunk.cases:
        rows: list[Rows] = []
        done = _attempt(task, study, Chunk(task.chunk.study, (case,)), rearm, rows)
        if isinstance(done, _Raised):
            yield Failure(case, done.status, done.message)
        else:
            yield from rows


@dataclass(frozen=True)
class _Raised:
    """Text of a study's exception: the exception itself would keep the memory of its frames."""

    status: str
    message: str


def _attempt(
    task: Task, study: Study, chunk: Chunk, rearm: Callable[[], None], noted: list[Rows] | None = None
) -> Encoded | _Raised:
    """The chunk's file, or what the study raised meanwhile; `noted` gets its rows."""
    from depthgauge.encoding import encode

    try:
        with contained(), contextlib.closing(_rows(task, study, chunk, rearm)) as rows:
            return encode(chunk, rows if noted is None else _noting(rows, noted), task.fingerprint)
    except Exception as error:  # noqa: BLE001 - a study may raise anything, and that is a result
        return _put_into_words(study, original(error))


def _noting(rows: Iterable[Rows], noted: list[Rows]) -> Iterator[Rows]:
    """Copy the rows that pass into `noted`: a study may fill the same buffer again."""
    import numpy as np

    for row in rows:
        yield row
        noted.append(replace(row, value=np.array(row.value)))


def _rows(task: Task, study: Study, chunk: Chunk, rearm: Callable[[], None]) -> Generator[Rows]:
    rearm()
    with (
        isolated(chunk.id, study.threads, task.device),
        tempfile.TemporaryDirectory(prefix="scratch-", dir=task.work if task.work.is_dir() else None) as scratch,
        undivided(),  # before the child removes what is its parent's
    ):
        yield from study.run(chunk.cases, Context(task.device, Path(scratch)))


def _put_into_words(study: Study, error: BaseException) -> _Raised:
    from depthgauge.encoding import ERROR, MACHINE

    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        # No property of the case: it must not be recorded as its result.
        raise RunError(f"the disk is full: {as_line(error)}; make room, and run the same command again") from error
    return _Raised(MACHINE if by_machine(error) else ERROR, origin.describe(study, error))


@contextlib.contextmanager
def _watchdog(task: Task) -> Iterator[Callable[[], None]]:
    """End a worker process whose chunk exceeds its limit; yield a function that resets the clock.

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


_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


def last_words(task: Task, code_of_exit: int | None, times: str = " twice") -> tuple[str, str]:
    """Return the status and message of a worker that ended, from its watchdog's notes and its exit code, if known."""
    from depthgauge.encoding import LOST, TIMEOUT

    try:
        text = task.trace.read_text(errors="replace")
    except OSError:
        text = ""
    stacks = re.split(r"^(?=(?:Current t|T)hread 0x)", text, flags=re.MULTILINE)
    crashed = [stack for stack in stacks if stack.startswith("Current")]
    frames = list(_FRAME.finditer((crashed or stacks)[-1]))  # the main thread comes last
    wrote = origin.author(task.study)
    frame = next((frame for frame in frames if wrote(frame["file"])), frames[0] if frames else None)
    where = f" ({code.place(frame['name'], frame['file'], frame['line'])})" if frame else ""
    if text.startswith("Timeout"):
        return TIMEOUT, f"exceeded the limit of {task.limit:g} s{times}{where}"
    fatal = re.search(r"^Fatal Python error: (.+)$", text, re.MULTILINE)
    return LOST, f"the worker ended{times}: {fatal[1] if fatal else _ended(code_of_exit)}{where}"


def _ended(code_of_exit: int | None) -> str:
    if code_of_exit is not None and code_of_exit >= 0:
        return f"something in it left the process with exit code {code_of_exit}"
    return "killed from outside, or out of memory"
