"""A study of several parts, each declared once, beside its code.

    RATE = Claim("my_study/rate", "...")
    SIZES = sizes("width seeds", quick=(64, 20), standard=(256, 40), full=(512, 60), tiny=(4, 5))

    def grids(width, seeds): ...    # -> Grids
    def run(cases, context): ...    # cases of one chunk -> Rows
    def analyse(rows): ...          # the part's measured rows -> tables, verdicts and sentences

    PART = Part("signal", (RATE,), SIZES, grids, run, analyse, figures=(rates, profiles), method="...")

and in the study's own file

    STUDY = study("my_study", "Does it?", (signal.PART, training.PART), caveats=("...",))

Every case carries the parameter `part`. A part that was not run, or whose cases all failed, contributes nothing, and
its claims are `not_measured`.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pandas as pd

from depthgauge.foreign import describe_error
from depthgauge.study import PART, SERIES, Case, Context, Grid, Rows, Study, StudyError, is_name
from depthgauge.topics import unknown_topic
from depthgauge.verdict import Claim, Figure, Findings, Sentence, Status, Verdict, unknown_claim

Tables = Mapping[str, pd.DataFrame]
Answer = Verdict | tuple[str, pd.DataFrame] | Sentence | str
"""What an analysis yields, in any order: a verdict, a named table, or a sentence, best with its figure."""

TINY = "tiny"  # a size for tests: every case in a moment


def sizes(names: str, **presets: tuple[Any, ...]) -> Mapping[str, Mapping[str, Any]]:
    """Preset -> arguments of a part's `grids`, from their names and one tuple of values a preset.

    Raises:
        StudyError: a preset has more or fewer values than there are names.
    """
    columns = names.split()
    for preset, values in presets.items():
        if not isinstance(values, tuple):
            raise StudyError(f"size {preset!r} is a {type(values).__name__}, where a tuple of {len(columns)} belongs")
    if wrong := [preset for preset, values in presets.items() if len(values) != len(columns)]:
        raise StudyError(f"size {wrong[0]!r} has {len(presets[wrong[0]])} values for {len(columns)} names, {names}")
    return {preset: dict(zip(columns, values, strict=True)) for preset, values in presets.items()}


@dataclass(frozen=True)
class Part:
    """One part of a study.

    Attributes:
        name: it becomes the parameter `part` of every case.
        claims: what it answers; a grid that names none answers all of them.
        sizes: preset -> keyword arguments of `grids`; `tiny` is for tests and no preset.
        grids: the part at one size.
        run: cases of one chunk in, rows out.
        analyse: its measured rows in; tables, verdicts and sentences out, in any order.
        figures: made by `drawing.figure`: tables of the whole study in, figures out.
        method: markdown for the report.
        second: its second stage: measured rows of the first, and the size's arguments, to further grids.
        preflight: as in `Study`.
        shown: names of its tables that are printed in the study's page; the others are only linked.
        topic: the question of a report that its claims belong to, where it is not the study's (`depthgauge.topics`).

    Raises:
        StudyError: a field has a type that it cannot have.
    """

    name: str
    claims: tuple[Claim, ...]
    sizes: Mapping[str, Mapping[str, Any]]
    grids: Callable[..., Iterable[Grid]]
    run: Callable[[Sequence[Case], Context], Iterable[Rows]]
    analyse: Callable[[pd.DataFrame], Iterable[Answer]]
    figures: tuple[Callable[[Tables], Iterable[Figure]], ...] = ()
    method: str = ""
    second: Callable[..., Iterable[Grid]] | None = None
    preflight: Callable[[Case], Case] | None = None
    shown: tuple[str, ...] = ()
    topic: str = ""

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise StudyError(f"part name {self.name!r} is no lower-case identifier")
        called = {"grids": self.grids, "run": self.run, "analyse": self.analyse}
        called |= {name: value for name in ("second", "preflight") if (value := getattr(self, name)) is not None}
        for name, value in called.items():
            if not callable(value):
                raise StudyError(f"part {self.name!r}: its {name} is a {type(value).__name__}, which cannot be called")
        tuples: tuple[tuple[str, str, Callable[[object], bool]], ...] = (
            ("claims", "Claims", lambda item: isinstance(item, Claim)),
            ("figures", "functions", callable),
            ("shown", "texts", lambda item: isinstance(item, str)),
        )
        for name, kind, fits in tuples:
            items = getattr(self, name)
            if not isinstance(items, tuple) or not all(map(fits, items)):
                raise StudyError(f"part {self.name!r}: its {name} are no tuple of {kind}")
        if why := unknown_topic(str(self.topic)):
            raise StudyError(f"part {self.name!r}: {why}")
        if not isinstance(self.method, str) or not isinstance(self.sizes, Mapping):  # type: ignore[redundant-expr]  # a study is not type-checked
            raise StudyError(
                f"part {self.name!r}: its method is text, and its sizes are a mapping, as `sizes` makes it"
            )

        for size, given in self.sizes.items():
            self._check_call("grids", self.grids, size, given)
            if self.second is not None:
                self._check_call("second", self.second, size, given, None)

    def _check_call(self, name: str, function: Callable[..., Any], size: str, given: object, *rows: None) -> None:
        """Check that a size holds the function's parameters, before anything is measured."""
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # built in
            return
        try:
            signature.bind(*rows, **given)  # type: ignore[arg-type]  # a study is not type-checked
        except TypeError as error:
            words = " and ".join(map(str, given)) if isinstance(given, Mapping) else "no mapping"
            raise StudyError(
                f"part {self.name!r}, size {size!r}: {name}{signature} cannot be called with {words}: {error}"
            ) from error

    def at(self, size: str) -> tuple[Grid, ...]:
        """Its grids at one size, marked as its own."""
        return self._own(self.grids(**self.sizes[size]), "grids")

    def after(self, size: str, rows: pd.DataFrame) -> tuple[Grid, ...]:
        """Its second stage at one size; empty where it has none, or the first was not measured."""
        if self.second is None or rows.empty:
            return ()
        return self._own(self.second(rows, **self.sizes[size]), "second")

    def _own(self, grids: object, field: str) -> tuple[Grid, ...]:
        """The grids that a function of the part returned, marked as its own."""
        every = tuple(grids) if isinstance(grids, Iterable) else (grids,)
        if wrong := [type(grid).__name__ for grid in every if not isinstance(grid, Grid)]:
            raise StudyError(f"part {self.name!r}: its {field} returned a {wrong[0]}, where Grids belong")
        claims = tuple(claim.id for claim in self.claims)
        return tuple(
            replace(grid, fixed={**grid.fixed, PART: self.name}, claims=grid.claims or claims) for grid in every
        )


