"""Requests to run studies: a `Request`, and for each study the chunks that it means.

    request = Request(preset="standard", seeds=8)
    requested = ask(find("gradient_flow"), request)     # StudyRequest: the study, its chunks, what a model cannot do
    requested = second_stage(requested, request, rows)  # with the chunks that its second stage asks for

Everything here is a pure function of declarations and, for a second stage, of stored rows.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from depthgauge import discovery, hashing, origin, preflight, topics
from depthgauge.discovery import Found
from depthgauge.factories import Input, Target
from depthgauge.foreign import contained
from depthgauge.isolation import isolated
from depthgauge.restriction import Restricted, equip, restrict
from depthgauge.study import Case, Chunk, Grid, Study, StudyError

if TYPE_CHECKING:
    import pandas as pd

    from depthgauge.reading import StudyRows

Tried = Mapping[Case, str]


@dataclass(frozen=True)
class Request:
    """A request to run studies, independent of the directory and the place.

    Attributes:
        preset: which of the studies' grids.
        seeds: repetitions, in place of the preset's own.
        model: run on this model alone (`models.target(...)`) what the studies can ask of another model; what it cannot
            do is found first, by the studies' preflight.
        device: `cpu`, `cuda`, `cuda:1` or `auto`.
        time_limit: seconds that a chunk may take, in place of the studies' own.
    """

    preset: str = "quick"
    seeds: int | None = None
    model: Target | None = None
    device: str = "cpu"
    time_limit: float | None = None


@dataclass(frozen=True)
class StudyRequest:
    """A request's share for one study.

    Attributes:
        study: the declaration; on a model, with the grids that are left of the preset.
        origin: the origin for loading it in another process; None where only this process has it.
        source: SHA-256 of its code; None for depthgauge's own.
        chunks: those of the first stage, then those of the second where `waiting` is over.
        restricted: the part of it that runs on a model, and on this machine; None where that is all of it.
        tried: the preflight: smallest case -> what it ended with, empty where well.
        waiting: whether it has a second stage that has not been asked yet.
        unread: why its code cannot be told from other code, so that no later run takes its rows; empty where it can.
    """

    study: Study
    origin: str | None
    source: str | None
    chunks: tuple[Chunk, ...]
    restricted: Restricted | None = None
    tried: Tried = field(default_factory=dict)
    waiting: bool = False
    unread: str = ""

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.name

    @property
    def refusals(self) -> Iterator[str]:
        """List the preflight's refusals, in sentences for the user."""
        reasons = {reason for reason in self.tried.values() if reason}
        for line in self.restricted.left_out if self.restricted else ():
            if any(line.endswith(reason) for reason in reasons):
                yield f"{self.name}: {line}"


# -- from a study to its chunks ----------------------------------------------------------------------------------------


def choose(studies: Sequence[str | Study], preset: str, sources: Sequence[str]) -> Sequence[Found | Study]:
    """Choose studies by name or by themselves, each once; all known ones where none is named.

    What is misspelt is told before the first is imported. A study that an installed distribution brings and that cannot
    be run is left out where none is named.

    Raises:
        UnknownStudyError: there is no study of that name, or none at all.
        UnknownPresetError: a study has no preset of that name.
    """
    if not studies:
        every = [study for study in discovery.discover(sources) if discovery.runs(study, preset)]
        if not every:
            raise discovery.UnknownStudyError("there are no studies to run")
        chosen: list[Found | Study] = sorted(every, key=lambda study: topics.place(study.topic))  # as in a report
    else:
        chosen = [study if isinstance(study, Study) else discovery.find(study, sources) for study in studies]
    for study in chosen:
        if study.presets:  # a file that computes them is asked once it is imported
            discovery.check_preset(study.name, preset, tuple(study.presets))
    return tuple({study.name: study for study in chosen}.values())


def ask(chosen: Found | Study, request: Request, tried: Mapping[str, Tried] | None = None) -> StudyRequest:
    """The first stage of a study: its grids, on the request's model where there is one, cut into chunks.

    Args:
        chosen: the study, or where it is.
        request: the request.
        tried: study -> its preflight's outcome.

    Raises:
        StudyError: the study cannot be loaded, or contradicts itself.
        UnknownPresetError: it has no preset of that name.
    """
    study = chosen if isinstance(chosen, Study) else chosen.load()
    place = origin.declaration(study) if isinstance(chosen, Study) else chosen
    discovery.check_preset(study.name, request.preset, tuple(study.presets))
    ends = (tried or {}).get(study.name, {})
    restricted = _restricted(study, request, ends)
    if restricted:
        study = replace(study, presets={**study.presets, request.preset: restricted.grids})
    chunks = study.chunks(request.preset, request.seeds)
    source, unread = (place.source(), "") if place else _of_memory(study)
    where = place.origin if place else None
    waiting = study.second is not None
    return StudyRequest(study, where, source, chunks, restricted, ends, waiting=waiting, unread=unread)


def _of_memory(study: Study) -> tuple[str, str]:
    """The digest of a study that is in no module, or what stands for it, and why there is none."""
    try:
        return origin.digest(study), ""
    except hashing.UnreadableError as error:
        return hashing.unknown(), str(error)


def _restricted(study: Study, request: Request, tried: Tried) -> Restricted | None:
    here = equip(study, request.preset, request.device)
    if request.model is None:
        return here
    if here:
        study = replace(study, presets={**study.presets, request.preset: here.grids})
    refused = {case: reason for case, reason in tried.items() if reason}
    return restrict(study, request.preset, request.model, refused).within(here)


