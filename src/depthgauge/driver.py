"""The driver of a run: it hands chunks to a place, stores their rows, retries, stops, and reports progress.

    driver = Driver(store, requests, request, place=pool(2), observe=print)
    driver.drive()
    driver.finished                  # study/chunk -> what it holds

Studies come one after another. Once the first stage of one has ended, further chunks follow from its rows, where it has
a second; once these have, its observer is told, and can report on it while the others go on.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import replace

from depthgauge import costs, identity, preflight, worker
from depthgauge.encoding import Failure, Summary, encode
from depthgauge.ledger import Ledger
from depthgauge.pilots import FAILED, Pilots, named
from depthgauge.places import Place, Workers
from depthgauge.progress import Progress
from depthgauge.remaining import Cost
from depthgauge.request import Request, StudyRequest, entry, second_stage
from depthgauge.store import Store
from depthgauge.study import Case, Chunk, StudyError
from depthgauge.worker import Measured, RunError, Task


def plan(store: Store, requests: Sequence[StudyRequest], request: Request) -> None:
    """Record the request for these studies in the directory.

    Raises:
        StoreError: as `Store.plan`.
    """
    store.plan(
        {study.name: entry(study, request) for study in requests}, {study.name: study.chunks for study in requests}
    )


class Driver:
    """One run: its open tasks, its finished chunks, an estimate of the rest.

    Attributes:
        store: the store of the rows.
        requests: the studies; with the chunks of their second stage from when these are known.
        finished: study/chunk -> what it holds.
        ran: chunks that were run.
        reused: chunks that earlier runs had finished.
        measured: cases of the chunks that were run.
    """

    def __init__(
        self,
        store: Store,
        requests: Sequence[StudyRequest],
        request: Request,
        *,
        place: Place,
        observe: Callable[[Progress], None],
        known: costs.Table | None = None,
    ) -> None:
        self.store = store
        self.requests = list(requests)
        self.finished: dict[str, Summary] = {}
        self.ran = 0
        self.reused = 0
        self.measured = 0
        self._request = request
        self._workers = Workers(place)
        self._observe = observe
        self._total = 0
        self._failed = 0
        self._notes: set[str] = set()  # those that the user has read
        self._pilots = Pilots({})
        self._stopped: dict[str, dict[str, list[Chunk]]] = {}  # study -> why -> chunks that are not run
        self._open: dict[str, set[str]] = {study.name: set() for study in requests}  # study -> chunks to be run
        self._ended: set[str] = set()  # studies
        self._problems: list[str] = []  # why second stages cannot be asked
        self._further: set[str] = set()  # chunks of second stages
        chunks = {study.name: study.chunks for study in requests}
        waiting = {study.name for study in requests if study.waiting}
        self._ledger = Ledger(store, request.preset, chunks)
        self._cost = Cost.of(chunks, request.preset, known or {}, waiting)
        self._tasks = self._expect([(study, study.chunks) for study in requests])

    def _expect(self, stages: Sequence[tuple[StudyRequest, Sequence[Chunk]]]) -> list[Task]:
        """Takes chunks of studies into the run; those that are to be run, pilots first, exclusive ones last."""
        self._pilots = self._pilots.joined(Pilots.of(chunk for _, chunks in stages for chunk in chunks))
        tasks: list[Task] = []
        for study, chunks in stages:
            marks = identity.marks(entry(study, self._request))
            earlier = self.store.finished(chunks, **marks)
            self.finished |= {f"{study.name}/{chunk}": summary for chunk, summary in earlier.items()}
            self.reused += len(earlier)
            self._failed += sum(sum(summary.failed.values()) for summary in earlier.values())
            unfinished = [self._task(study, chunk, marks) for chunk in chunks if chunk.id not in earlier]
            self._open[study.name] |= {task.chunk.id for task in unfinished}
            tasks += sorted(unfinished, key=lambda task: (task.chunk.exclusive, not self._pilots.first(task.chunk)))
        self._total += sum(len(chunks) for _, chunks in stages)
        self._cost.expect(task.chunk for task in tasks)
        return tasks

    def _task(self, study: StudyRequest, chunk: Chunk, marks: dict[str, object]) -> Task:
        return Task(
            chunk,
            study.origin if self._workers.place.remote and study.origin else study.study,
            self._request.device,
            self._request.time_limit or study.study.time_limit,
            {**self.store.run["fingerprint"], **marks},
            self.store.work.resolve(),
        )

    def drive(self) -> None:
        """Run the unfinished chunks.

        Raises:
            StudyError: a second stage cannot be asked; all else is finished.
            RunError: the workers cannot do it.
            StoreError: the disk is full, or a file of the first stage damaged.
        """
        for line in self.store.notes:
            self.note(line)
        self._tell()
        try:
            self._together(self._tasks)
        finally:
            if self._request.model is None:
                self._ledger.stop()
        if self._problems:
            raise StudyError("; ".join(self._problems))

    def _advance(self, queue: deque[Task]) -> None:
        """Goes on with studies whose chunks have all been run: with their second stage, or to their end."""
        for place, study in enumerate(self.requests):
            if study.name in self._ended or self._open[study.name]:
                continue
            if study.waiting:
                queue.extendleft(reversed(self._second_stage(place)))
            if not self._open[study.name]:
                self._end(self.requests[place])

    def _second_stage(self, place: int) -> list[Task]:
        """Asks for the second stage of a study, and returns its unfinished tasks."""
        first = self.requests[place]
        self._cost.second.pop(first.name, None)
        ended = [chunk.id for chunk in first.chunks if named(chunk) in self.finished]
        try:
            both = second_stage(first, self._request, self.store.stored().rows(first.name, ended))
        except StudyError as error:
            self._problems.append(str(error))
            return []
        self.requests[place] = both
        further = both.chunks[len(first.chunks) :]
        self._further |= {named(chunk) for chunk in further}
        plan(self.store, [both], self._request)
        tasks = self._expect([(both, further)])
        for line in self.store.notes:
            self.note(line)
        self._tell()
        return tasks

    def _end(self, study: StudyRequest) -> None:
        """Records what a study has cost and what was stopped of it, and tells that all its rows are there."""
        self._ended.add(study.name)
        self._record_stopped(study.name)
        if self._request.model is None:  # a model of the user's own has costs of its own
            self._ledger.end(study.name)
        self._tell(ended=study.name)

    def tried(self) -> dict[str, dict[Case, str]]:
        """Runs the one case of each chunk and keeps no rows: study -> case -> what it ended with, empty where well.

        What was well in an earlier run on the same model is not tried again.
        """
        ends: dict[str, dict[Case, str]] = {study.name: {} for study in self.requests}
        queue: deque[Task] = deque()
        for task in self._tasks:
            study, case = task.chunk.study, task.chunk.cases[0]
            if self._was_well(study, case):
                ends[study][case] = ""
            else:
                queue.append(replace(task, limit=min(task.limit, preflight.LIMIT)))
        spent = dict.fromkeys(ends, 0.0)
        while queue:
            with self._workers.executor(1) as executor:
                while queue:
                    task = queue.popleft()
                    study = task.chunk.study
                    if spent[study] > preflight.TOTAL:
                        ends[study] |= preflight.untried(task.chunk.cases[0], ends[study])
                        continue
                    started = time.monotonic()
                    alive, ended = self._try(executor, task)
                    ends[study] |= ended
                    spent[study] += time.monotonic() - started
                    if not alive:
                        break
        return ends

    def _was_well(self, study: str, case: Case) -> bool:
        before = self.store.run["request"].get(study, {})
        return bool(before.get("model") == case.get("model") and before.get("tried", {}).get(case.id) == "")

    def _try(self, executor: Executor, task: Task) -> tuple[bool, dict[Case, str]]:
        """Return whether the worker is alive, and each case's end; no ends where the machine failed."""
        task.trace.unlink(missing_ok=True)
        case = task.chunk.cases[0]
        try:
            summary = self._workers.submit(executor, worker.measure, task).result().encoded.summary
        except self._workers.place.lost:
            return False, {case: worker.last_words(task, self._workers.exit_code(), "")[1]}
        if FAILED.intersection(summary.failed):
            return True, {case: summary.messages[0].removeprefix("StudyError: ")}
        return True, {} if summary.failed else {case: ""}

    def _together(self, tasks: Sequence[Task]) -> None:
        """Runs tasks side by side, never more than there are workers: few are suspect when one of them dies.

        A study's exclusive ones come last, one by one, in the same workers: starting another takes seconds.
        """
        workers = self._workers.place.workers
        if not any(study.waiting for study in self.requests):
            workers = min(workers, max(sum(not task.chunk.exclusive for task in tasks), 1))
        queue = deque(tasks)
        self._advance(queue)
        while queue:
            suspects: list[Task] = []
            pending: dict[Future[Measured], Task] = {}
            results: dict[Future[Measured], Task] = {}
            ran = self.ran
            with self._workers.executor(workers) as executor, self._salvaging(pending, results):
                while (queue or pending) and not suspects:
                    if not self._fill(executor, queue, pending, workers, idle=True) and not pending:
                        break  # a worker died that had nothing to do; another executor takes the rest
                    done, _ = wait(pending, return_when=FIRST_COMPLETED)
                    results |= {future: pending.pop(future) for future in done}
                    # Now, for no worker to wait for the disk; but an exclusive chunk has nothing beside it.
                    if workers > 1 and not any(self._workers.lost(future) for future in done):
                        self._fill(executor, queue, pending, workers, idle=False)
                    self._take(results, suspects)
                    self._advance(queue)
                results |= pending  # a broken pool has failed them all; another executor finishes them
                pending.clear()
                self._take(results, suspects)
            if queue and self.ran == ran and not suspects:
                raise RunError("the worker processes end before they get any work")
            for task in suspects:
                self.note(f"{task.chunk.study}: a worker ended in {task.chunk.id}; it is run again, alone")
                self._alone(task)
            self._advance(queue)

    def _fill(
        self, executor: Executor, queue: deque[Task], pending: dict[Future[Measured], Task], workers: int, *, idle: bool
    ) -> bool:
        """Gives every worker a task, as far as there are any; whether the executor is whole, as far as that shows.

        An exclusive task is given where the driver is `idle`, and nothing is pending; then nothing else is.
        """
        while (
            len(pending) < workers
            and not any(task.chunk.exclusive for task in pending.values())
            and (task := self._next(queue, alone=idle and not pending))
        ):
            if task.chunk.exclusive:
                self._tell(alone=True)
            try:
                pending[self._workers.submit(executor, worker.measure, task)] = task
            except self._workers.place.lost:  # it broke since: whoever did it is among the pending, or was idle
                return False
            queue.remove(task)
        return True

    def _next(self, queue: deque[Task], *, alone: bool) -> Task | None:
        """The first task that waits for no pilot; those of a grid that stopped leave the queue."""
        stopped: list[Task] = []
        found = None
        for task in queue:
            if task.chunk.exclusive and not alone:
                break
            if self._pilots.waits(task.chunk, self.finished):
                continue
            if self._pilots.first(task.chunk) or not (why := self._pilots.verdict(task.chunk, self.finished)):
                found = task
                break
            stopped.append(task)
            self._stop(task.chunk, why)
        for task in stopped:
            queue.remove(task)
        return found

    def _stop(self, chunk: Chunk, why: str) -> None:
        cases = self._pilots.cases(chunk, self.finished)
        reason = f"all {cases} cases that were run first, spread over a grid, ended with: {why}"
        self._stopped.setdefault(chunk.study, {}).setdefault(reason, []).append(chunk)
        self._total -= 1
        self._open[chunk.study].discard(chunk.id)
        self._cost.drop(chunk)

    def _record_stopped(self, study: str) -> None:
        """Take stopped chunks of a study out of the run, and note the reason."""
        reasons = self._stopped.pop(study, {})
        if not reasons:
            return
        lines = [
            f"{sum(len(chunk.cases) for chunk in chunks)} more cases are not run: {reason}"
            for reason, chunks in reasons.items()
        ]
        left_out = {chunk.id for chunks in reasons.values() for chunk in chunks}
        self.store.run["request"][study]["stopped"] = lines
        self.store.run["chunks"][study] = [chunk for chunk in self.store.run["chunks"][study] if chunk not in left_out]
        for line in lines:
            self.note(f"{study}: {line}")
        self.store.record()

    def _take(self, results: dict[Future[Measured], Task], suspects: list[Task]) -> None:
        while results:
            future, task = next(iter(results.items()))
            try:
                measured = future.result()
            except self._workers.place.lost:
                suspects.append(task)
            except CancelledError:
                raise RunError(
                    "the cluster is gone; what is finished is kept: run the same command to resume"
                ) from None
            else:
                self._keep(task, measured)
            del results[future]

    @contextlib.contextmanager
    def _salvaging(self, *futures: dict[Future[Measured], Task]) -> Iterator[None]:
        """Store the finished chunks when the run stops within the block, and cancel the rest."""
        try:
            yield
        except BaseException as stop:
            for future, task in [pair for some in futures for pair in some.items()]:
                succeeded = future.done() and not future.cancelled() and future.exception() is None
                new = named(task.chunk) not in self.finished  # it may have stopped as that was told
                if new and succeeded and isinstance(stop, KeyboardInterrupt | RunError):
                    self._keep(task, future.result())
                future.cancel()
            raise

    def _alone(self, task: Task) -> None:
        task.trace.unlink(missing_ok=True)
        with self._workers.executor(1) as executor:
            future = self._workers.submit(executor, worker.measure, task)
            try:
                measured = future.result()
            except self._workers.place.lost:
                status, message = worker.last_words(task, self._workers.exit_code())
                failures = [Failure(case, status, message) for case in task.chunk.cases]
                measured = Measured(encode(task.chunk, failures, task.fingerprint), 0.0, ())
                self.note(f"{task.chunk.study}: {task.chunk.id}: {message}")
            self._keep(task, measured)

    def _keep(self, task: Task, measured: Measured) -> None:
        self.store.write(task.chunk, measured.encoded.data)
        self.finished[named(task.chunk)] = measured.encoded.summary
        self._failed += sum(measured.encoded.summary.failed.values())
        self.ran += 1
        self.measured += len(task.chunk.cases)
        self._open[task.chunk.study].discard(task.chunk.id)
        self._cost.learn(task.chunk, measured.seconds)
        self._ledger.add(task.chunk, measured.seconds, second=named(task.chunk) in self._further)
        for line in measured.warnings:
            self.note(line)
        self._tell()

    def note(self, line: str) -> None:
        """Tells the user a line, once."""
        if line not in self._notes:
            self._notes.add(line)
            self._tell(note=line)

    def _tell(self, note: str = "", ended: str = "", *, alone: bool = False) -> None:
        names = (study.name for study in self.requests if study.name not in self._ended)
        self._observe(
            Progress(
                study=next(names, self.requests[-1].name),
                done=len(self.finished),
                total=self._total,
                failed=self._failed,
                left=self._cost.left(self._workers.place.workers),
                share=self._cost.share,
                note=note,
                ended=ended,
                alone=alone,
            )
        )
