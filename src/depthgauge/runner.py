"""Running studies: chunks go through a `concurrent.futures.Executor`, finished ones into the store.

    outcome = run("gradient_flow", out="runs/x", preset="quick", workers=2)
    outcome.stored.frame("gradient_flow")

Run again with the same `out`, and only what is not finished is run. The rows are bit-identical in process, for any
number of workers and any executor, and for a run that was killed and resumed: each chunk starts from global random
states derived from its own id, with the study's number of threads, and knows nothing of other chunks.

A case that raises becomes a row with status `error`. A worker that dies or exceeds the time limit takes down what
runs beside it; those chunks are retried once, each alone; one that kills its worker again becomes rows with status
`lost` or `timeout`, and the rest goes on.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import hashlib
import inspect
import multiprocessing
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from depthgauge import discovery, environment
from depthgauge.environment import Fingerprint
from depthgauge.store import ERROR, LOST, TIMEOUT, Encoded, Failure, Store, Stored, StoreError, Summary, encode
from depthgauge.study import Case, Chunk, Context, Rows, Study, StudyError

_SLACK = 120.0  # seconds that a worker may take for imports, on top of the chunk's own limit


class UnknownPresetError(ValueError):
    """The study has no such preset; the message names the nearest."""


class RunError(RuntimeError):
    """The run cannot go on; the message is one sentence for the user."""


# -- places: where chunks run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where chunks run.

    Attributes:
        start: makes an executor; called with the number of workers wanted, and again when an executor broke. A worker
            must run one chunk at a time.
        workers: how many chunks run side by side.
        lost: what a future raises when its worker died.
        remote: whether chunks run in other processes, which must load a study by themselves.
    """

    start: Callable[[int], Executor]
    workers: int = 1
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)
    remote: bool = True


class _InProcess(Executor):
    """Runs at once what is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - an executor hands every exception to the future
            future.set_exception(error)
        return future


def in_process() -> Place:
    """Chunks run in this process, one after another; nothing guards it against a chunk that hangs or dies."""
    return Place(lambda _: _InProcess(), remote=False)


def pool(workers: int | None = None) -> Place:
    """Chunks run in worker processes of this machine (default: one a core)."""
    return Place(_pool, environment.cores() if workers is None else workers)


def _pool(workers: int) -> Executor:
    spawn = multiprocessing.get_context("spawn")  # a forked child inherits locks and threads of numerical libraries
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=_enter_worker)


def dask(address: str | Any) -> Place:
    """Chunks run on a Dask cluster whose workers have one thread each.

    Args:
        address: the scheduler's address, or a `distributed.Client`.

    Raises:
        RunError: `distributed` is not installed, nobody answers, or a worker has several threads.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise RunError("a Dask cluster needs the package distributed: pip install 'depthgauge[dask]'") from None
    try:
        client = Client(address, timeout=10) if isinstance(address, str) else address
    except (OSError, ValueError) as error:
        raise RunError(f"no Dask scheduler answers at {address}: {error}") from error
    threads = list(client.nthreads().values())
    if not threads or max(threads) > 1:
        raise RunError(
            "every Dask worker must have one thread (dask worker --nthreads 1), for equal numbers everywhere"
        )
    return Place(lambda _: client.get_executor(pure=False, retries=0), len(threads), (BrokenExecutor, KilledWorker))


# -- in the worker -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
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
class _Measured:
    encoded: Encoded
    seconds: float
    warnings: tuple[str, ...]


