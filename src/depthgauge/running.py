"""Running studies: chunks go through a `concurrent.futures.Executor`, finished ones into the store.

    outcome = run("gradient_flow", out="runs/x", request=Request(preset="quick"), workers=2)
    outcome.stored.frame("gradient_flow")

Run again with the same `out`, and only what is not finished is run. The rows are bit-identical in process, for any
number of workers and any executor, and for a run that was killed and resumed: each chunk starts from global random
states derived from its own id, with the study's number of threads, and knows nothing of other chunks. The chunks of a
second stage follow from the rows of the first, and so does everything else of them.

A case that raises becomes a row with status `error`. A worker that dies or exceeds the time limit takes down what
runs beside it; those chunks are retried once, each alone; one that kills its worker again becomes rows with status
`lost` or `timeout`, and the rest goes on. A grid whose first chunks all end in one and the same error stops there
(`depthgauge.pilots`); what a given model cannot do is found before it is asked (`depthgauge.preflight`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from depthgauge import environment, runfile
from depthgauge.driver import Driver, plan
from depthgauge.factories import Target, TargetError
from depthgauge.places import Place, chosen, dask, in_process, pool
from depthgauge.progress import Progress
from depthgauge.request import Request, StudyRequest, ask, choose, command, few_seeds, smallest
from depthgauge.store import Store, Stored, storage_errors
from depthgauge.study import Chunk, Study, StudyError
from depthgauge.worker import RunError

__all__ = ["Outcome", "Place", "Progress", "Request", "RunError", "dask", "in_process", "pool", "run"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        stored: the rows.
        studies: the studies asked for.
        chunks: their chunks, finished before or now.
        origins: where another process can load each from; None where only this one has it.
        ran: chunks that were run.
        reused: chunks that earlier runs had finished.
        measured: cases of the chunks that were run.
        kept: cases of those that earlier runs had finished.
        rows: rows with status `ok`, of this request.
        failed: status -> cases without a result, of this request.
        unmeasured: studies of which every case that was run failed.
    """

    stored: Stored
    studies: Mapping[str, Study]
    chunks: Mapping[str, tuple[Chunk, ...]]
    origins: Mapping[str, str | None]
    ran: int
    reused: int
    measured: int
    kept: int
    rows: int
    failed: Mapping[str, int]
    unmeasured: tuple[str, ...] = ()


def run(
    *studies: str | Study,
    out: str | Path,
    request: Request | None = None,
    workers: int | None = None,
    place: Place | None = None,
    fresh: bool = False,
    sources: Sequence[str] = (),
    observe: Callable[[Progress], None] | None = None,
) -> Outcome:
    """Run the studies' unfinished chunks in `out`, and return the outcome.

    Args:
        studies: names, or studies; one that is not its module's `STUDY` runs in process only. None: all there are.
        out: the run directory; the same one again resumes.
        request: preset, seeds, model, device and time limit; by default preset `quick` on the CPU.
        workers: worker processes; 0 runs in this process. Default: one a core, on a GPU one.
        place: another place for the chunks (`dask(address)`, or any executor).
        fresh: forget what is stored in `out`.
        sources: places of your own studies (see `discovery`).
        observe: called after every chunk, and with every note.

    Raises:
        UnknownStudyError: no study of that name.
        UnknownPresetError: a study has no preset of that name.
        StudyError: a study cannot be loaded, contradicts itself, or has a second stage that raises.
        TargetError: none of the studies can be run on that model.
        DeviceError: no such device.
        StoreError: `out` cannot be used: in use, other numbers, disk full.
        RunError: the workers cannot do it.
    """
    request = request or Request()
    request = replace(request, device=environment.device(request.device))
    declared = choose(studies, request.preset, sources)
    requests = tuple(ask(study, request) for study in declared)
    _check_model(request.model, requests)
    place = place or chosen(workers, request.device, loadable=all(study.origin for study in requests))
    if place.remote and (unloadable := [study.name for study in requests if study.origin is None]):
        raise StudyError(
            f"study {unloadable[0]!r} is no module's STUDY, so that only this process has it: use workers=0"
        )
    here = environment.fingerprint(request.device)
    known = runfile.known_costs(Path(out), str(here["device"]))
    drive = partial(Driver, request=request, place=place, observe=observe or (lambda _: None), known=known)
    stopped = storage_errors(f"the run into {out} stopped")
    with Store.open(out, here, fresh=fresh) as store, stopped:
        if request.model:
            tried = drive(store, tuple(map(smallest, requests))).tried()
            requests = tuple(ask(study, request, tried) for study in declared)
        plan(store, requests, request)
        store.record(command=command(store.run["request"], request.device, Path(out)))
        driver = drive(store, requests)
        for line in (line for study in requests for line in (*study.refusals, *few_seeds(study, request))):
            driver.note(line)
        for study in (study for study in requests if study.unread):
            driver.note(f"{study.name}: no later run will take these rows: {study.unread}")
        driver.drive()
        return _outcome(driver)


def _check_model(model: Target | None, requests: Sequence[StudyRequest]) -> None:
    if model and not any(study.chunks for study in requests):
        reasons = (f"{study.name}: {'; '.join(study.restricted.left_out)}" for study in requests if study.restricted)
        raise TargetError(f"nothing can be run on {model.spec}: {'; '.join(reasons)}")


def _outcome(driver: Driver) -> Outcome:
    rows = {study.name: 0 for study in driver.requests}
    failed: dict[str, int] = {}
    for name, summary in driver.finished.items():
        rows[name.partition("/")[0]] += summary.rows
        for status, cases in summary.failed.items():
            failed[status] = failed.get(status, 0) + cases
    return Outcome(
        stored=driver.store.stored(),
        studies={study.name: study.study for study in driver.requests},
        chunks={study.name: study.chunks for study in driver.requests},
        origins={study.name: study.origin for study in driver.requests},
        ran=driver.ran,
        reused=driver.reused,
        measured=driver.measured,
        kept=sum(summary.cases for summary in driver.finished.values()) - driver.measured,
        rows=sum(rows.values()),
        failed=dict(sorted(failed.items())),
        unmeasured=tuple(study.name for study in driver.requests if study.chunks and not rows[study.name]),
    )
