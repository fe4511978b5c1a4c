"""Running studies: chunks go through a `concurrent.futures.Executor`, finished ones into the store.

    outcome = run("gradient_flow", out="runs/x", preset="quick", workers=2)
    outcome.stored.frame("gradient_flow")

Run again with the same `out`, and only what is not finished is run. The rows are bit-identical in process, for any
number of workers and any executor, and for a run that was killed and resumed: each chunk starts from global random
states derived from its own id, with the study's number of threads, and knows nothing of other chunks.

A case that raises becomes a row with status `error`. A worker that dies or exceeds the time limit takes down what
runs beside it; those chunks are retried once, each alone; one that kills its worker again becomes rows with status
`lost` or `timeout`, and the rest goes on. A grid whose first chunks all end in one and the same error stops there
(`depthgauge.pilots`); what a given model cannot do is found before it is asked (`depthgauge.preflight`).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from depthgauge import discovery, environment, preflight, worker
from depthgauge.discovery import Found
from depthgauge.encoding import Failure, Summary, encode
from depthgauge.factories import Input, Target, TargetError
from depthgauge.pilots import FAILED, Pilots, named
from depthgauge.restriction import Restricted, restrict
from depthgauge.store import Store, Stored, storage_errors
from depthgauge.study import Case, Chunk, Study, StudyError
from depthgauge.worker import Measured, RunError, Task

__all__ = ["Outcome", "Place", "Progress", "RunError", "dask", "in_process", "pool", "run"]


_Result = TypeVar("_Result")


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
    return ProcessPoolExecutor(workers, mp_context=spawn, initializer=worker.become_worker)


def dask(address: str | Any) -> Place:
    """Chunks run on a Dask cluster whose workers have one thread each.

    Args:
        address: the scheduler's address, or a `distributed.Client`.

    Raises:
        RunError: `distributed` is not installed, nobody answers, or a worker has several threads.
    """
    try:
        from distributed import Client, KilledWorker  # noqa: PLC0415 - an optional dependency
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
        chunks: their chunks, finished before or now.
        ran: chunks that were run.
        kept: chunks that earlier runs had finished.
        rows: rows with status `ok`, of this request.
        failed: status -> cases without a result, of this request.
        unmeasured: studies of which every case that was run failed.
    """

    stored: Stored
    studies: Mapping[str, Study]
    chunks: Mapping[str, tuple[Chunk, ...]]
    ran: int
    kept: int
    rows: int
    failed: Mapping[str, int]
    unmeasured: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Asked:
    study: Study
    origin: str | None
    source: str | None
    chunks: tuple[Chunk, ...]
    restricted: Restricted | None
    tried: Mapping[Case, str] = field(default_factory=dict)  # smallest case -> what it ended with; empty where well


