"""Preflight of a run on a given model: its refusals, found once, on the cheapest cases.

A study says with `Study.preflight` which case is the smallest that asks the same of the model: one step in place of
three hundred. Its own `run` runs that case, in a worker as any other, for every way in which a grid builds the model.

    ways(study, grid)                           # combination of the architecture -> smallest case
    without(grid, "mine:net", refused)          # the grid without the combinations that were refused, and why

A value that the model refuses costs that value; a grid of which nothing is left is not run, and its claims are
`not_applicable` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from depthgauge.study import Case, Grid, Study, StudyError, spell

LIMIT = 90.0  # seconds that one try may take, or as many as a chunk may if that is less
TOTAL = 120.0  # seconds of a study after which nothing more is tried (see `untried`)


@dataclass(frozen=True)
class Runnable:
    """The cases of a grid that a model can run, and the refusals of the others.

    Attributes:
        grid: without the combinations that it refused; None where it refused all.
        why: why those are not run, a sentence each.
    """

    grid: Grid | None
    why: tuple[str, ...] = ()


def ways(study: Study, grid: Grid) -> dict[Case, Case]:
    """Combination of the grid's architecture -> the smallest case that asks it of the model; none without `preflight`.

    Args:
        study: it says which case that is.
        grid: a grid of that study, on one model.

    Raises:
        StudyError: its `preflight` raises, or returns something else.
    """
    smallest: dict[Case, Case] = {}
    for case in replace(grid, seeds=min(grid.seeds, 1), selection=0).cases() if study.preflight else ():
        way = Case.of({name: case[name] for name in grid.architecture})
        if way not in smallest:
            smallest[way] = _smallest(study, case)
    return smallest


def _smallest(study: Study, case: Case) -> Case:
    assert study.preflight is not None
    try:
        smallest = study.preflight(case)
    except Exception as error:
        raise StudyError(f"study {study.name!r}: its preflight raised {type(error).__name__}: {error}") from error
    if not isinstance(smallest, Case):
        got = type(smallest).__name__  # type: ignore[unreachable] # a study is not type-checked
        raise StudyError(f"study {study.name!r}: its preflight returned a {got}, where a Case was expected")
    return smallest


def without(study: Study, grid: Grid, spec: str, refused: Mapping[Case, str]) -> Runnable:
    """The grid without what the model refuses.

    Args:
        study: the grid's.
        grid: on that model.
        spec: the model.
        refused: smallest case -> what it ended with.
    """
    smallest_of = ways(study, grid)
    reasons = {way: refused[smallest] for way, smallest in smallest_of.items() if smallest in refused}
    if not reasons:
        return Runnable(grid)
    if len(reasons) == len(smallest_of) and len(set(reasons.values())) == 1:
        fed = "" if grid.any_input else ", which feeds it the study's own data"
        return Runnable(None, (f"{spec} cannot be run in this part{fed}: {next(iter(reasons.values()))}",))
    names = [name for name in grid.architecture if len(grid.varied.get(name, ())) > 1]
    left = None if len(reasons) == len(smallest_of) else replace(grid, without=(*grid.without, *reasons))
    return Runnable(left, tuple(_refusals(spec, reasons, names)))


def untried(case: Case, ends: Mapping[Case, str]) -> dict[Case, str]:
    """Infer the end of a case for which no time was left from the ends of the others.

    Where none of them was well, it ends as the last did; else it is run as it is.
    """
    return {case: [*ends.values()][-1]} if ends and all(ends.values()) else {}


def _refusals(spec: str, reasons: Mapping[Case, str], names: Sequence[str]) -> Iterator[str]:
    """One sentence a reason, with all that was refused for it; `KeyError: 'gelu'` and `KeyError: 'selu'` are one."""
    alike: dict[str, list[Case]] = {}
    for way, reason in reasons.items():
        alike.setdefault(_without_values(reason, way), []).append(way)
    for refused in alike.values():
        if len(names) == 1:
            combinations = f"{names[0]}={', '.join(spell(way[names[0]]) for way in refused)}"
        else:
            combinations = ", ".join(" and ".join(f"{name}={spell(way[name])}" for name in names) for way in refused)
        yield f"{spec} cannot be run with {combinations}: {reasons[refused[0]]}"


def _without_values(reason: str, way: Case) -> str:
    for _, value in way.params:
        if isinstance(value, str):
            reason = reason.replace(value, "#")
    return reason