def study(
    name: str,
    question: str,
    parts: Sequence[Part],
    *,
    shown: tuple[str, ...] = (),
    series: int | None = None,
    **more: Any,
) -> Study:
    """The study that these parts make; their order is that of the report.

    Args:
        name: the study's.
        question: a sentence that ends in a question mark.
        parts: with one set of sizes.
        shown: names of tables printed in the study's page, beside those that the parts name.
        series: a parameter of every case that gives it other draws (`Case.random_seed`). A study whose sizes or margins
            were set with results in view begins a new series before it reports: seeds that had a part in a choice
            confirm nothing.
        **more: further fields of `Study`, such as its caveats.

    Raises:
        StudyError: parts of one name, or of different sizes.
    """
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(part, Part) for part in parts):  # type: ignore[redundant-expr]  # a study is not type-checked
        raise StudyError(f"study {name!r}: its parts are a tuple of one Part or more")
    by_name = {part.name: part for part in parts}
    if len(by_name) < len(parts):
        raise StudyError(f"study {name!r}: two of its parts have one name; they are {', '.join(p.name for p in parts)}")
    if len({frozenset(part.sizes) for part in parts}) != 1:
        raise StudyError(f"study {name!r}: its parts have different sizes, where each has the same presets")
    claims = tuple({c.id: replace(c, topic=c.topic or part.topic) for part in parts for c in part.claims}.values())

    def drawn(grids: Iterable[Grid]) -> tuple[Grid, ...]:
        own = {} if series is None else {SERIES: series}
        return tuple(replace(grid, fixed={**grid.fixed, **own}) for grid in grids)

    def preflight(case: Case) -> Case:
        smallest = by_name[case.text(PART)].preflight
        return case if smallest is None else smallest(case)

    return Study(
        name,
        question,
        presets={size: drawn(grid for part in parts for grid in part.at(size)) for size in _presets(parts)},
        run=lambda cases, context: by_name[cases[0].text(PART)].run(cases, context),
        analyse=Analysis(tuple(parts), claims, shown),
        plot=lambda findings: _figures(parts, findings),
        claims=claims,
        method="\n\n".join(part.method.strip() for part in parts if part.method.strip()),
        preflight=preflight if any(part.preflight for part in parts) else None,
        second=SecondStage(tuple(parts), drawn) if any(part.second for part in parts) else None,
        parts=tuple(parts),
        **more,
    )