def run(
    *studies: str | Study,
    out: str | Path,
    preset: str = "quick",
    seeds: int | None = None,
    model: Target | None = None,
    device: str = "cpu",
    workers: int | None = None,
    place: Place | None = None,
    fresh: bool = False,
    time_limit: float | None = None,
    sources: Sequence[str] = (),
    observe: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Runs what of the studies is not finished in `out`, and returns what is there then.

    Args:
        studies: names, or studies; one that is not its module's `STUDY` runs in process only. None: all there are.
        out: the run directory; the same one again resumes.
        preset: which of the studies' grids.
        seeds: repetitions, in place of the preset's own.
        model: run on this model alone (`models.target(...)`) what the studies can ask of another model; what it cannot
            do is found first, by the studies' preflight.
        device: `cpu`, `cuda`, `cuda:1` or `auto`.
        workers: worker processes; 0 runs in this process. Default: one a core, on a GPU one.
        place: where chunks run instead (`dask(address)`, or any executor).
        fresh: forget what is stored in `out`.
        time_limit: seconds that a chunk may take, in place of the studies' own.
        sources: where studies of your own are (see `discovery`).
        observe: called after every chunk, and with every note.

    Raises:
        UnknownStudyError: no study of that name.
        UnknownPresetError: a study has no preset of that name.
        StudyError: a study cannot be loaded, or contradicts itself.
        TargetError: none of the studies can be run on that model.
        DeviceError: no such device.
        StoreError: `out` cannot be used: in use, other numbers, disk full.
        RunError: the workers cannot do it.
    """
    device = environment.device(device)
    wanted = _wanted(studies, preset, sources)
    asked = tuple(_ask(study, preset, seeds, model) for study in wanted)
    if model and not any(one.chunks for one in asked):
        raise TargetError(f"nothing can be run on {model.spec}: {_reasons(asked)}")
    if place is None:
        place = _place(workers, device, all(one.origin for one in asked))
    if place.remote and (alone := [one.study.name for one in asked if one.origin is None]):
        raise StudyError(f"study {alone[0]!r} is no module's STUDY, so that only this process has it: use workers=0")
    fingerprint = environment.fingerprint(device)
    driving = partial(
        _Driver, place=place, model=model, device=device, time_limit=time_limit, observe=observe or (lambda _: None)
    )
    with Store.open(out, fingerprint, fresh=fresh) as store:
        if model:
            with storage_errors(f"the run into {out} stopped"):
                tried = driving(store, asked=tuple(_smallest(one) for one in asked)).tried()
            asked = tuple(_ask(study, preset, seeds, model, tried) for study in wanted)
        request = {one.study.name: _request(one, preset, seeds, model) for one in asked}
        store.plan(request, {one.study.name: one.chunks for one in asked})
        store.record(command=_command(store.run["request"], device, Path(out)))
        driver = driving(store, asked=asked)
        for line in (line for one in asked for line in (*_refused(one), *_few_seeds(one.study, preset, seeds))):
            driver.note(line)
        with storage_errors(f"the run into {out} stopped"):
            driver.drive()
        return driver.outcome()


def _wanted(studies: Sequence[str | Study], preset: str, sources: Sequence[str]) -> Sequence[Found | Study]:
    """Each study once; what is misspelt is told before the first is imported."""
    if not studies:
        every = discovery.discover(sources)
        if not every:
            raise discovery.UnknownStudyError("there are no studies to run")
        return every
    wanted = [study if isinstance(study, Study) else discovery.find(study, sources) for study in studies]
    for study in wanted:
        if study.presets:  # a file that computes them is asked once it is imported
            discovery.check_preset(study.name, preset, tuple(study.presets))
    return tuple({study.name: study for study in wanted}.values())


def _ask(
    wanted: Found | Study,
    preset: str,
    seeds: int | None,
    model: Target | None,
    tried: Mapping[str, Mapping[Case, str]] | None = None,
) -> _Asked:
    if isinstance(wanted, Study):
        study, found = wanted, _found(wanted)
    else:
        study, found = wanted.load(), wanted
    discovery.check_preset(study.name, preset, tuple(study.presets))
    ends = (tried or {}).get(study.name, {})
    refused = {case: reason for case, reason in ends.items() if reason}
    restricted = restrict(study, preset, model, refused) if model else None
    if restricted:
        study = replace(study, presets={**study.presets, preset: restricted.grids})
    chunks = study.chunks(preset, seeds)
    origin, source = (found.origin, found.source()) if found else (None, _text(study))
    return _Asked(study, origin, source, chunks, restricted, ends)


def _smallest(asked: _Asked) -> _Asked:
    """The preflight of a study: a chunk of its own for every smallest case."""
    grids = asked.restricted.grids if asked.restricted else ()
    cases = dict.fromkeys(case for grid in grids for case in preflight.ways(asked.study, grid).values())
    return replace(asked, chunks=tuple(Chunk(asked.study.name, (case,)) for case in cases))


def _refused(asked: _Asked) -> Iterator[str]:
    """What the preflight found, for the user."""
    reasons = {reason for reason in asked.tried.values() if reason}
    for line in asked.restricted.left_out if asked.restricted else ():
        if any(line.endswith(reason) for reason in reasons):
            yield f"{asked.study.name}: {line}"


def _reasons(asked: Sequence[_Asked]) -> str:
    told = {one.study.name: one.restricted.left_out for one in asked if one.restricted}
    return "; ".join(f"{name}: {'; '.join(reasons)}" for name, reasons in told.items())


def _found(study: Study) -> Found | None:
    """The module or file whose `STUDY` this is, if another process can load it from there."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__dict__", {}).get("STUDY") is study and name not in {"__main__", "__mp_main__"}:
            file = getattr(module, "__file__", None)
            if file is None:
                return None
            path = Path(file).resolve()
            with contextlib.suppress(ImportError, ValueError):
                if find_spec(name) is not None and not name.startswith("depthgauge_study_"):
                    return Found(study.name, name, path)
            return Found(study.name, str(path), path)
    return None


