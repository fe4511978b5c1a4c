"""The content of a report: each stored study is examined once, into plain data that the pages show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from matplotlib import pyplot
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure as Canvas

from depthgauge import drawing, origin
from depthgauge.foreign import as_line, contained, describe_error
from depthgauge.isolation import preserved
from depthgauge.parts import Analysis
from depthgauge.pilots import plain
from depthgauge.reading import StudyRows
from depthgauge.reports import images, style
from depthgauge.reports.converting import plain_sentences, plain_verdict
from depthgauge.reports.escaping import Prose, clean, shorten, slug
from depthgauge.reports.settling import Asked, Settling, settling
from depthgauge.reports.tables import Table
from depthgauge.store import Stored
from depthgauge.study import Study, StudyError
from depthgauge.verdict import Claim, Figure, Findings, Sentence, Status, Verdict, unknown_claim

_PAGES = frozenset({"report", "index"})
_GROUPS = 10  # kinds of failure that are listed
_EXAMPLES = 3  # cases named for each
_NO_FIGURE = "A figure is missing"  # a problem that leaves every claim answered


@dataclass(frozen=True)
class Step:
    """A stepped figure's drawing at one value of its further axis."""

    label: str
    png: bytes
    svg: bytes

    @property
    def smallest(self) -> tuple[str, bytes]:
        """Media type and bytes of the smaller file."""
        return images.smallest(self.png, self.svg)


@dataclass(frozen=True)
class Drawing:
    """A figure that was drawn: its files' common name, what it says, its bytes, and those at each step it has.

    Attributes:
        map: whether colour stands for numbers in it: such a figure keeps its colours in the dark.
    """

    name: str
    stem: str
    title: str
    caption: str
    alt: str
    png: bytes
    svg: bytes
    steps: tuple[Step, ...] = ()
    map: bool = False

    @property
    def smallest(self) -> tuple[str, bytes]:
        """Media type and bytes of the smaller file: what a page shows."""
        return images.smallest(self.png, self.svg)


@dataclass(frozen=True)
class Failure:
    """Cases that failed in one and the same way, numbers aside."""

    status: str
    message: str
    cases: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """One study of the report.

    Attributes:
        slug: its page's and its files' name.
        topic: the question of a report that it belongs to (`depthgauge.topics`); empty for its own.
        claims: what the study claims, with their topics.
        model: the model that the run was restricted to, if it was.
        left_out: why parts of the study were not run on it.
        stopped: sentences on cases that were not run, because those before them had all failed.
        unfinished: number of requested chunks without rows.
        waiting: whether its second stage is still to be asked for.
        chunks: number of requested chunks.
        cases: number of distinct cases with rows.
        failed: number of them with a row whose status is not "ok".
        diverged: number of them with a metric "diverged" above 0.
        failures: the failed cases by what happened, the most frequent first.
        other_failures: number of further kinds of failure, which are not listed.
        problems: reasons why this section is not complete, a sentence each.
        settle: claim -> what would settle it, for those that are undecided.
    """

    name: str
    slug: str
    question: str = ""
    topic: str = ""
    claims: tuple[Claim, ...] = ()
    preset: str = ""
    seeds: int | None = None
    model: str = ""
    left_out: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()
    unfinished: int = 0
    waiting: bool = False
    chunks: int = 0
    cases: int = 0
    failed: int = 0
    diverged: int = 0
    failures: tuple[Failure, ...] = ()
    other_failures: int = 0
    verdicts: tuple[Verdict, ...] = ()
    answers: tuple[Sentence, ...] = ()
    tables: tuple[Table, ...] = ()
    drawings: tuple[Drawing, ...] = ()
    method: Prose | None = None
    caveats: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    settle: Mapping[str, Settling] = field(default_factory=dict)

    @property
    def measured(self) -> bool:
        """Tell whether the study has a single result."""
        return self.cases > self.failed

    @property
    def topics(self) -> dict[str, str]:
        """Claim -> the topic it belongs to: its own, or else the study's."""
        return {claim.id: claim.topic or self.topic for claim in self.claims}


def examine(
    stored: Stored, name: str, study: Study | None, progress: Callable[[str], None]
) -> tuple[Section, tuple[Exception, ...]]:
    """Examine one stored study; an error on the way becomes a problem of its section."""
    with preserved():  # what one study's analysis sets does not reach the next
        section, errors = _examine(stored, name, study, progress)
        unfinished = bool(section.unfinished or section.waiting)
        problem = any(not one.startswith(_NO_FIGURE) for one in section.problems)
        asked = Asked.of(name, stored.run, unfinished=unfinished, failed=section.failed, problem=problem)
        return replace(section, settle=settling(section.verdicts, study, asked)), errors


