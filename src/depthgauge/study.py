"""Studies as data: varied, repeated and fixed parameters, and three functions.

The smallest useful study is one file with a module-level `STUDY`:

    def run(cases, context):
        for case in cases:
            yield case.rows("loss", measure(case["width"], case["seed"], context.device))

    STUDY = Study(
        name="my_study",
        question="Does width matter?",
        presets={"quick": (Grid({"width": (8, 64)}, seeds=5),)},
        run=run, analyse=analyse, plot=plot,
    )

A `Grid` expands to `Case`s; cases that differ only in what can be batched run together as a `Chunk`, the unit of
work, storage and resumption. Ids are spelled from parameters, never from positions, and cutting depends on the grid
alone: not on workers, on the clock, or on what was done before.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from depthgauge.foreign import contained, describe_error
from depthgauge.topics import unknown_topic
from depthgauge.verdict import Claim, Figure, Findings, unknown_claim

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Value = str | int | float | bool | None

COORDINATES = ("layer", "layer_index", "direction", "step")
PART = "part"  # the parameter that names a study's part
SERIES = "series"  # the parameter that tells one series of draws from another
RESERVED = frozenset({"case", *COORDINATES, "metric", "value", "status", "message"})

_NEEDS = re.compile("|cuda(:[1-9][0-9]{0,3})?")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LONGEST = 100  # characters of a name: with a chunk's id it still is a file name
_PARAMETER = re.compile(r"[^\W\d]\w{0,99}")
_WORDS: dict[str, Value] = {"None": None, "True": True, "False": False}
_MOST = 1_000_000  # cases of a study: a gigabyte of them, before any has run


class StudyError(ValueError):
    """Contradiction in a study's declaration; the message names the place."""


def is_name(name: object) -> bool:
    """Tell whether `name` is a valid study name: a lower-case identifier of at most 100 characters."""
    return isinstance(name, str) and len(name) <= _LONGEST and _NAME.fullmatch(name) is not None


def spell(value: Value) -> str:
    """A parameter's value as it stands in a case id; `unspell` reads it back.

    Floats are spelled by `repr`, which is exact. Text stands as it is, but for the characters that separate, which are
    percent-encoded; text that would read as another value (`1`, `None`, nothing at all) is quoted.
    """
    return _spell_text(value) if isinstance(value, str) else repr(value)


def plain(value: Any) -> Any:
    """A parameter's value without NumPy's type: a value read from a frame is the one that was written there."""
    return value.item() if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () else value


@lru_cache(maxsize=4096)  # a grid repeats few texts in many cases
def _spell_text(value: str) -> str:
    plain = quote(value, safe=" :;.+-_()[]<>!*'\"~@#$^&|{}/\\?`")
    return plain if isinstance(unspell(plain), str) and unspell(plain) == value and plain else f"'{plain}'"