def smallest(requested: StudyRequest) -> StudyRequest:
    """The preflight of a study: a chunk of its own for every smallest case."""
    grids = requested.restricted.grids if requested.restricted else ()
    cases = dict.fromkeys(case for grid in grids for case in preflight.ways(requested.study, grid).values())
    return replace(requested, chunks=tuple(Chunk(requested.name, (case,)) for case in cases))


def second_stage(requested: StudyRequest, request: Request, rows: StudyRows) -> StudyRequest:
    """The study with the chunks that its second stage asks for; the same ones for the same rows.

    Args:
        requested: the study, its first stage finished.
        request: the request.
        rows: the rows of its first stage.

    Raises:
        StudyError: the second stage raises, returns no grids, or asks for cases of the first; says what to do.
    """
    try:
        return _second_stage(requested, request, rows)
    except StudyError as error:
        where = "" if "second stage" in str(error) else "second stage of "
        raise StudyError(
            f"{where}{error}; the rows of the first are kept, and `depthgauge report` shows them. Rows stay with the"
            " code that made them: mend `second` on a few --seeds and another --out"
        ) from error


def _second_stage(requested: StudyRequest, request: Request, rows: StudyRows) -> StudyRequest:
    study = requested.study
    if study.second is None or not rows.measured_rows:
        return replace(requested, waiting=False)
    grids = _grids(study, study.second, request.preset, rows)
    restricted = requested.restricted
    declared = replace(study, presets={**study.presets, request.preset: grids})
    if further := _restricted(declared, request, requested.tried):
        grids = further.grids
        restricted = restricted.joined(further) if restricted else replace(further, not_applicable={})
    chunks = study.cut(grids, request.seeds, after=requested.chunks)
    return replace(requested, chunks=(*requested.chunks, *chunks), restricted=restricted, waiting=False)


def _grids(
    study: Study, second: Callable[[str, pd.DataFrame], Iterable[Grid]], preset: str, rows: StudyRows
) -> tuple[Grid, ...]:
    from depthgauge.parts import SecondStage  # noqa: PLC0415 - pandas is not needed before this

    try:
        with contained(), isolated(f"{study.name}: second stage", study.threads, "cpu"):
            if isinstance(second, SecondStage):
                return second.of(preset, rows)
            grids = tuple(second(preset, rows.frame(by_case=True, ok=True)))
    except Exception as error:
        raise StudyError(f"study {study.name!r}: its second stage raised {origin.describe(study, error)}") from error
    if wrong := [type(grid).__name__ for grid in grids if not isinstance(grid, Grid)]:  # type: ignore[redundant-expr] # likewise
        raise StudyError(f"study {study.name!r}: its second stage returned a {wrong[0]}, where a Grid belongs")
    replace(study, presets={**study.presets, preset: grids})  # raises where it could not be declared so
    return grids


# -- what is recorded of it --------------------------------------------------------------------------------------------


def entry(requested: StudyRequest, request: Request) -> dict[str, object]:
    """Return the study's entry in `run.json`."""
    recorded: dict[str, object] = {
        "preset": request.preset,
        "seeds": request.seeds,
        "origin": requested.origin and discovery.place(requested.origin),
        "threads": requested.study.threads,
    }
    if requested.origin and (root := discovery.root(requested.origin)):
        recorded["root"] = root
    if restricted := requested.restricted:
        recorded |= {"not_applicable": dict(restricted.not_applicable), "left_out": list(restricted.left_out)}
    if requested.tried:
        recorded |= {"tried": {case.id: reason for case, reason in requested.tried.items()}}
    if model := request.model:
        recorded |= {"model": model.spec, "model_source": model.source}
        recorded |= {} if model.input is None else {"model_input": str(model.input)}
    recorded |= {"source": requested.source} if requested.source else {}
    return recorded | ({"second_waits": True} if requested.waiting else {})


def command(entries: Mapping[str, Mapping[str, object]], device: str, out: Path | None = None) -> str:
    """The command line that measures these studies so, such as everything in a directory again.

    Args:
        entries: study -> what `run.json` says that was asked of it.
        device: as torch spells it.
        out: the directory; None leaves it to the command.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, recorded in entries.items():
        key = (
            recorded.get("preset") or "quick",
            recorded.get("seeds"),
            recorded.get("model"),
            recorded.get("model_input"),
        )
        groups.setdefault(key, []).append(name)
    commands = []
    for (preset, seeds, model, fed), names in groups.items():
        origins = [str(entries[name]["origin"]) for name in names if entries[name].get("origin")]
        options = ["--preset", str(preset)]
        options += [] if seeds is None else ["--seeds", str(seeds)]
        options += [] if model is None else ["--model", str(model)]
        options += [] if fed is None else Input.parse(str(fed)).options
        options += [] if device == "cpu" else ["--device", device]
        options += [word for place in origins if discovery.foreign(place) for word in ("--studies", place)]
        options += [] if out is None else ["--out", str(out)]
        commands.append(shlex.join(["depthgauge", "run", *names, *options]))
    return " && ".join(commands)


def few_seeds(requested: StudyRequest, request: Request) -> Iterator[str]:
    """Warn of a study whose seeds are too few for its verdicts or comparisons.

    Of seeds that depthgauge's own presets have nothing is said here: the user has not chosen them, and the report tells
    which claims they leave open.
    """
    study = requested.study
    if request.seeds is None and requested.origin and not discovery.foreign(requested.origin):
        return
    counts = [request.seeds or grid.seeds for grid in study.presets[request.preset] if grid.seeds]
    if counts and min(counts) < 5:
        yield f"{study.name}: fewer than 5 seeds give points, and verdicts that are inconclusive"
    elif counts and study.comparisons:
        from depthgauge.stats import too_few_seeds  # noqa: PLC0415 - scipy is not needed before this

        warning = too_few_seeds(min(counts), study.comparisons)
        if warning:
            yield f"{study.name}: {warning}"