def _examine(
    stored: Stored, name: str, study: Study | None, progress: Callable[[str], None]
) -> tuple[Section, tuple[Exception, ...]]:
    section = Section(name, slug(name, _PAGES), **_request_of(stored, name))
    if study is not None:
        section = replace(
            section,
            question=study.question,
            topic=study.topic,
            claims=tuple(study.claims),
            method=Prose(study.method) if study.method.strip() else None,
            caveats=tuple(study.caveats),
        )
    if section.model and not section.chunks:
        return replace(section, verdicts=tuple(_excluded(stored, name, study))), ()
    try:
        rows = stored.rows(name)
        section = replace(section, **_counts(rows))
    except Exception as error:  # noqa: BLE001 -- one unreadable study must not cost the others their report
        section = _unanswered(section, study, f"Its rows could not be read: {_sentence(error, study)}")
        return section, (error,)
    if study is None:
        unknown = LookupError(f"No study named {name!r} was found to analyse it; name its file or package by --studies")
        return _unanswered(section, None, f"{unknown}."), (unknown,)
    if not section.measured:
        return _unmeasured(section, stored, study), ()
    progress(f"{name}: analysing")
    try:
        with contained():
            findings = study.analyse.of(rows) if isinstance(study.analyse, Analysis) else study.analyse(rows.frame())
            section = replace(section, **_fields_of(findings, section.slug, study))
    except Exception as error:  # noqa: BLE001 -- an analysis is foreign code
        return _unanswered(section, study, f"Its analysis failed: {_sentence(error, study)}"), (error,)
    verdicts = (_of_one_model(verdict, section) for verdict in section.verdicts)
    decided = {verdict.id: verdict for verdict in (*verdicts, *_excluded(stored, name, study))}
    answers = (*_not_finite(rows), *section.answers)
    section = replace(section, verdicts=tuple(decided.values()), answers=answers)
    drawings, errors = _draw(study, findings, section.slug, progress)
    problems = (
        *(_problem(error, study) for error in findings.errors),
        *(f"{_NO_FIGURE}: {_sentence(error, study)}" for error in errors),
    )
    return replace(section, drawings=drawings, problems=problems), (*findings.errors, *errors)


def _problem(error: Exception, study: Study) -> str:
    contradicts = isinstance(error, StudyError)
    return f"{'' if contradicts else 'The analysis of a part failed: '}{_sentence(error, study)}"


def _not_finite(rows: StudyRows) -> Iterator[Sentence]:
    """A sentence on each part of which no value is finite."""
    for part, (measured, finite) in rows.finite.items():
        if not finite:
            where = f" of the part {part}" if len(rows.finite) > 1 else ""
            yield Sentence(f"{measured:,} of {measured:,} values{where} are not finite.")


def _request_of(stored: Stored, name: str) -> dict[str, Any]:
    request = stored.run["request"].get(name, {})
    return {
        "preset": str(request.get("preset", "")),
        "seeds": request.get("seeds"),
        "model": str(request.get("model", "")),
        "left_out": tuple(map(str, request.get("left_out", ()))),
        "stopped": tuple(map(str, request.get("stopped", ()))),
        "unfinished": stored.missing(name),
        "waiting": bool(request.get("second_waits")),
        "chunks": len(stored.chunks(name)),
    }


def _excluded(stored: Stored, name: str, study: Study | None) -> Iterator[Verdict]:
    """Yield an excluded verdict for each claim that a run on one model could not ask."""
    reasons = stored.run["request"].get(name, {}).get("not_applicable", {})
    for claim in study.claims if study is not None else ():
        if claim.id in reasons:
            yield Verdict(claim.id, claim.text, Status.NOT_APPLICABLE, why=str(reasons[claim.id]))


def _alike(messages: pd.Series) -> str:
    """One message for all that differ from it in numbers alone."""
    first = shorten(clean(str(messages.iloc[0])))
    others = messages.nunique() - 1
    return f"{first} (and {others:,} more that differ in numbers alone)" if others else first


def _of_one_model(verdict: Verdict, section: Section) -> Verdict:
    """Turn a verdict without data into an excluded one, where a whole run on one model failed nowhere."""
    whole = section.model and not (section.failed or section.unfinished or section.waiting or section.stopped)
    if verdict.status is not Status.NOT_MEASURED or not whole:
        return verdict
    why = f"no case of this preset on {section.model} answers it"
    return replace(verdict, status=Status.NOT_APPLICABLE, why=why)


def _counts(rows: StudyRows) -> dict[str, Any]:
    if not rows.cases:
        return {}
    broken = rows.broken
    kinds = broken.drop_duplicates().assign(message=lambda some: some["message"].fillna("").astype(str))
    kinds["alike"] = kinds["message"].map(plain)
    failures = [
        Failure(str(status), _alike(some["message"]), len(some), tuple(map(str, some["case"].iloc[:_EXAMPLES])))
        for (status, _), some in kinds.groupby(["status", "alike"], sort=True)
    ]
    failures.sort(key=lambda failure: -failure.cases)
    return {
        "cases": rows.cases,
        "failed": int(broken["case"].nunique()),
        "diverged": rows.diverged,
        "failures": tuple(failures[:_GROUPS]),
        "other_failures": max(len(failures) - _GROUPS, 0),
    }