def _presets(parts: Sequence[Part]) -> list[str]:
    return [size for size in parts[0].sizes if size != TINY]


class Source(Protocol):
    """Rows of a study, to be had part by part: all in one frame, or in files of a run."""

    @property
    def whole(self) -> bool:
        """Tell whether every row was measured."""

    def asked(self, part: str) -> bool:
        """Tell whether any case of the part has ended, well or not."""

    def measured(self, part: str, *, by_case: bool = False) -> pd.DataFrame:
        """The rows of the part's cases that were measured."""


@dataclass(frozen=True)
class _Frame:
    """Rows that one frame holds."""

    frame: pd.DataFrame

    @property
    def whole(self) -> bool:
        return bool((self.frame["status"] == "ok").all())

    def asked(self, part: str) -> bool:
        return PART in self.frame and bool((self.frame[PART] == part).any())

    def measured(self, part: str, *, by_case: bool = False) -> pd.DataFrame:
        if PART not in self.frame:  # no case of any part got so far
            return self.frame.iloc[:0]
        rows = self.frame[(self.frame["status"] == "ok") & (self.frame[PART] == part)]
        return rows.sort_values("case", kind="stable") if by_case else rows


@dataclass(frozen=True)
class SecondStage:
    """The second stages of all parts.

    Attributes:
        parts: the study's.
        drawn: puts the study's series into grids.
    """

    parts: tuple[Part, ...]
    drawn: Callable[[Iterable[Grid]], tuple[Grid, ...]]

    def __call__(self, size: str, frame: pd.DataFrame) -> tuple[Grid, ...]:
        """The further grids, from rows that one frame holds."""
        return self.of(size, _Frame(frame))

    def of(self, size: str, rows: Source) -> tuple[Grid, ...]:
        """The further grids; of the rows only those of one part are asked for at a time, in the cases' order."""
        asking = (part for part in self.parts if part.second is not None)
        return self.drawn(grid for part in asking for grid in part.after(size, rows.measured(part.name, by_case=True)))


@dataclass(frozen=True)
class Analysis:
    """The analyses of all parts, put together.

    Attributes:
        parts: the study's.
        claims: the study's; the order of the verdicts.
        shown: names of tables that are printed, before those that the parts name.
    """

    parts: tuple[Part, ...]
    claims: tuple[Claim, ...]
    shown: tuple[str, ...]

    def __call__(self, frame: pd.DataFrame) -> Findings:
        """The findings, from rows that one frame holds."""
        return self.of(_Frame(frame))

    def of(self, rows: Source) -> Findings:
        """One verdict a claim, in the order of the claims; tables and sentences in the order of the parts.

        A part whose analysis raises costs its own answers alone. Of the rows only those of one part are asked for at a
        time, and let go before the next.
        """
        answers: list[Answer] = []
        errors: list[Exception] = []
        silent: dict[str, Verdict] = {}
        measured = rows.whole
        for part in self.parts:
            found = _Found.of(part, rows, self.claims)
            answers += found.answers
            if found.raised:
                traceback.clear_frames(found.raised.__traceback__)  # they hold the rows; the lines stay
                errors.append(found.raised)
            silent |= {claim.id: found.silent(claim) for claim in part.claims if claim.id not in silent}
            measured &= found.measured
        decided = {answer.id: answer for answer in answers if isinstance(answer, Verdict)}
        tables: dict[str, pd.DataFrame] = {}
        for name, table in (answer for answer in answers if isinstance(answer, tuple)):
            if name in tables:
                errors.append(StudyError(f"two tables are named {name!r}, of which the second is left out"))
            tables.setdefault(name, table)
        shown = (*self.shown, *(table for part in self.parts for table in part.shown))
        return Findings(
            tuple(decided.get(claim.id, silent[claim.id]) for claim in self.claims),
            tables,
            tuple(dict.fromkeys(answer for answer in answers if isinstance(answer, Sentence | str))),
            tuple(table for table in shown if table in tables),
            tuple(errors),
            whole=measured and not errors,
        )


