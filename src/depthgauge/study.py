"""Studies as data: what is varied, what is repeated, what is fixed, and three functions.

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

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from depthgauge.verdict import Claim, Figure, Findings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Value = str | int | float | bool | None

COORDINATES = ("layer", "layer_index", "direction", "step")
RESERVED = frozenset({"case", *COORDINATES, "metric", "value", "status", "message"})

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MOST = 1_000_000  # cases of a study: a gigabyte of them, before any has run


class StudyError(ValueError):
    """A study's declaration contradicts itself; the message says where."""


def spell(value: Value) -> str:
    """A parameter's value as it stands in a case id.

    Floats are spelled by `repr`, which is exact; characters of strings that would make an id ambiguous are
    percent-encoded.
    """
    if isinstance(value, str):
        return quote(value, safe=" :;.+-_()[]<>!*'\"~@#$^&|{}/\\?`") or "''"
    return repr(value)


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


@dataclass(frozen=True)
class Case:
    """One point of a grid.

    Attributes:
        params: (name, value) pairs, sorted by name.
    """

    params: tuple[tuple[str, Value], ...]

    @staticmethod
    def of(params: Mapping[str, Value]) -> Case:
        """The case with these parameters, whatever order they come in."""
        return Case(tuple(sorted(params.items())))

    @property
    def id(self) -> str:
        """`activation=tanh,depth=32,seed=3`: the parameters in alphabetical order."""
        return ",".join(f"{name}={spell(value)}" for name, value in self.params)

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
        """Those of the named parameters that the case has and that are not None: the rest is the model's own."""
        return {name: value for name in names if (value := self.get(name)) is not None}

    def random_seed(self, *names: str) -> int:
        """A 63-bit seed that depends on the named parameters alone (on all of them where none is named).

        Naming few makes draws common to the cases that share them (common random numbers: a paired comparison).
        """
        spelled = ",".join(f"{name}={spell(self[name])}" for name in sorted(names)) if names else self.id
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
        common = set(self.cases[0].params).intersection(*(case.params for case in self.cases[1:]))
        return Case(tuple(pair for pair in self.cases[0].params if pair in common)).id

    @cached_property
    def id(self) -> str:
        """A file name: the shared parameters, cut to a readable length, and a digest of every case id."""
        digest = hashlib.sha256("\n".join(case.id for case in self.cases).encode()).hexdigest()[:16]
        readable = re.sub(r"[^A-Za-z0-9.=,_+-]", "_", self.shared)[:120].strip(".,_")
        return f"{readable}-{digest}" if readable else digest


@dataclass(frozen=True)
class Grid:
    """A full factorial of `varied`, repeated over seeds 0 .. `seeds` - 1.

    A grid with a parameter `model` can be run on other models than those it names (see `depthgauge.target`).

    Attributes:
        varied: scientific parameters: name -> values.
        fixed: parameters with one value; they are part of every case.
        seeds: how many repetitions; 0 for what has no chance in it.
        together: the parameters that cases of one chunk may differ in.
        chunk: most cases a chunk; a number, or a function of the first case (memory follows from the model's size).
        architecture: the parameters that are handed to the model's factory; None leaves one to the model.
        claims: ids of the claims that its rows answer; none stands for all that no grid of the preset names.
        exclusive: its chunks run one at a time, with nothing beside them: a part of a study that reads the clock.
        without: combinations of parameters whose cases are left out, such as an activation that a model refuses.
        any_input: its model may be fed anything; what the user says that it takes is the parameter `input` then
            (`depthgauge.target.Input`).
    """

    varied: Mapping[str, tuple[Value, ...]]
    fixed: Mapping[str, Value] = field(default_factory=dict)
    seeds: int = 0
    together: tuple[str, ...] = ("seed",)
    chunk: int | Callable[[Case], int] = 64
    architecture: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    exclusive: bool = False
    without: tuple[Case, ...] = ()
    any_input: bool = False

    @property
    def size(self) -> int:
        """How many cases it has."""
        return math.prod(map(len, self.varied.values())) * max(self.seeds, 1)

    def cases(self) -> Iterator[Case]:
        """Every case, seeds slowest: a grid that gains seeds keeps the chunks it had."""
        names = tuple(self.varied)
        for seed in range(max(self.seeds, 1)):
            nuisance: dict[str, Value] = {"seed": seed} if self.seeds else {}
            for values in itertools.product(*self.varied.values()):
                case = Case.of({**self.fixed, **dict(zip(names, values, strict=True)), **nuisance})
                if not any(set(left_out.params) <= set(case.params) for left_out in self.without):
                    yield case

    def chunks(self, study: str, place: int = 0) -> Iterator[Chunk]:
        """The grid, cut into chunks; `place` is its own in the preset."""
        groups: dict[tuple[tuple[str, Value], ...], list[Case]] = {}
        for case in self.cases():
            apart = tuple(pair for pair in case.params if pair[0] not in self.together)
            groups.setdefault(apart, []).append(case)
        for cases in groups.values():
            most = self.chunk(cases[0]) if callable(self.chunk) else self.chunk
            for start in range(0, len(cases), most):
                yield Chunk(study, tuple(cases[start : start + most]), self.exclusive, place)


