"""Places where chunks run: this process, a pool of processes, a Dask cluster, any executor.

    place = pool(2)                  # or in_process(), dask("tcp://..."), Place(make_an_executor, workers=8)
    workers = Workers(place)
    with workers.executor(2) as executor:
        future = workers.submit(executor, measure, task)

When the block ends, so have the processes that were started in it, and what they started themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any, TypeVar

from depthgauge import environment, worker
from depthgauge.worker import RunError

_Result = TypeVar("_Result")

_PATIENCE = 30.0  # seconds that a cluster may take to bring its first worker


@dataclass(frozen=True)
class Place:
    """A place where chunks run.

    Attributes:
        start: makes an executor; called with the number of workers wanted, and again when an executor broke. A worker
            must run one chunk at a time.
        workers: number of chunks that run side by side.
        lost: the exception of a future whose worker died.
        remote: whether chunks run in other processes, which must load a study by themselves.
        ends: whether the processes that start here while chunks run end with the executor; those of a cluster stay.
    """

    start: Callable[[int], Executor]
    workers: int = 1
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)
    remote: bool = True
    ends: bool = True


class _InProcess(Executor):
    """An executor that runs each call when it is submitted."""

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
    return ProcessPoolExecutor(workers, mp_context=_Spawn(), initializer=worker.become_worker)


class _Spawned(SpawnProcess):
    """A new process that does not run the caller's script again: what it does is a module's, never `__main__`'s.

    So a script may run studies without a guard, and the workers of a long one do not repeat it.
    """

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - multiprocessing calls it so
        script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process)
        finally:
            sys.modules["__main__"] = script


class _Spawn(SpawnContext):
    """Processes that start anew: a forked one inherits locks and threads of numerical libraries."""

    Process = _Spawned


def beside(processes: int = 1) -> ProcessPoolExecutor:
    """Processes of this machine beside the workers, for work of the driver; they are there when this returns.

    What starts before the workers is not taken for one of them. It ends with the executor, and with this process.
    """
    executor = ProcessPoolExecutor(processes, mp_context=_Spawn(), initializer=worker.become_worker)
    with _uninterrupted():
        for _ in range(processes):  # a new process for each, since none of them has answered yet
            executor.submit(worker.ping)
    return executor


def dask(address: str | Any) -> Place:
    """Chunks run on a Dask cluster whose workers have one thread each.

    Args:
        address: the scheduler's address, or a `distributed.Client`.

    Raises:
        RunError: `distributed` is not installed, nobody answers, no worker comes within half a minute, or one has
            several threads.
    """
    try:
        from distributed import Client, KilledWorker  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise RunError("a Dask cluster needs the package distributed: pip install 'depthgauge[dask]'") from None
    try:
        connect: Any = Client  # untyped
        client = connect(address, timeout=10) if isinstance(address, str) else address
    except (OSError, ValueError) as error:
        raise RunError(f"no Dask scheduler answers at {address}: {error}") from error
    threads = _threads(client, address)
    if max(threads) > 1:
        raise RunError(
            "every Dask worker must have one thread (dask worker --nthreads 1), for equal numbers everywhere"
        )
    lost = (BrokenExecutor, KilledWorker)
    # A worker of a local cluster that dies is started again as a child of this process.
    return Place(lambda _: client.get_executor(pure=False, retries=0), len(threads), lost, ends=False)


def _threads(client: Any, address: object) -> list[int]:
    """Threads of each of a cluster's workers, once there is one.

    Raises:
        RunError: there is none.
    """
    if not client.nthreads():
        with contextlib.suppress(TimeoutError):
            client.wait_for_workers(1, timeout=_PATIENCE)
    threads = list(client.nthreads().values())
    if not threads:
        where = f" at {address}" if isinstance(address, str) else ""
        raise RunError(
            f"the Dask scheduler{where} has no worker, and none came within {_PATIENCE:.0f} s: start some"
            " (dask worker --nthreads 1), then run the same command again"
        )
    return threads


def chosen(workers: int | None, device: str, *, loadable: bool) -> Place:
    """Choose the place for a number of workers: 0 is this process, None one a core, on a GPU one.

    Args:
        workers: the user's number of workers.
        device: the tensors' device.
        loadable: whether other processes can load every study.
    """
    if workers == 0 or (workers is None and not loadable):
        return in_process()
    # Workers that share a GPU each hold a context of their own on it.
    return pool(1 if workers is None and device != "cpu" else workers)


class Workers:
    """The executors of a place, one after another, and the processes of the present one.

    Attributes:
        place: the place of the chunks.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._checked = False
        self._processes: set[multiprocessing.process.BaseProcess] = set()  # those of the present executor
        self._others: set[multiprocessing.process.BaseProcess] = set()  # children that were there before it

    @contextlib.contextmanager
    def executor(self, workers: int) -> Iterator[Executor]:
        """An executor whose processes are gone when the block is left, however it is left.

        Raises:
            RunError: its processes end as soon as they start.
        """
        self._processes = set()
        self._others = set(multiprocessing.active_children())
        executor = self.place.start(workers)
        patience = 0.0
        try:
            self._check(executor)
            yield executor
            executor.shutdown(wait=not self._processes)
            patience = 5.0  # a worker cannot leave while a thread runs that a study has forgotten
        except BaseException:
            executor.shutdown(wait=False)
            raise
        finally:
            _end(self._processes, patience)

    def submit(self, executor: Executor, do: Callable[..., _Result], *arguments: object) -> Future[_Result]:
        """Hands the call to the executor; Ctrl-C reaches no process that is started for it."""
        with _uninterrupted() if self.place.remote else contextlib.nullcontext():
            future = executor.submit(do, *arguments)
            if self.place.ends:
                self._processes |= set(multiprocessing.active_children()) - self._others
        return future

    def lost(self, future: Future[Any]) -> bool:
        """Tell whether the worker of an ended call died."""
        return not future.cancelled() and isinstance(future.exception(), self.place.lost)

    def exit_code(self) -> int | None:
        """The exit code of the one process of the present executor; below 0 a signal, None where it is not known."""
        if len(self._processes) != 1:
            return None
        [process] = self._processes
        patience = time.monotonic() + 5.0  # while the executor's own thread takes its child's code, nobody has it
        while (code := process.exitcode) is None and time.monotonic() < patience:
            time.sleep(0.01)
        return code

    def _check(self, executor: Executor) -> None:
        """Check that workers start at all; else every chunk would be recorded as one that kills."""
        if not self._checked:
            try:
                self.submit(executor, worker.ping).result()
            except self.place.lost:
                guard = "if this is a script, is the call below `if __name__ == '__main__':`?"
                raise RunError(f"the worker processes end as soon as they start; {guard}") from None
            self._checked = True


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block; processes started within never get it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(processes: Iterable[multiprocessing.process.BaseProcess], patience: float) -> None:
    """Ends workers, and what a worker that died has left behind: each leads a process group of its own."""
    processes = list(processes)
    _join(processes, patience)
    for how in (signal.SIGTERM, signal.SIGKILL):
        processes = [process for process in processes if process.exitcode != 0]
        for process in processes:
            with contextlib.suppress(OSError, AttributeError):  # the group is empty; groups are unknown here
                os.killpg(process.pid or 0, how)
            process.terminate() if how is signal.SIGTERM else process.kill()
        _join(processes, 1.0)


def _join(processes: Iterable[multiprocessing.process.BaseProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