def _enter_worker() -> None:
    """Before numerical libraries are loaded: one thread each; Ctrl-C is the driver's; no orphan outlives the driver."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    driver = multiprocessing.parent_process()
    if driver is not None:
        threading.Thread(target=_leave_with, args=(driver.sentinel,), daemon=True).start()


def _leave_with(sentinel: int) -> None:
    from multiprocessing.connection import wait as wait_for

    wait_for([sentinel])
    os._exit(1)


@cache
def _here(device: str) -> Fingerprint:
    return environment.identity(device)


def _ready() -> None:
    """What a worker that can start at all can do."""


def _measure(task: _Task) -> _Measured:
    """Runs one chunk, wherever this is called."""
    with warnings.catch_warnings(record=True) as caught, _watchdog(task) as rearm:
        warnings.resetwarnings()  # the same for every caller, or a warning might be an error in some
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)
        study = task.study
        if isinstance(study, str):
            study = discovery.load(study, task.chunk.study)
            changed = environment.differences(task.fingerprint, _here(task.device))
            if changed:
                raise RunError(f"a worker on {socket.gethostname()} would give other numbers: {', '.join(changed)}")
        started = time.perf_counter()
        encoded = _run_chunk(task, study, rearm)
        seconds = time.perf_counter() - started
    told = dict.fromkeys(
        f"{task.chunk.study}: {w.category.__name__}: {' '.join(str(w.message).split())}" for w in caught
    )
    return _Measured(encoded, seconds, tuple(told))


def _run_chunk(task: _Task, study: Study, rearm: Callable[[], None]) -> Encoded:
    chunk = task.chunk
    try:
        with contextlib.closing(_rows(task, study, chunk, rearm)) as rows:
            return encode(chunk, rows, task.fingerprint)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a study may raise anything, and that is a result
        first = _failure(chunk.cases[0], error)
    if len(chunk.cases) == 1:
        return encode(chunk, [first], task.fingerprint)
    return encode(chunk, _one_by_one(task, study, rearm), task.fingerprint)


def _one_by_one(task: _Task, study: Study, rearm: Callable[[], None]) -> Iterator[Rows | Failure]:
    """Each case alone, to find which of them it is that raises."""
    for case in task.chunk.cases:
        alone = Chunk(task.chunk.study, (case,))
        kept: list[Rows] = []
        try:
            with contextlib.closing(_rows(task, study, alone, rearm)) as rows:
                encode(alone, (kept.append(_snapshot(row)) or row for row in rows), task.fingerprint)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
            yield _failure(case, error)
        else:
            yield from kept


def _snapshot(rows: Rows) -> Rows:
    """Rows that stay what they are when the study goes on to fill the same buffer."""
    import numpy as np

    return replace(rows, value=np.array(rows.value)) if isinstance(rows, Rows) else rows


def _rows(task: _Task, study: Study, chunk: Chunk, rearm: Callable[[], None]) -> Generator[Rows]:
    rearm()
    with (
        _isolated(chunk.id, study.threads, task.device),
        tempfile.TemporaryDirectory(prefix="scratch-", dir=task.work if task.work.is_dir() else None) as scratch,
    ):
        yield from study.run(chunk.cases, Context(task.device, Path(scratch)))


def _failure(case: Case, error: BaseException) -> Failure:
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise RunError(
            "the disk is full; what was finished is kept: make room and run the same command again"
        ) from error
    where = ""
    frame = error.__traceback__
    while frame is not None:  # the innermost frame is where it was raised
        code = frame.tb_frame.f_code
        if Path(code.co_filename) != Path(__file__):
            where = f" (in {code.co_name}, {Path(code.co_filename).name}:{frame.tb_lineno})"
        frame = frame.tb_next
    return Failure(case, ERROR, f"{type(error).__name__}: {error}" + ("" if isinstance(error, StudyError) else where))


@contextlib.contextmanager
def _watchdog(task: _Task) -> Iterator[Callable[[], None]]:
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
def _isolated(seed: str, threads: int, device: str) -> Iterator[None]:
    """Global states that a chunk finds: random states from `seed`, torch's defaults, `threads` threads; then restored.

    Studies draw from generators of their own; this keeps one that forgot from depending on what ran before it.
    """
    import numpy as np
    import threadpoolctl
    import torch

    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global state is what is guarded
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    precision, exact = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    gpu = device != "cpu"
    with (
        torch.random.fork_rng(devices=[torch.device(device).index or 0] if gpu else []),
        threadpoolctl.threadpool_limits(threads),
    ):
        try:
            random.seed(number)
            np.random.seed(number)  # noqa: NPY002 - as above
            torch.manual_seed(number)
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
            torch.use_deterministic_algorithms(exact)
            torch.set_float32_matmul_precision(precision)
            torch.set_num_threads(before[0])
            torch.set_default_dtype(before[1])
            torch.set_grad_enabled(before[2])
            np.random.set_state(legacy)  # noqa: NPY002 - as above
            random.setstate(python)


# -- in the driver -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        study: the study that the last finished chunk belongs to.
        done: chunks finished, of all studies, those of earlier runs included.
        total: chunks asked for.
        failed: cases without a result so far.
        left: estimated seconds to go; None while nothing is known.
        note: something to tell the user, in one line; empty as a rule.
    """

    study: str
    done: int
    total: int
    failed: int
    left: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        stored: the rows.
        studies: the studies asked for.
        ran: chunks that were run.
        kept: chunks that earlier runs had finished.
        rows: rows with status `ok`, of this request.
        failed: status -> cases without a result, of this request.
    """

    stored: Stored
    studies: Mapping[str, Study]
    ran: int
    kept: int
    rows: int
    failed: Mapping[str, int]


@dataclass(frozen=True)
class _Asked:
    study: Study
    origin: str | None
    source: str | None
    chunks: tuple[Chunk, ...]


def run(
    *studies: str | Study,
    out: str | Path,
    preset: str = "quick",
    seeds: int | None = None,
    device: str = "cpu",
    workers: int | None = None,
    place: Place | None = None,
    fresh: bool = False,
    time_limit: float | None = None,
    sources: Sequence[str] = (),
    command: str = "",
    notice: Callable[[Sequence[Study]], None] | None = None,
    observe: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Runs what of the studies is not finished in `out`, and returns what is there then.

    Args:
        studies: names, or studies; one that is not its module's `STUDY` runs in process only. None: all there are.
        out: the run directory; the same one again resumes.
        preset: which of the studies' grids.
        seeds: repetitions, in place of the preset's own.
        device: `cpu`, `cuda`, `cuda:1` or `auto`.
        workers: worker processes; 0 runs in this process. Default: one a core, on a GPU one.
        place: where chunks run instead (`dask(address)`, or any executor).
        fresh: forget what is stored in `out`.
        time_limit: seconds that a chunk may take, in place of the studies' own.
        sources: where studies of your own are (see `discovery`).
        command: recorded as what makes this run again.
        notice: called with the studies before anything is run.
        observe: called after every chunk, and with every note.

    Raises:
        UnknownStudyError: no study of that name.
        UnknownPresetError: a study has no preset of that name.
        StudyError: a study cannot be loaded, or contradicts itself.
        DeviceError: no such device.
        StoreError: `out` cannot be used: in use, other numbers, disk full.
        RunError: the workers cannot do it.
    """
    device = environment.device(device)
    asked = tuple(_ask(study, preset, seeds, sources) for study in studies or _names(sources))
    if place is None:
        place = _place(workers, device, all(one.origin for one in asked))
    if place.remote and (alone := [one.study.name for one in asked if one.origin is None]):
        raise StudyError(f"study {alone[0]!r} is no module's STUDY, so that only this process has it: use workers=0")
    if notice is not None:
        notice([one.study for one in asked])
    fingerprint = environment.fingerprint(device)
    with Store.open(out, fingerprint, fresh=fresh) as store:
        request = {one.study.name: _request(one, preset, seeds) for one in asked}
        store.plan(request, {one.study.name: one.chunks for one in asked})
        store.record(command=command or _command(store.run["request"], device, Path(out), sources))
        driver = _Driver(store, place, asked, device, time_limit, observe or (lambda _: None))
        with store_errors(out):
            driver.drive()
        return driver.outcome()