@dataclass(frozen=True)
class Context:
    """What a study's `run` may know of where it runs.

    Attributes:
        device: `cpu`, `cuda` or `cuda:1`, as torch spells it.
        scratch: a folder for the chunk's temporary files; removed after the chunk.
    """

    device: str = "cpu"
    scratch: Path | None = None


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
        claims: what the study answers; each gets one verdict.
        method: markdown: how it is measured, for the report.
        caveats: what was fixed, and hence what the answers are conditional on.
        threads: intra-op threads a worker.
        exclusive: all chunks of this study run one at a time, with nothing beside them (timings, process groups); a
            `Grid` can ask for it alone.
        time_limit: seconds that one chunk may take.
        comparisons: for presets' sake of planning: size of the largest Holm family of exact paired tests, 0 if none.
        preflight: from a case of a grid with a `model` to the smallest that asks the same of that model, at best one
            forward and one backward pass; before a run on a given model `run` is tried on it, for every combination
            of the architecture's parameters (see `depthgauge.preflight`).
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

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise StudyError(f"study name {self.name!r} is no lower-case identifier")
        if "quick" not in self.presets:
            raise StudyError(f"study {self.name!r} has no preset 'quick'")
        known = {claim.id for claim in self.claims}
        for grid in (grid for grids in self.presets.values() for grid in grids):
            if unknown := [claim for claim in grid.claims if claim not in known]:
                raise StudyError(f"study {self.name!r}: a grid answers {unknown[0]!r}, which is none of its claims")
            if absent := [name for name in grid.architecture if name not in {*grid.varied, *grid.fixed}]:
                raise StudyError(f"study {self.name!r}: a grid's architecture has no parameter {absent[0]!r}")

    def chunks(self, preset: str, seeds: int | None = None) -> tuple[Chunk, ...]:
        """The preset's grids, cut into chunks; `seeds` overrides the repetitions of every grid that has any.

        Raises:
            StudyError: two cases have one id, a parameter has a reserved name, or there are more than a million cases.
        """
        grids = self.presets[preset]
        if seeds is not None:
            grids = tuple(replace(grid, seeds=seeds) if grid.seeds else grid for grid in grids)
        if (size := sum(grid.size for grid in grids)) > _MOST:
            raise StudyError(f"study {self.name!r} has {size:,} cases; a run takes at most {_MOST:,}: use fewer seeds")
        if self.exclusive:
            grids = tuple(replace(grid, exclusive=True) for grid in grids)
        chunks = tuple(chunk for place, grid in enumerate(grids) for chunk in grid.chunks(self.name, place))
        seen: set[str] = set()
        for chunk in chunks:
            for case in chunk.cases:
                clash = RESERVED.intersection(name for name, _ in case.params)
                if clash:
                    raise StudyError(f"study {self.name!r}: parameter {min(clash)!r} has the name of a column")
                if case.id in seen:
                    raise StudyError(f"study {self.name!r}: two cases have the id {case.id}")
                seen.add(case.id)
        return chunks