def unspell(text: str) -> Value:
    """The value that `spell` has spelled so."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 1 and text[0] == text[-1] == "'":
        return unquote(text[1:-1])
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return unquote(text)


@dataclass(frozen=True)
class Rows:
    """Measured values of one case, column by column.

    `value` is a number or a sequence of n numbers; each coordinate is one value for all, or n values.
    NaN and infinity are results and stay.
    """

    case: Case
    metric: str
    value: float | Sequence[float] | np.ndarray
    layer: str | Sequence[str] | None = None
    layer_index: int | Sequence[int] | np.ndarray | None = None
    direction: str | Sequence[str] | None = None
    step: int | Sequence[int] | np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One point of a grid. Cases are one where their ids are: 1, 1.0, True and "1" make four.

    Attributes:
        params: (name, value) pairs, sorted by name.
    """

    params: tuple[tuple[str, Value], ...]

    @staticmethod
    def of(params: Mapping[str, Value]) -> Case:
        """The case with these parameters, whatever order they come in; NumPy's scalars become Python's."""
        return Case(tuple(sorted((name, plain(value)) for name, value in params.items())))

    @staticmethod
    def read(id: str) -> Case:  # noqa: A002 - it is the case's id
        """The case of that id."""
        pairs = (pair.split("=", 1) for pair in id.split(",") if pair)
        return Case.of({name: unspell(value) for name, value in pairs})

    @cached_property
    def spelled(self) -> tuple[tuple[str, str], ...]:
        """(name, value as it is spelled) pairs: equal only where the values are the same in type and sign too."""
        return tuple((name, spell(value)) for name, value in self.params)

    @cached_property
    def id(self) -> str:
        """`activation=tanh,depth=32,seed=3`: the parameters in alphabetical order."""
        return ",".join(f"{name}={value}" for name, value in self.spelled)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Case) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __getitem__(self, name: str) -> Value:
        for key, value in self.params:
            if key == name:
                return value
        raise KeyError(f"this case has no parameter {name!r}; it has {', '.join(k for k, _ in self.params)}")

    def __contains__(self, name: object) -> bool:
        return any(key == name for key, _ in self.params)

    def get(self, name: str, default: Value = None) -> Value:
        """The parameter's value, or `default` where the case has no such parameter."""
        return dict(self.params).get(name, default)

    def but(self, **params: Value) -> Case:
        """The same case with other values of the parameters named; those that it does not have are not added."""
        return Case(tuple((name, params.get(name, value)) for name, value in self.params))

    def integer(self, name: str) -> int:
        """The parameter as an `int`.

        Raises:
            TypeError: it is something else.
        """
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"parameter {name!r} is {value!r}, where an integer was expected")
        return value

    def number(self, name: str) -> float:
        """The parameter as a `float`.

        Raises:
            TypeError: it is no number.
        """
        value = self[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"parameter {name!r} is {value!r}, where a number was expected")
        return float(value)

    def text(self, name: str) -> str:
        """The parameter as a `str`.

        Raises:
            TypeError: it is no string.
        """
        value = self[name]
        if not isinstance(value, str):
            raise TypeError(f"parameter {name!r} is {value!r}, where text was expected")
        return value

    def given(self, *names: str) -> dict[str, Any]:
        """Return the named parameters that the case has and that are not None: the rest is the model's own."""
        return {name: value for name in names if (value := self.get(name)) is not None}

    def random_seed(self, *names: str) -> int:
        """A 63-bit seed that depends on the named parameters alone (on all of them where none is named).

        Naming few makes draws common to the cases that share them (common random numbers: a paired comparison). A
        parameter `series` always counts: another series has other draws throughout (`depthgauge.parts.study`).
        """
        counted = {*names, SERIES} if SERIES in self else {*names}
        spelled = ",".join(f"{name}={spell(self[name])}" for name in sorted(counted)) if names else self.id
        return int.from_bytes(hashlib.sha256(spelled.encode()).digest()[:8], "big") >> 1

    def rows(
        self,
        metric: str,
        value: float | Sequence[float] | np.ndarray,
        *,
        layer: str | Sequence[str] | None = None,
        layer_index: int | Sequence[int] | np.ndarray | None = None,
        direction: str | Sequence[str] | None = None,
        step: int | Sequence[int] | np.ndarray | None = None,
    ) -> Rows:
        """One measured value of this case, or a column of them."""
        return Rows(self, metric, value, layer, layer_index, direction, step)


@dataclass(frozen=True)
class Chunk:
    """Cases that run together: the unit of work, storage and resumption.

    Attributes:
        study: its name.
        cases: in the order in which they run.
        exclusive: runs with nothing beside it.
        grid: the place of its grid in the preset; no part of its id.
    """

    study: str
    cases: tuple[Case, ...]
    exclusive: bool = False
    grid: int = 0

    @property
    def shared(self) -> str:
        """The parameters that all cases of the chunk have in common, spelled like a case id."""
        common = set(self.cases[0].spelled).intersection(*(case.spelled for case in self.cases[1:]))
        return ",".join(f"{name}={value}" for name, value in self.cases[0].spelled if (name, value) in common)

    @cached_property
    def id(self) -> str:
        """A file name: the shared parameters, cut to a readable length, and a digest of every case id."""
        digest = hashlib.sha256("\n".join(case.id for case in self.cases).encode()).hexdigest()[:16]
        readable = re.sub(r"[^A-Za-z0-9.=,_+-]", "_", self.shared)[:120].strip(".,_")
        return f"{readable}-{digest}" if readable else digest