@contextlib.contextmanager
def store_errors(out: str | Path) -> Iterator[None]:
    """Turns an operating system's refusal into a `StoreError`."""
    from depthgauge.store import plainly

    with plainly(f"the run into {out} stopped"):
        yield


def _names(sources: Sequence[str]) -> tuple[str, ...]:
    names = tuple(found.name for found in discovery.discover(sources))
    if not names:
        raise discovery.UnknownStudyError("there are no studies to run")
    return names


def _ask(study: str | Study, preset: str, seeds: int | None, sources: Sequence[str]) -> _Asked:
    origin: str | None
    source: str | None
    if isinstance(study, Study):
        origin, source = _origin(study), _source(study)
    else:
        found = discovery.find(study, sources)
        study, origin, source = found.load(), found.origin, found.source()
    check_preset(study.name, preset, tuple(study.presets))
    chunks = study.chunks(preset, seeds)
    for chunk in chunks:
        for case in chunk.cases:
            for name, value in case.params:
                if type(value) not in {str, int, float, bool, type(None)}:
                    raise StudyError(
                        f"study {study.name!r}: parameter {name!r} is a {type(value).__name__};"
                        " parameters are plain str, int, float, bool or None"
                    )
    return _Asked(study, origin, source, chunks)


def check_preset(study: str, preset: str, presets: Sequence[str]) -> None:
    """Whether the study has the preset.

    Raises:
        UnknownPresetError: it has not; the message names the nearest.
    """
    import difflib

    if preset not in presets:
        near = difflib.get_close_matches(preset, presets, n=1)
        listed = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(presets)}"
        raise UnknownPresetError(f"study {study!r} has no preset {preset!r}; {listed}")