def _fields_of(findings: Findings, stem: str, study: Study) -> dict[str, Any]:
    if not isinstance(findings, Findings):
        raise TypeError(f"it returned {type(findings).__name__}, where Findings were expected")
    if unknown := [why for verdict in findings.verdicts if (why := unknown_claim(verdict.id, study.claims))]:
        raise StudyError(f"it gave a verdict on {unknown[0]}")
    answered = [verdict.id for verdict in findings.verdicts]
    if twice := [name for name in answered if answered.count(name) > 1]:
        raise ValueError(f"it returned two verdicts on {twice[0]}, where each claim has one")
    silent = tuple(claim for claim in study.claims if claim.id not in answered)
    missing = (_no_verdict(claim.id, claim.text, "The analysis returned no verdict on this claim.") for claim in silent)
    return {
        "verdicts": (*map(plain_verdict, findings.verdicts), *missing),
        "answers": plain_sentences(findings.answers),
        "tables": tuple(
            Table.of(str(name), f"{stem}.{slug(str(name))}", table, shown=name in findings.shown)
            for name, table in findings.tables.items()
        ),
    }


def _unmeasured(section: Section, stored: Stored, study: Study) -> Section:
    """Complete the section of a study without a single result: it has no analysis and no undecided claim."""
    every = "its one case" if section.cases == 1 else f"all {section.cases:,} cases"
    most = ", most of them with" if len(section.failures) > 1 else ""
    why = f"{every} failed{most}: {section.failures[0].message}" if section.failures else "no case has been run yet"
    verdicts = {claim.id: Verdict(claim.id, claim.text, Status.NOT_MEASURED, why=why) for claim in study.claims}
    verdicts |= {verdict.id: verdict for verdict in _excluded(stored, section.name, study)}
    return replace(section, verdicts=tuple(verdicts.values()), problems=(f"Nothing was measured: {why}",))


def _unanswered(section: Section, study: Study | None, reason: str) -> Section:
    claims = study.claims if study is not None else ()
    verdicts = tuple(_no_verdict(claim.id, claim.text, reason) for claim in claims)
    return replace(section, verdicts=verdicts, problems=(reason,))


def _no_verdict(identifier: str, claim: str, reason: str) -> Verdict:
    return Verdict(identifier, claim, Status.INCONCLUSIVE, why=reason)


def _draw(
    study: Study, findings: Findings, stem: str, progress: Callable[[str], None]
) -> tuple[tuple[Drawing, ...], tuple[Exception, ...]]:
    drawings: dict[str, Drawing] = {}
    errors: list[Exception] = []
    with style.drawing():
        try:
            with contained():
                for figure in study.plot(findings):
                    progress(f"{study.name}: drawing figure {len(drawings) + 1}")
                    try:
                        with contained():
                            made = drawn(figure, stem)
                        if made.stem in drawings:
                            raise ValueError(f"two figures are named {made.name!r}")
                        drawings[made.stem] = made
                    except Exception as error:  # noqa: BLE001 -- foreign code; the other figures are wanted
                        errors.append(error)
        except ExceptionGroup as several:
            errors += several.exceptions
        except Exception as error:  # noqa: BLE001 -- likewise
            errors.append(error)
    return tuple(drawings.values()), tuple(errors)


def drawn(figure: object, stem: str = "", *, outlines: bool = True) -> Drawing:
    """A figure's bytes, its message above the panels, and its words; without outlines there is no SVG."""
    if isinstance(figure, Figure) and figure.canvas is None:
        raise StudyError(str(figure.title))
    if not isinstance(figure, Figure) or not isinstance(figure.canvas, Canvas):
        raise TypeError("the study's plot returned something other than depthgauge.verdict.Figure with a canvas")
    name, title, canvas = str(figure.name), str(figure.title), figure.canvas
    alt = str(figure.alt) or drawing.described(canvas, title)
    mapped = any(axes.images or any(isinstance(one, QuadMesh) for one in axes.collections) for axes in canvas.axes)
    png, svg = _files(canvas, title, outlines)
    steps = tuple(Step(str(label), *_files(step, title, outlines)) for label, step in figure.steps)
    return Drawing(name, f"{stem}.{slug(name)}".lstrip("."), title, str(figure.caption), alt, png, svg, steps, mapped)


def _files(canvas: object, title: str, outlines: bool) -> tuple[bytes, bytes]:
    """A canvas as PNG and SVG, its message above the panels."""
    if not isinstance(canvas, Canvas):
        raise TypeError("the study's plot returned something other than depthgauge.verdict.Figure with a canvas")
    drawing.entitle(canvas, shorten(clean(title)))
    png, svg = style.files(canvas, "png", "svg") if outlines else (style.png(canvas), b"")
    pyplot.close(canvas)  # its memory is needed for the next one
    return png, svg


def _sentence(error: Exception, study: Study | None) -> str:
    """The error and the author's line, which is not cut off however long the error is."""
    sentence = shorten(clean(as_line(error) if isinstance(error, StudyError) else describe_error(error)))
    where = clean(origin.line(study, error)) if study else ""
    return f"{sentence} {where}" if where else sentence