@dataclass(frozen=True)
class Grid:
    """A full factorial of `varied`, repeated over seeds 0 .. `seeds` - 1.

    A grid with a parameter `model` can be run on other models than those it names (see `depthgauge.restriction`).

    Attributes:
        varied: scientific parameters: name -> values.
        fixed: parameters with one value; they are part of every case.
        seeds: number of repetitions; 0 where nothing is random.
        together: the parameters that cases of one chunk may differ in.
        chunk: most cases a chunk: what `run` does faster together than one by one; a number, or a function of the first
            case (memory follows from the model's size). A grid that gains seeds or values keeps the chunks that were
            full; where a case is a chunk, all that was measured.
        architecture: the parameters that are handed to the model's factory; None leaves one to the model.
        claims: ids of the claims that its rows answer; none stands for all that no grid of the preset names.
        exclusive: its chunks run one at a time, with nothing beside them: a part of a study that reads the clock.
        without: combinations of parameters whose cases are left out, such as an activation that a model refuses.
        any_input: its model may be fed anything; what the user says that it takes is the parameter `input` then
            (`depthgauge.factories.Input`).
        needs: what a run must have, `cuda` or `cuda:2` (as many devices): elsewhere the grid is left out, and claims
            that no other grid answers are `not_applicable`.
        selection: how many further seeds, -1, -2, ..., only choose, such as a learning rate (`training.tuned`); what
            they measure is never reported. Their cases make chunks of their own, after all others. With `seeds` 0 there
            are no others: a second stage reports at the rates that these choose.
    """

    varied: Mapping[str, tuple[Value, ...]]
    fixed: Mapping[str, Value] = field(default_factory=dict)
    seeds: int = 0
    together: tuple[str, ...] = ("seed",)
    chunk: int | Callable[[Case], int] = 1
    architecture: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    exclusive: bool = False
    without: tuple[Case, ...] = ()
    any_input: bool = False
    needs: str = ""
    selection: int = 0

    @property
    def size(self) -> int:
        """Count the grid's cases, those of selection seeds among them."""
        return math.prod(map(len, self.varied.values())) * max(self.seeds + self.selection, 1)

    def cases(self) -> Iterator[Case]:
        """Every case, seeds slowest, selection seeds last: a grid that gains seeds keeps the chunks that were full."""
        return itertools.chain.from_iterable(self._reported_and_selection())

    def _reported_and_selection(self) -> tuple[Iterator[Case], Iterator[Case]]:
        nothing_drawn: tuple[dict[str, Value], ...] = () if self.selection else ({},)
        reported = ({"seed": seed} for seed in range(self.seeds)) if self.seeds else nothing_drawn
        selection = ({"seed": -1 - place} for place in range(self.selection))
        return self._repeated(reported), self._repeated(selection)

    def _repeated(self, nuisances: Iterable[Mapping[str, Value]]) -> Iterator[Case]:
        names = tuple(self.varied)
        for nuisance in nuisances:
            for values in itertools.product(*self.varied.values()):
                case = Case.of({**self.fixed, **dict(zip(names, values, strict=True)), **nuisance})
                if not any(set(left_out.spelled) <= set(case.spelled) for left_out in self.without):
                    yield case

    def chunks(self, study: str, place: int = 0) -> Iterator[Chunk]:
        """The grid, cut into chunks; `place` is its own in the preset."""
        for cases in self._reported_and_selection():
            yield from self._cut(cases, study, place)

    def _cut(self, repeated: Iterable[Case], study: str, place: int) -> Iterator[Chunk]:
        groups: dict[tuple[tuple[str, str], ...], list[Case]] = {}
        for case in repeated:
            apart = tuple(pair for pair in case.spelled if pair[0] not in self.together)
            groups.setdefault(apart, []).append(case)
        for cases in groups.values():
            most = self.chunk(cases[0]) if callable(self.chunk) else self.chunk
            if not isinstance(most, int) or most < 1:  # type: ignore[redundant-expr] # a study is not type-checked
                raise StudyError(f"study {study!r}: a chunk holds at least 1 case, and a whole number; got {most!r}")
            for start in range(0, len(cases), most):
                yield Chunk(study, tuple(cases[start : start + most]), self.exclusive, place)


@dataclass(frozen=True)
class Context:
    """The device and the scratch folder of a study's `run`.

    Attributes:
        device: `cpu`, `cuda` or `cuda:1`, as torch spells it.
        scratch: a folder for the chunk's temporary files; removed after the chunk.
    """

    device: str = "cpu"
    scratch: Path | None = None


_FIELDS: Mapping[str, tuple[type, ...] | None] = {  # None: it is called
    **dict.fromkeys(("question", "method", "topic"), (str,)),
    **dict.fromkeys(("claims", "caveats"), (tuple, list)),
    **dict.fromkeys(("threads", "comparisons"), (int,)),
    **dict.fromkeys(("run", "analyse", "plot")),
    "presets": (Mapping,),
    "time_limit": (int, float),
}