def _origin(study: Study) -> str | None:
    """The module or file whose `STUDY` this is, if another process can load it from there."""
    for name, module in list(sys.modules.items()):
        if vars(module).get("STUDY") is study and name not in {"__main__", "__mp_main__"}:
            with contextlib.suppress(ImportError, ValueError):
                if find_spec(name) is not None and not name.startswith("depthgauge_study_"):
                    return name
            file = getattr(module, "__file__", None)
            return str(Path(file).resolve()) if file else None
    return None


def _source(study: Study) -> str | None:
    """SHA-256 of the code of a study that was handed in, as far as it can be told."""
    if getattr(study.run, "__module__", "").startswith("depthgauge."):
        return None
    try:
        file = Path(inspect.getfile(study.run))
        text = file.read_bytes() if file.is_file() else inspect.getsource(study.run).encode()
    except (TypeError, OSError):
        return None
    return hashlib.sha256(text).hexdigest()


def _place(workers: int | None, device: str, loadable: bool) -> Place:
    if workers == 0 or (workers is None and not loadable):
        return in_process()
    # Workers that share a GPU each hold a context of their own on it.
    return pool(1 if workers is None and device != "cpu" else workers)


def _request(asked: _Asked, preset: str, seeds: int | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "preset": preset,
        "seeds": seeds,
        "origin": asked.origin,
        "threads": asked.study.threads,
    }
    return entry | ({"source": asked.source} if asked.source else {})


def _command(request: Mapping[str, Mapping[str, object]], device: str, out: Path, sources: Sequence[str]) -> str:
    """What makes everything in the directory again."""
    import shlex

    groups: dict[tuple[object, object], list[str]] = {}
    for name, entry in request.items():
        groups.setdefault((entry["preset"], entry["seeds"]), []).append(name)
    commands = []
    for (preset, seeds), names in groups.items():
        words = ["depthgauge", "run", *names, "--preset", str(preset)]
        words += [] if seeds is None else ["--seeds", str(seeds)]
        words += [] if device == "cpu" else ["--device", device]
        words += [word for source in sources for word in ("--studies", source)]
        commands.append(shlex.join([*words, "--out", str(out)]))
    return " && ".join(commands)


