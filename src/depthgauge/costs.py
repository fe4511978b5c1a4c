"""Costs of studies: how long one takes at a preset, before it has run.

    costs.estimate(find("gradient_flow").load(), "standard", seeds=30)   # Estimate(seconds=112.0, least=False)
    costs.words(112.0)                                                   # 'about 2 min'

What is known comes from runs: `run.json` notes the worker seconds of each part, and `costs.json` beside this file has
those of a published run. Seconds are those of the machine of that table; `speed()` tells how fast this one is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from pathlib import Path

from depthgauge.study import Grid, Study

_CALIBRATION = 0.3  # seconds
_UNIT = 2.0e-3  # seconds that the calibration's work takes on the machine of the table
_ORDER = ("quick", "standard", "full")  # presets of growing size


@dataclass(frozen=True)
class Part:
    """The cost of a study's part at a preset, in seconds of one worker.

    Attributes:
        cases: cases of the first stage that were measured.
        seconds: what they took beside others.
        alone: what chunks took that run with nothing beside them.
        second: what the second stage took.
        whole: cases of the whole first stage, which the second follows; 0 where `cases` are all of them. A run that
            found rows of another has measured fewer.
    """

    cases: float = 0.0
    seconds: float = 0.0
    alone: float = 0.0
    second: float = 0.0
    whole: float = 0.0

    @staticmethod
    def of(cases: int, seconds: float, *, alone: bool = False, second: bool = False) -> Part:
        """The cost of one chunk."""
        if second:
            return Part(second=seconds)
        return Part(cases, alone=seconds) if alone else Part(cases, seconds)

    def __add__(self, other: Part) -> Part:
        return Part(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Part:
        return Part(*(factor * mine for mine in astuple(self)))

    @property
    def asked(self) -> float:
        """Cases of the whole first stage."""
        return self.whole or self.cases

    def wall(self, workers: int) -> float:
        """Seconds of the clock with that many workers."""
        return self.alone + (self.seconds + self.second) / max(workers, 1)


Table = Mapping[str, Mapping[str, Mapping[str, Part]]]
"""Study -> preset -> part -> its cost; the part's name is empty where a study has none."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of a run's seconds on the clock.

    Attributes:
        seconds: the estimate.
        least: whether it is a lower bound alone: the preset was never measured, a smaller one was.
    """

    seconds: float
    least: bool = False

    @property
    def words(self) -> str:
        """Spell it: `about 12 min`, `at least 40 min`."""
        return words(self.seconds, least=self.least)


@cache
def published() -> Table:
    """The costs of the published runs, on two cores of a server of 2026."""
    return read(json.loads(Path(__file__).with_name("costs.json").read_bytes()))


def read(told: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> Table:
    """Make a table of what JSON has; names that are unknown here are left out."""
    names = Part.__dataclass_fields__
    return {
        study: {
            preset: {
                part: Part(**{name: max(0.0, float(cost[name])) for name in names if name in cost})
                for part, cost in parts.items()
            }
            for preset, parts in presets.items()
        }
        for study, presets in told.items()
    }


def told(table: Table) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """A table as JSON has it, to a tenth of a second."""
    return {
        study: {
            preset: {
                part: {name: round(value, 3) for name, value in asdict(cost).items()} for part, cost in parts.items()
            }
            for preset, parts in presets.items()
        }
        for study, presets in table.items()
    }


def joined(*tables: Table) -> Table:
    """One table of several; a study at a preset is taken from the first that has measured cases of it."""
    every: dict[str, dict[str, Mapping[str, Part]]] = {}
    for study, presets in (pair for table in reversed(tables) for pair in table.items()):
        measured = {preset: parts for preset, parts in presets.items() if any(cost.cases for cost in parts.values())}
        every.setdefault(study, {}).update(measured)
    return every


def resumed(before: Mapping[str, Part], parts: Mapping[str, Part]) -> Mapping[str, Part]:
    """Costs of a run of a study, with those of the runs before it where these were asked for the same first stage.

    Args:
        before: part -> its cost by then.
        parts: likewise, of the run; all parts of the first stage, those that cost nothing, too.
    """
    if _asked(before) != _asked(parts):
        return parts
    both = {part: before.get(part, Part()) + cost for part, cost in parts.items()}
    return {**before, **{part: replace(cost, whole=parts[part].whole) for part, cost in both.items()}}


def _asked(parts: Mapping[str, Part]) -> dict[str, float]:
    return {part: cost.whole for part, cost in parts.items() if cost.whole}


def estimate(
    study: Study,
    preset: str,
    seeds: int | None = None,
    *,
    workers: int = 2,
    table: Table | None = None,
    speed: float = 1.0,
) -> Estimate | None:
    """Estimate the seconds that a study takes; None where nothing like it was measured.

    Args:
        study: the study.
        preset: one of its presets.
        seeds: repetitions in place of the preset's own.
        workers: processes.
        table: what is known; by default that of the published runs.
        speed: of this machine, by `speed()`; 1 is that of the table's, so that a report is the same everywhere.
    """
    cost = expected(study.name, preset, cases(study.presets[preset], seeds), published() if table is None else table)
    if cost is None:
        return None
    parts, least = cost
    return Estimate(sum(part.wall(workers) for part in parts.values()) / speed, least)


def of_studies(names: Iterable[str], preset: str, table: Table, workers: int) -> float | None:
    """Seconds that studies take on this machine, as a whole preset; None where one of them was never measured at it."""
    known = [_whole(name, preset, table) for name in names]
    parts = [part for each in known if each for part in each.values()]
    return sum(part.wall(workers) for part in parts) / speed() if all(known) else None


def _whole(name: str, preset: str, table: Table) -> Mapping[str, Part] | None:
    """The costs of a whole preset: a run with other seeds, or a resumed one, has measured another number of cases."""
    known = table.get(name, {}).get(preset)
    if not known:
        return None
    full = published().get(name, {}).get(preset) or known
    scaled = expected(name, preset, {part: cost.asked for part, cost in full.items()}, table)
    return scaled[0] if scaled else None


def cases(grids: Iterable[Grid], seeds: int | None = None) -> dict[str, int]:
    """Count the cases of grids, part by part; those that a grid leaves out among them."""
    counts: dict[str, int] = {}
    for grid in grids:
        sized = replace(grid, seeds=seeds) if seeds is not None and grid.seeds else grid
        part = str(sized.fixed.get("part", ""))
        counts[part] = counts.get(part, 0) + sized.size
    return counts


def expected(study: str, preset: str, cases: Mapping[str, float], table: Table) -> tuple[dict[str, Part], bool] | None:
    """Scale what is known of a study to these cases; and whether it is known of a smaller preset alone.

    Args:
        study: its name.
        preset: the preset that is asked for.
        cases: part -> cases of the first stage.
        table: what is known.

    Returns:
        Part -> its cost, and whether the whole is a lower bound; None where nothing is known.
    """
    known = table.get(study, {})
    near = _nearest(preset, known)
    if near is None:
        return None
    measured = {part: cost for part, cost in known[near].items() if cost.cases}
    if not measured:
        return None
    whole = sum((replace(cost, whole=cost.asked) for cost in measured.values()), Part())
    parts = {part: _scaled(measured.get(part) or whole, count) for part, count in cases.items()}
    return parts, near != preset or not all(part in measured for part in cases)


def _scaled(cost: Part, cases: float) -> Part:
    """The cost at so many cases: of the first stage by those that were measured, of the second by all before it."""
    first = cost * (cases / cost.cases)
    return replace(first, second=cost.second * (cases / cost.asked), whole=0.0)


def _nearest(preset: str, known: Mapping[str, object]) -> str | None:
    """The preset itself, or else the largest that was measured and is smaller."""
    if preset in known:
        return preset
    place = _ORDER.index(preset) if preset in _ORDER else len(_ORDER)
    return next((name for name in reversed(_ORDER[:place]) if name in known), next(iter(known), None))


def words(seconds: float, *, least: bool = False) -> str:
    """Spell a duration as exactly as an estimate is: `about 40 s`, `about 12 min`, `about 2 h 30 min`."""
    about = "at least" if least else "about"
    if seconds < 90:
        return f"{about} {max(1, round(seconds) if seconds < 10 else 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{about} {minutes if minutes < 20 else 5 * round(minutes / 5)} min"
    hours, quarters = divmod(round(minutes / 15), 4)
    if hours >= 10 or not quarters:
        return f"{about} {round(minutes / 60)} h"
    return f"{about} {hours} h {15 * quarters} min"


@cache
def speed() -> float:
    """Measure in 0.3 s how fast this machine is: 2 where it needs half the time of the table's machine."""
    end = time.perf_counter() + _CALIBRATION
    fastest = _work()
    while time.perf_counter() < end:
        fastest = min(fastest, _work())
    return _UNIT / fastest


def _work() -> float:
    """Seconds that a fixed piece of work takes: small matrices, elementwise functions, and Python itself."""
    import numpy as np  # noqa: PLC0415 - a listing needs no numbers

    started = time.perf_counter()
    values = np.sin(np.arange(64 * 32 * 32, dtype=np.float32)).reshape(64, 32, 32)
    for _ in range(6):
        values = np.tanh(0.1 * np.matmul(values, values))
        values = values / (1e-3 + np.abs(values).mean())
    total = 0
    for number in range(20_000):
        total += number * number
    return time.perf_counter() - started