def _text(study: Study) -> str | None:
    """SHA-256 of the code of a study that is in no module, as far as it can be told."""
    try:
        return hashlib.sha256(inspect.getsource(study.run).encode()).hexdigest()
    except (TypeError, OSError):
        return None


def _place(workers: int | None, device: str, loadable: bool) -> Place:
    if workers == 0 or (workers is None and not loadable):
        return in_process()
    # Workers that share a GPU each hold a context of their own on it.
    return pool(1 if workers is None and device != "cpu" else workers)


def _request(asked: _Asked, preset: str, seeds: int | None, model: Target | None) -> dict[str, object]:
    entry: dict[str, object] = {
        "preset": preset,
        "seeds": seeds,
        "origin": asked.origin,
        "threads": asked.study.threads,
    }
    if asked.restricted:
        entry |= {"not_applicable": dict(asked.restricted.not_applicable), "left_out": list(asked.restricted.left_out)}
    if asked.tried:
        entry |= {"tried": {case.id: reason for case, reason in asked.tried.items()}}
    return entry | _model(model) | ({"source": asked.source} if asked.source else {})


def _model(model: Target | None) -> dict[str, object]:
    """What identifies the model that a run is restricted to."""
    if model is None:
        return {}
    fed = {} if model.input is None else {"model_input": str(model.input)}
    return {"model": model.spec, "model_source": model.source, **fed}


def marks(request: Mapping[str, object]) -> dict[str, object]:
    """What a study's chunks are marked with besides the run's fingerprint: the code of the study and of the model.

    Args:
        request: what run.json says that was asked of the study.
    """
    own = {"study_source": request["source"]} if request.get("source") else {}
    return own | {name: request[name] for name in ("model", "model_source", "model_input") if name in request}