@dataclass
class _Found:
    """The answers of a part, and what it raised after them.

    Attributes:
        part: the part.
        asked: whether any of its cases has ended.
        measured: whether any gave a row.
        answers: what its analysis yielded.
        raised: what it raised.
    """

    part: Part
    asked: bool
    measured: bool = False
    answers: list[Answer] = field(default_factory=list)
    raised: Exception | None = None

    @staticmethod
    def of(part: Part, source: Source, claims: Sequence[Claim]) -> _Found:
        rows = source.measured(part.name)
        found = _Found(part, source.asked(part.name), measured=len(rows) > 0)
        try:
            found.answers += _checked(part, part.analyse(rows), claims) if found.measured else ()
        except Exception as error:  # noqa: BLE001 - an analysis is foreign code
            found.raised = error
        return found

    def silent(self, claim: Claim) -> Verdict:
        """The verdict on a claim of which the analysis said nothing, with the reason."""
        part = self.part
        if not self.measured:
            left = not self.asked and "quick" in part.sizes and not part.at("quick")
            why = "no case was run for it; `quick` leaves it to `standard`" if left else "nothing was measured for it"
            return Verdict(claim.id, claim.text, Status.NOT_MEASURED, why=why)
        if self.raised is not None:
            why = f"the analysis of the part {part.name} failed: {describe_error(self.raised)}"
            return Verdict(claim.id, claim.text, Status.INCONCLUSIVE, why=why)
        why = f"the analysis of the part {part.name} gave no verdict on it"
        return Verdict(claim.id, claim.text, Status.NOT_MEASURED, why=why)


def _figures(parts: Sequence[Part], findings: Findings) -> Iterator[Figure]:
    """The figures of every part; a table that is missing is nobody's fault where cases failed or were not asked for.

    Raises:
        ExceptionGroup: at the end, where some could not be drawn.
    """
    errors: list[Exception] = []
    for draw in (draw for part in parts for draw in part.figures):
        try:
            drawn = [figure for figure in draw(findings.tables) if figure.canvas is not None or findings.whole]
        except Exception as error:  # noqa: BLE001 - a part is foreign code, and the other figures are wanted
            errors.append(error)
        else:
            yield from drawn
    if errors:
        raise ExceptionGroup("figures that could not be drawn", errors)


def _checked(part: Part, answers: object, claims: Sequence[Claim]) -> Iterator[Answer]:
    """The answers of a part's analysis, as far as they are such.

    Raises:
        StudyError: one is something else, or a verdict on a claim that the study has not declared.
    """
    if not isinstance(answers, Iterable) or isinstance(answers, str | pd.DataFrame):
        raise StudyError(f"part {part.name!r}: its analyse returned a {type(answers).__name__}, where answers belong")
    for answer in answers:
        if isinstance(answer, Verdict) and (why := unknown_claim(answer.id, claims)):
            raise StudyError(f"part {part.name!r} gave a verdict on {why}")
        if not (isinstance(answer, Verdict | Sentence | str) or (isinstance(answer, tuple) and len(answer) == 2)):
            kind = type(answer).__name__
            raise StudyError(f"part {part.name!r}: a {kind} is neither a verdict, a (name, table), nor a sentence")
        yield answer