@dataclass(frozen=True)
class Study:
    """A question, the grid that answers it, and three functions.

    Attributes:
        name: an identifier; the module's own name.
        question: one sentence that ends in a question mark.
        presets: name -> grids; `quick`, `standard` and `full`, of which `quick` must exist.
        run: cases of one chunk in, `Rows` out. Draws its randomness on the CPU from the cases' own parameters.
        analyse: a pure function from the tidy frame to `Findings`.
        plot: draws what `analyse` returned; no computing beyond layout.
        claims: the claims that the study answers; each gets one verdict.
        method: markdown: how it is measured, for the report.
        caveats: fixed choices that the answers are conditional on.
        threads: intra-op threads a worker.
        exclusive: all chunks of this study run one at a time, with nothing beside them (timings, process groups); a
            `Grid` can ask for it alone.
        time_limit: seconds that one chunk may take.
        comparisons: for presets' sake of planning: size of the largest family of exact paired tests, 0 if none.
        preflight: from a case of a grid with a `model` to the smallest that asks the same of that model, at best one
            forward and one backward pass; before a run on a given model `run` is tried on it, for every combination
            of the architecture's parameters (see `depthgauge.preflight`).
        second: the second stage, a pure function from the preset's name and measured rows to further grids. The rows
            are those of the first stage with status `ok`, as `Stored.frame` has them, sorted by case; it is asked once
            every chunk of the first stage has ended, and not where none gave a row.
        topic: the question of a report that it belongs to (`depthgauge.topics`); empty for a question of its own.
        parts: the study's parts, where `depthgauge.parts.study` made it.
    """

    name: str
    question: str
    presets: Mapping[str, tuple[Grid, ...]]
    run: Callable[[Sequence[Case], Context], Iterable[Rows]]
    analyse: Callable[[pd.DataFrame], Findings]
    plot: Callable[[Findings], Iterable[Figure]]
    claims: tuple[Claim, ...] = ()
    method: str = ""
    caveats: tuple[str, ...] = ()
    threads: int = 1
    exclusive: bool = False
    time_limit: float = 600.0
    comparisons: int = 0
    preflight: Callable[[Case], Case] | None = None
    second: Callable[[str, pd.DataFrame], Iterable[Grid]] | None = None
    topic: str = ""
    parts: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise StudyError(
                f"study name {self.name!r} is not a lower-case identifier of at most {_LONGEST} characters"
            )
        self._check_fields()
        if "quick" not in self.presets:
            raise StudyError(f"study {self.name!r} has no preset 'quick'")
        for claim in self.claims:
            owner, slash, rest = claim.id.partition("/")
            # a study may be made of another's declaration, and keeps its claims: only a slip is refused
            if slash and owner != self.name and difflib.get_close_matches(owner, [self.name]):
                meant = f"{self.name}/{rest}"
                raise StudyError(f"study {self.name!r}: its claim is {claim.id!r}; did you mean {meant!r}?")
        for owner, topic in (("", self.topic), *((f"claim {claim.id}: ", claim.topic) for claim in self.claims)):
            if why := unknown_topic(topic):
                raise StudyError(f"study {self.name!r}: {owner}{why}")
        for grid in (grid for grids in self.presets.values() for grid in grids):
            if unknown := [why for name in grid.claims if (why := unknown_claim(name, self.claims))]:
                raise StudyError(f"study {self.name!r}: a grid answers what is not declared: {unknown[0]}")
            if absent := [name for name in grid.architecture if name not in {*grid.varied, *grid.fixed}]:
                raise StudyError(f"study {self.name!r}: a grid's architecture has no parameter {absent[0]!r}")
            if not _NEEDS.fullmatch(grid.needs):
                raise StudyError(f"study {self.name!r}: a grid needs {grid.needs!r}, where `cuda` or `cuda:2` belongs")

    def _check_fields(self) -> None:
        """Check that each field has its declared type: a study is not type-checked, and a report relies on it."""
        for name, kinds in _FIELDS.items():
            value = getattr(self, name)
            if not (callable(value) if kinds is None else isinstance(value, kinds)):
                raise StudyError(
                    f"study {self.name!r}: its {name} is of type {type(value).__name__}, which is not allowed"
                )
        if self.second is not None and not callable(self.second):
            raise StudyError(f"study {self.name!r}: its `second` is not a function of a preset and its rows")
        for name, least, most in (("threads", 1, 1024), ("comparisons", 0, _MOST), ("time_limit", 1e-3, 1e7)):
            if not least <= getattr(self, name) <= most:
                raise StudyError(
                    f"study {self.name!r}: its {name} is {getattr(self, name)}, not within {least:g} to {most:g}"
                )
        every = tuple(grid for grids in self.presets.values() for grid in grids)
        for name, items, kind in (
            ("caveats", self.caveats, str),
            ("claims", self.claims, Claim),
            ("presets", every, Grid),
        ):
            if wrong := [type(member).__name__ for member in items if not isinstance(member, kind)]:
                raise StudyError(f"study {self.name!r}: its {name} hold a {wrong[0]}, where a {kind.__name__} belongs")

    def chunks(self, preset: str, seeds: int | None = None) -> tuple[Chunk, ...]:
        """The preset's grids, cut into chunks; those of a second stage are not among them.

        Args:
            preset: one of the study's.
            seeds: overrides the repetitions of every grid that has any.

        Raises:
            StudyError: as `cut`.
        """
        return self.cut(self.presets[preset], seeds)

    def cut(self, grids: Iterable[Grid], seeds: int | None = None, after: Sequence[Chunk] = ()) -> tuple[Chunk, ...]:
        """Grids, cut into chunks.

        Args:
            grids: of this study.
            seeds: overrides the repetitions of every grid that has any.
            after: chunks of an earlier stage, whose cases must not come again.

        The number of a grid's selection seeds stays.

        Raises:
            StudyError: two cases have one id, a parameter has a reserved name or a value that cannot be spelled, or
                there are more than a million cases.
        """
        if seeds is not None:
            grids = (replace(grid, seeds=seeds) if grid.seeds else grid for grid in grids)
        if self.exclusive:
            grids = (replace(grid, exclusive=True) for grid in grids)
        grids = tuple(grids)
        first = 1 + max((chunk.grid for chunk in after), default=-1)
        try:
            with contained():
                self._check_grids(grids)
                chunks = tuple(
                    chunk for place, grid in enumerate(grids, first) for chunk in grid.chunks(self.name, place)
                )
        except StudyError:
            raise
        except Exception as error:
            raise StudyError(
                f"study {self.name!r}: a grid cannot be cut into chunks: {describe_error(error)}"
            ) from error
        before = {case.id for chunk in after for case in chunk.cases}
        seen: set[str] = set()
        for case in (case for chunk in chunks for case in chunk.cases):
            if case.id in before:
                raise StudyError(f"study {self.name!r}: its second stage asks for a case of the first: {case.id}")
            if case.id in seen:
                raise StudyError(f"study {self.name!r}: two cases have the id {case.id}")
            seen.add(case.id)
        return chunks

    def _check_grids(self, grids: Sequence[Grid]) -> None:
        for grid in grids:
            if grid.seeds < 0:
                raise StudyError(f"study {self.name!r}: a grid cannot have {grid.seeds} seeds")
            if grid.selection < 0:
                raise StudyError(
                    f"study {self.name!r}: a grid of {grid.seeds} seeds cannot have {grid.selection} selection seeds"
                )
            if twice := sorted({*grid.varied} & {*grid.fixed}):
                raise StudyError(f"study {self.name!r}: a grid varies {twice[0]!r} and fixes it, too")
            for name, values in grid.varied.items():
                if not isinstance(values, tuple | list | range):
                    raise StudyError(f"study {self.name!r}: the values of {name!r} are no tuple but {values!r}")
                for value in values:
                    self._check(name, value)
            for name, value in grid.fixed.items():
                self._check(name, value)
        if (size := sum(grid.size for grid in grids)) > _MOST:
            raise StudyError(f"study {self.name!r} has {size:,} cases; a run takes at most {_MOST:,}: use fewer seeds")

    def _check(self, name: object, value: Any) -> None:
        """Check that a parameter can stand in a case's id and in a column of the result."""
        if not isinstance(name, str) or not _PARAMETER.fullmatch(name):
            raise StudyError(f"study {self.name!r}: {name!a} is no parameter's name: letters, digits and _ are")
        if name in RESERVED:
            raise StudyError(f"study {self.name!r}: parameter {name!r} has the name of a column")
        value = plain(value)
        if type(value) not in {str, int, float, bool, type(None)}:
            raise StudyError(
                f"study {self.name!r}: parameter {name!r} is a {type(value).__name__};"
                " parameters are str, int, float, bool, scalars of NumPy or None"
            )
        try:
            spell(value)
        except ValueError:  # text that is no Unicode, a number of more digits than Python prints
            raise StudyError(f"study {self.name!r}: parameter {name!r} has a value that cannot be spelled") from None