def _command(request: Mapping[str, Mapping[str, object]], device: str, out: Path) -> str:
    """What makes everything in the directory again."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, entry in request.items():
        key = (entry.get("preset") or "quick", entry.get("seeds"), entry.get("model"), entry.get("model_input"))
        groups.setdefault(key, []).append(name)
    commands = []
    for (preset, seeds, model, fed), names in groups.items():
        origins = [str(request[name]["origin"]) for name in names if request[name].get("origin")]
        words = ["depthgauge", "run", *names, "--preset", str(preset)]
        words += [] if seeds is None else ["--seeds", str(seeds)]
        words += [] if model is None else ["--model", str(model)]
        words += [] if fed is None else Input.parse(str(fed)).options
        words += [] if device == "cpu" else ["--device", device]
        words += [word for origin in origins if discovery.foreign(origin) for word in ("--studies", origin)]
        commands.append(shlex.join([*words, "--out", str(out)]))
    return " && ".join(commands)


def _few_seeds(study: Study, preset: str, seeds: int | None) -> Iterator[str]:
    """What more seeds would be needed for, if anything."""
    counts = [seeds or grid.seeds for grid in study.presets[preset] if grid.seeds]
    if counts and min(counts) < 5:
        yield f"{study.name}: fewer than 5 seeds give points, and verdicts that are inconclusive"
    elif counts and study.comparisons:
        from depthgauge.stats import too_few_seeds  # noqa: PLC0415 - scipy is not needed before this

        warning = too_few_seeds(min(counts), study.comparisons)
        if warning:
            yield f"{study.name}: {warning}"


class _Driver:
    """One run: what is to do, what came back, how long the rest may take."""

    def __init__(
        self,
        store: Store,
        *,
        place: Place,
        asked: Sequence[_Asked],
        model: Target | None,
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
        self.processes: set[multiprocessing.process.BaseProcess] = set()  # those of the present executor
        self.others: set[multiprocessing.process.BaseProcess] = set()  # children that were there before it
        self.told: set[str] = set()
        self.ran = 0
        self.pilots = Pilots.of(chunk for one in asked for chunk in one.chunks)
        self.stopped: dict[str, dict[str, list[Chunk]]] = {}  # study -> why -> chunks that are not run
        self.tasks: list[Task] = []
        for one in asked:
            own = marks(_request(one, "", None, model))
            kept = store.finished(one.chunks, **own)
            self.finished |= {f"{one.study.name}/{chunk}": summary for chunk, summary in kept.items()}
            marked = {**store.run["fingerprint"], **own}
            tasks = [
                Task(
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
            self.tasks += sorted(tasks, key=lambda task: not self.pilots.first(task.chunk))
        self.kept = len(self.finished)
        self.failed = sum(sum(summary.failed.values()) for summary in self.finished.values())
        self.cost = _Cost(task.chunk for task in self.tasks)

    def drive(self) -> None:
        """Runs what is not finished."""
        for line in self.store.notes:
            self.note(line)
        self._tell(self.asked[0].study.name)
        self._together([task for task in self.tasks if not task.chunk.exclusive], self.place.workers)
        self._together([task for task in self.tasks if task.chunk.exclusive], 1)
        self._record_stopped()

    def tried(self) -> dict[str, dict[Case, str]]:
        """Runs the one case of each chunk and keeps no rows: study -> case -> what it ended with, empty where well.

        What was well in an earlier run on the same model is not tried again.
        """
        found: dict[str, dict[Case, str]] = {one.study.name: {} for one in self.asked}
        queue: deque[Task] = deque()
        for task in self.tasks:
            study, case = task.chunk.study, task.chunk.cases[0]
            if self._was_well(study, case):
                found[study][case] = ""
            else:
                queue.append(replace(task, limit=min(task.limit, preflight.LIMIT)))
        spent = dict.fromkeys(found, 0.0)
        while queue:
            with self._executor(1) as executor:
                while queue:
                    task = queue.popleft()
                    study = task.chunk.study
                    if spent[study] > preflight.TOTAL:
                        found[study] |= preflight.untried(task.chunk.cases[0], found[study])
                        continue
                    started = time.monotonic()
                    alive, ended = self._try(executor, task)
                    found[study] |= ended
                    spent[study] += time.monotonic() - started
                    if not alive:
                        break
        return found

    def _was_well(self, study: str, case: Case) -> bool:
        before = self.store.run["request"].get(study, {})
        return bool(before.get("model") == case.get("model") and before.get("tried", {}).get(case.id) == "")

    def _try(self, executor: Executor, task: Task) -> tuple[bool, dict[Case, str]]:
        """Whether the worker is still alive, and what the case ended with; nothing where the machine failed."""
        task.trace.unlink(missing_ok=True)
        case = task.chunk.cases[0]
        try:
            summary = self._submit(executor, worker.measure, task).result().encoded.summary
        except self.place.lost:
            return False, {case: worker.last_words(task, "")[1]}
        if FAILED.intersection(summary.failed):
            return True, {case: summary.messages[0].removeprefix("StudyError: ")}
        return True, {} if summary.failed else {case: ""}

    def _together(self, tasks: Sequence[Task], workers: int) -> None:
        """Runs tasks side by side, never more than there are workers: few are suspect when one of them dies."""
        workers = min(workers, len(tasks))
        queue = deque(tasks)
        while queue:
            suspects: list[Task] = []
            pending: dict[Future[Measured], Task] = {}
            results: dict[Future[Measured], Task] = {}
            waiting = len(queue)
            with self._executor(workers) as executor, self._salvaging(pending, results):
                while (queue or pending) and not suspects:
                    if not self._fill(executor, queue, pending, workers) and not pending:
                        break  # a worker died that had nothing to do; another executor takes the rest
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    results |= {future: pending.pop(future) for future in done}
                    # Now, for no worker to wait for the disk; but an exclusive chunk has nothing beside it.
                    if workers > 1 and not any(self._is_lost(future) for future in done):
                        self._fill(executor, queue, pending, workers)
                    self._take(results, suspects)
                results |= pending  # a broken pool has failed them all; another executor finishes them
                pending.clear()
                self._take(results, suspects)
            if len(queue) == waiting and not suspects:
                raise RunError("the worker processes end before they are given anything to do")
            for task in suspects:
                self.note(f"{task.chunk.study}: a worker ended in chunk {task.chunk.id}; once more, alone")
                self._alone(task)

    def _fill(
        self, executor: Executor, queue: deque[Task], pending: dict[Future[Measured], Task], workers: int
    ) -> bool:
        """Gives every worker a task, as far as there are any; whether the executor is whole, as far as that shows."""
        while len(pending) < workers and (task := self._next(queue)):
            try:
                pending[self._submit(executor, worker.measure, task)] = task
            except self.place.lost:  # it broke since: whoever did it is among the pending, or was idle
                return False
            queue.remove(task)
        return True

    def _next(self, queue: deque[Task]) -> Task | None:
        """The first task that waits for no pilot; those of a grid that stopped leave the queue."""
        for task in tuple(queue):
            if self.pilots.waits(task.chunk, self.finished):
                continue
            if self.pilots.first(task.chunk) or not (why := self.pilots.verdict(task.chunk, self.finished)):
                return task
            queue.remove(task)
            self._stop(task.chunk, why)
        return None

    def _stop(self, chunk: Chunk, why: str) -> None:
        cases = self.pilots.cases(chunk, self.finished)
        told = f"all {cases} cases that were run first, spread over a grid, ended with: {why}"
        self.stopped.setdefault(chunk.study, {}).setdefault(told, []).append(chunk)
        self.total -= 1
        self.cost.drop(chunk)

    def _record_stopped(self) -> None:
        """Takes what is not run out of what is asked for, and says why."""
        for study, reasons in self.stopped.items():
            lines = [
                f"{sum(len(chunk.cases) for chunk in chunks)} more cases are not run: {told}"
                for told, chunks in reasons.items()
            ]
            left_out = {chunk.id for chunks in reasons.values() for chunk in chunks}
            self.store.run["request"][study]["stopped"] = lines
            self.store.run["chunks"][study] = [
                chunk for chunk in self.store.run["chunks"][study] if chunk not in left_out
            ]
            for line in lines:
                self.note(f"{study}: {line}")
        self.store.record()

    def _submit(self, executor: Executor, do: Callable[..., _Result], *arguments: Task) -> Future[_Result]:
        with _uninterrupted() if self.place.remote else contextlib.nullcontext():
            future = executor.submit(do, *arguments)
            self.processes |= set(multiprocessing.active_children()) - self.others
        return future

    def _is_lost(self, future: Future[Measured]) -> bool:
        return not future.cancelled() and isinstance(future.exception(), self.place.lost)

    def _take(self, results: dict[Future[Measured], Task], suspects: list[Task]) -> None:
        while results:
            future, task = next(iter(results.items()))
            try:
                measured = future.result()
            except self.place.lost:
                suspects.append(task)
            except CancelledError:
                raise RunError("the cluster is gone; what was finished is kept: the same command goes on") from None
            else:
                self._keep(task, measured)
            del results[future]

    @contextlib.contextmanager
    def _salvaging(self, *futures: dict[Future[Measured], Task]) -> Iterator[None]:
        """Keeps what is finished when the run stops here, and calls off the rest."""
        try:
            yield
        except BaseException as stop:
            for future, task in [pair for some in futures for pair in some.items()]:
                kept = future.done() and not future.cancelled() and future.exception() is None
                if kept and isinstance(stop, KeyboardInterrupt | RunError):
                    self._keep(task, future.result())
                future.cancel()
            raise

    def _alone(self, task: Task) -> None:
        task.trace.unlink(missing_ok=True)
        with self._executor(1) as executor:
            future = self._submit(executor, worker.measure, task)
            try:
                measured = future.result()
            except self.place.lost:
                status, message = worker.last_words(task)
                failures = [Failure(case, status, message) for case in task.chunk.cases]
                measured = Measured(encode(task.chunk, failures, task.fingerprint), 0.0, ())
                self.note(f"{task.chunk.study}: chunk {task.chunk.id}: {message}")
            self._keep(task, measured)

    def _keep(self, task: Task, measured: Measured) -> None:
        self.store.write(task.chunk, measured.encoded.data)
        self.finished[named(task.chunk)] = measured.encoded.summary
        self.failed += sum(measured.encoded.summary.failed.values())
        self.ran += 1
        self.cost.learn(task.chunk, measured.seconds)
        for line in measured.warnings:
            self.note(line)
        self._tell(task.chunk.study)

    def note(self, line: str) -> None:
        """Tells the user a line, once."""
        if line not in self.told:
            self.told.add(line)
            self._tell(self.asked[0].study.name, line)

    def _tell(self, study: str, note: str = "") -> None:
        left = self.cost.left(self.place.workers)
        self.observe(Progress(study, len(self.finished), self.total, self.failed, left, note))

    @contextlib.contextmanager
    def _executor(self, workers: int) -> Iterator[Executor]:
        """An executor whose processes are gone when the block is left, however it is left."""
        self.processes = set()
        self.others = set(multiprocessing.active_children())
        executor = self.place.start(workers)
        patience = 0.0
        try:
            self._check(executor)
            yield executor
            executor.shutdown(wait=not self.processes)
            patience = 5.0  # a worker cannot leave while a thread runs that a study has forgotten
        except BaseException:
            executor.shutdown(wait=False)
            raise
        finally:
            _end(self.processes, patience)

    def _check(self, executor: Executor) -> None:
        """Whether workers start at all; else every chunk would be recorded as one that kills."""
        if not self.checked:
            try:
                self._submit(executor, worker.ping).result()
            except self.place.lost:
                guard = "if this is a script, is the call below `if __name__ == '__main__':`?"
                raise RunError(f"the worker processes end as soon as they start; {guard}") from None
            self.checked = True

    def outcome(self) -> Outcome:
        failed: dict[str, int] = {}
        rows = Counter[str]()
        for name, summary in self.finished.items():
            rows[name.partition("/")[0]] += summary.rows
            for status, cases in summary.failed.items():
                failed[status] = failed.get(status, 0) + cases
        return Outcome(
            stored=self.store.stored(),
            studies={one.study.name: one.study for one in self.asked},
            chunks={one.study.name: one.chunks for one in self.asked},
            ran=self.ran,
            kept=self.kept,
            rows=sum(summary.rows for summary in self.finished.values()),
            failed=dict(sorted(failed.items())),
            unmeasured=tuple(one.study.name for one in self.asked if one.chunks and not rows[one.study.name]),
        )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block; what is started within never gets it."""
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

    def drop(self, chunk: Chunk) -> None:
        """The chunk is not run."""
        self.waiting[_kinds(chunk)] -= len(chunk.cases)

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