class _Driver:
    """One run: what is to do, what came back, how long the rest may take."""

    def __init__(
        self,
        store: Store,
        place: Place,
        asked: Sequence[_Asked],
        device: str,
        time_limit: float | None,
        observe: Callable[[Progress], None],
    ) -> None:
        self.store = store
        self.place = place
        self.asked = asked
        self.device = device
        self.observe = observe
        self.finished: dict[str, Summary] = {}
        self.total = sum(len(one.chunks) for one in asked)
        self.checked = False
        self.told: set[str] = set()
        self.ran = 0
        self.tasks: list[_Task] = []
        self.exclusive = {one.study.name for one in asked if one.study.exclusive}
        for one in asked:
            kept = store.finished(one.chunks)
            self.finished |= {f"{one.study.name}/{chunk}": summary for chunk, summary in kept.items()}
            marked = {**store.run["fingerprint"], **({"study_source": one.source} if one.source else {})}
            self.tasks += [
                _Task(
                    chunk,
                    one.origin if place.remote and one.origin else one.study,
                    device,
                    time_limit or one.study.time_limit,
                    marked,
                    store.work.resolve(),
                )
                for chunk in one.chunks
                if chunk.id not in kept
            ]
        self.kept = len(self.finished)
        self.failed = sum(sum(summary.failed.values()) for summary in self.finished.values())
        self.cost = _Cost(task.chunk for task in self.tasks)

    def drive(self) -> None:
        for line in self.store.damaged:
            self._note(line)
        self._tell(self.asked[0].study.name)
        self._together([task for task in self.tasks if task.chunk.study not in self.exclusive], self.place.workers)
        self._together([task for task in self.tasks if task.chunk.study in self.exclusive], 1)

    def _together(self, tasks: Sequence[_Task], workers: int) -> None:
        """Runs tasks side by side, never more than there are workers: few are suspect when one of them dies."""
        workers = min(workers, len(tasks))
        queue = deque(tasks)
        while queue:
            suspects: list[_Task] = []
            pending: dict[Future[_Measured], _Task] = {}
            results: dict[Future[_Measured], _Task] = {}
            with self._executor(workers) as executor, self._salvaging(pending, results):
                while (queue or pending) and not suspects:
                    self._submit(executor, queue, pending, workers)
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    results |= {future: pending.pop(future) for future in done}
                    # Before results go to the disk, for no worker to wait; but an exclusive chunk has nothing beside it.
                    if workers > 1 and not any(self._is_lost(future) for future in done):
                        self._submit(executor, queue, pending, workers)
                    self._take(results, suspects)
                results |= pending  # a broken pool has failed them all; another executor finishes them
                pending.clear()
                self._take(results, suspects)
            for task in suspects:
                self._note(f"{task.chunk.study}: a worker ended in chunk {task.chunk.id}; once more, alone")
                self._alone(task)

    def _submit(
        self, executor: Executor, queue: deque[_Task], pending: dict[Future[_Measured], _Task], workers: int
    ) -> None:
        while queue and len(pending) < workers:
            try:
                pending[executor.submit(_measure, queue[0])] = queue[0]
            except self.place.lost:  # it broke since: whoever did it is among the pending
                if not pending:
                    raise
                return
            queue.popleft()

    def _is_lost(self, future: Future[_Measured]) -> bool:
        return not future.cancelled() and isinstance(future.exception(), self.place.lost)

    def _take(self, results: dict[Future[_Measured], _Task], suspects: list[_Task]) -> None:
        while results:
            future, task = next(iter(results.items()))
            try:
                measured = future.result()
            except self.place.lost:
                suspects.append(task)
            else:
                self._keep(task, measured)
            del results[future]

    @contextlib.contextmanager
    def _salvaging(self, *futures: dict[Future[_Measured], _Task]) -> Iterator[None]:
        """Keeps what is finished when the user interrupts."""
        try:
            yield
        except KeyboardInterrupt:
            for future, task in [pair for some in futures for pair in some.items()]:
                if future.done() and not future.cancelled() and future.exception() is None:
                    self._keep(task, future.result())
            raise

    def _alone(self, task: _Task) -> None:
        task.trace.unlink(missing_ok=True)
        with self._executor(1) as executor:
            future = executor.submit(_measure, task)
            try:
                measured = future.result()
            except self.place.lost:
                status, message = _last_words(task)
                failures = [Failure(case, status, message) for case in task.chunk.cases]
                measured = _Measured(encode(task.chunk, failures, task.fingerprint), 0.0, ())
                self._note(f"{task.chunk.study}: chunk {task.chunk.id}: {message}")
            self._keep(task, measured)

    def _keep(self, task: _Task, measured: _Measured) -> None:
        self.store.write(task.chunk, measured.encoded.data)
        self.finished[f"{task.chunk.study}/{task.chunk.id}"] = measured.encoded.summary
        self.failed += sum(measured.encoded.summary.failed.values())
        self.ran += 1
        self.cost.learn(task.chunk, measured.seconds)
        for line in measured.warnings:
            self._note(line)
        self._tell(task.chunk.study)

    def _note(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self._tell(self.asked[0].study.name, line)

    def _tell(self, study: str, note: str = "") -> None:
        left = self.cost.left(self.place.workers)
        self.observe(Progress(study, len(self.finished), self.total, self.failed, left, note))

    @contextlib.contextmanager
    def _executor(self, workers: int) -> Iterator[Executor]:
        """An executor whose processes are gone when the block is left, however it is left."""
        before = set(multiprocessing.active_children())
        executor = self.place.start(workers)
        try:
            self._check(executor)
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            _end(set(multiprocessing.active_children()) - before)
            raise
        executor.shutdown(wait=True, cancel_futures=True)

    def _check(self, executor: Executor) -> None:
        """Whether workers start at all; else every chunk would be recorded as one that kills."""
        if not self.checked:
            try:
                executor.submit(_ready).result()
            except self.place.lost:
                guard = "if this is a script, is the call below `if __name__ == '__main__':`?"
                raise RunError(f"the worker processes end as soon as they start; {guard}") from None
            self.checked = True

    def outcome(self) -> Outcome:
        failed: dict[str, int] = {}
        for summary in self.finished.values():
            for status, cases in summary.failed.items():
                failed[status] = failed.get(status, 0) + cases
        return Outcome(
            stored=self.store.stored(),
            studies={one.study.name: one.study for one in self.asked},
            ran=self.ran,
            kept=self.kept,
            rows=sum(summary.rows for summary in self.finished.values()),
            failed=dict(sorted(failed.items())),
        )


def _end(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    processes = list(processes)
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + 2
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)


def _last_words(task: _Task) -> tuple[str, str]:
    """What became of a worker that ended twice, from what its watchdog wrote down: status and message."""
    try:
        text = task.trace.read_text(errors="replace")
    except OSError:
        text = ""
    stacks = re.split(r"^(?:Current )?[Tt]hread 0x", text, flags=re.MULTILINE)
    frames = list(_FRAME.finditer(stacks[-1]))  # the main thread comes last
    origin = task.study if isinstance(task.study, str) else ""
    stem = Path(origin).stem if origin.endswith(".py") else origin.rpartition(".")[2]
    own = [frame for frame in frames if Path(frame["file"]).stem == stem] or frames
    where = f" in {own[0]['name']}, {Path(own[0]['file']).name}:{own[0]['line']}" if own else ""
    if text.startswith("Timeout"):
        return TIMEOUT, f"exceeded the limit of {task.limit:g} s twice{where}"
    fatal = re.search(r"^(?:Fatal Python error|Windows fatal exception): (.+)$", text, re.MULTILINE)
    return LOST, f"the worker ended twice: {fatal[1] if fatal else 'killed from outside, or out of memory'}{where}"


class _Cost:
    """Seconds a case, learnt from the chunks of the same grid as far as there are any."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self.known: dict[tuple[str, ...], tuple[float, int]] = {}
        self.waiting = Counter[tuple[tuple[str, ...], ...]]()
        for chunk in chunks:
            self.waiting[_kinds(chunk)] += len(chunk.cases)

    def learn(self, chunk: Chunk, seconds: float) -> None:
        kinds = _kinds(chunk)
        self.waiting[kinds] -= len(chunk.cases)
        for kind in kinds:
            total, cases = self.known.get(kind, (0.0, 0))
            self.known[kind] = total + seconds, cases + len(chunk.cases)

    def left(self, workers: int) -> float | None:
        if not self.known:
            return None
        seconds = 0.0
        for kinds, waiting in self.waiting.items():
            total, cases = next(self.known[kind] for kind in kinds if kind in self.known)
            seconds += total / cases * waiting
        return seconds / max(workers, 1)


def _kinds(chunk: Chunk) -> tuple[tuple[str, ...], ...]:
    """What chunks of like cost have in common, the closest first: numbers differ, names and words agree."""
    params = chunk.cases[0].params
    words = tuple(f"{name}={value}" if isinstance(value, str) else name for name, value in params)
    return (chunk.study, *words), (chunk.study, *(name for name, _ in params)), (chunk.study,), ()
