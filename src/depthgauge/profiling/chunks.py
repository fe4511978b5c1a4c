"""Traces of studies: one chunk of each is run once more, under the profiler, when everything is measured and stored.

What is stored has seen no profiler: the chunk's rows of this second run are thrown away.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from types import FrameType

from depthgauge import worker
from depthgauge.folder import Folder
from depthgauge.identity import marks
from depthgauge.profiling.capture import ProfileError
from depthgauge.profiling.turns import activities
from depthgauge.running import Outcome
from depthgauge.timing import Device
from depthgauge.timing.subject import silent
from depthgauge.worker import RunError, Task

# ruff: noqa: PLC0415 - torch is needed in the process that runs the chunk alone

_WARM = 2.0  # seconds without the profiler: what is imported, allocated and compiled once is not what a run is about
_RECORDED = 0.5  # seconds: some ten thousand events


class _Enough(BaseException):
    """End of the time; no `except Exception` of a study stops it."""


def traces(outcome: Outcome, device: str) -> Iterator[tuple[str, Path]]:
    """Records the chunk in the middle of each study's grid; yields study and trace, `traces/STUDY/*.pt.trace.json.gz`.

    A trace covers the first half second of the chunk, which has run for two seconds before, or to its end, so that
    imports and first calls are done. The chunk runs in a process of its own, as it did when it was measured; in this
    one where no other process can load the study.

    Raises:
        ProfileError: a chunk cannot be run again, or its trace not be written.
    """
    directory = outcome.stored.directory
    for name, chunks in outcome.chunks.items():
        if not chunks:
            continue
        study, run = outcome.studies[name], outcome.stored.run
        request = run["request"][name]
        origin = outcome.origins[name]
        marked = {**run["fingerprint"], **marks(request)}
        chunk = chunks[len(chunks) // 2]
        task = Task(chunk, origin or study, device, study.time_limit, marked, directory.resolve())
        folder = directory / "traces" / name
        try:
            with Folder.open(directory) as opened:
                opened.make(("traces", name))  # no link that leads elsewhere
            yield name, _elsewhere(task, folder) if origin else record(task, folder)
        except (BrokenExecutor, RunError, OSError) as error:
            raise ProfileError(f"study {name} cannot be traced: {error}") from error


def _elsewhere(task: Task, folder: Path) -> Path:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=worker.become_worker) as executor:
        return executor.submit(record, task, folder).result()


def record(task: Task, folder: Path) -> Path:
    """Runs a chunk under the profiler, here and now, and returns its trace, which takes the place of older ones."""
    from torch.profiler import profile, tensorboard_trace_handler

    with _for_at_most(_WARM):
        worker.measure(task)
    recorder = profile(
        activities=activities(Device.named(task.device)), record_shapes=True, profile_memory=True, with_flops=True
    )
    with silent():
        recorder.start()
    try:
        with _for_at_most(_RECORDED):
            worker.measure(task)
    finally:
        with silent():
            recorder.stop()
    for older in folder.glob("*.pt.trace.json.gz"):
        older.unlink()
    tensorboard_trace_handler(str(folder), worker_name=task.chunk.study, use_gzip=True)(recorder)
    return next(folder.glob("*.pt.trace.json.gz"))


@contextlib.contextmanager
def _for_at_most(seconds: float) -> Iterator[None]:
    """End the block after the given seconds; where no signal can end it, it runs to its end."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def enough(_signal: int, _frame: FrameType | None) -> None:
        raise _Enough

    before = signal.signal(signal.SIGALRM, enough)
    try:
        with contextlib.suppress(_Enough):
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
    finally:
        signal.signal(signal.SIGALRM, before)
