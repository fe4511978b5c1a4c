"""Figures over seeds, held against those that were stored: different, the same, or inconclusive."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from depthgauge import jsonfile, stats
from depthgauge.stats import Comparison
from depthgauge.version import __version__

Make = Callable[[int], "float | Mapping[str, float]"]
Figures = Mapping[str, tuple[float, ...]]

SCHEMA = 1
ONLY = "value"  # the name of a figure that has none


class Verdict(StrEnum):
    """The verdict on a drift."""

    DIFFERENT = "different"  # beyond the margin
    SAME = "same"  # inside the margin
    INCONCLUSIVE = "inconclusive"
    STORED = "stored"  # just now: there is nothing to hold it against


@dataclass(frozen=True)
class Drift:
    """Figures of now against those stored.

    Attributes:
        path: the baseline's file.
        comparisons: by the figure's name, new against stored; empty where they were stored just now.
        versions: of depthgauge, torch and Python that the baseline was made with, where they are others now.
    """

    path: Path
    comparisons: Mapping[str, Comparison]
    versions: str = ""

    @property
    def verdict(self) -> Verdict:
        """Different where any figure is, the same where all are."""
        if not self.comparisons:
            return Verdict.STORED
        if any(each.beyond for each in self.comparisons.values()):
            return Verdict.DIFFERENT
        return Verdict.SAME if all(each.inside for each in self.comparisons.values()) else Verdict.INCONCLUSIVE

    def assert_same(self) -> None:
        """Fail unless every figure is the same within the margin.

        Raises:
            AssertionError: one is different, or the seeds do not tell; the message says how many may.
        """
        __tracebackhide__ = True
        if self.verdict in {Verdict.DIFFERENT, Verdict.INCONCLUSIVE}:
            raise AssertionError(str(self))

    def assert_not_different(self) -> None:
        """Fail where a figure is different beyond the margin; where the seeds do not tell, it passes.

        Raises:
            AssertionError: one is.
        """
        __tracebackhide__ = True
        if self.verdict is Verdict.DIFFERENT:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        if not self.comparisons:
            return f"stored in {self.path}"
        lines = [f"{self.verdict} from {self.path}{self.versions}"]
        lines += [self._line(name, each) for name, each in self.comparisons.items()]
        if self.verdict is not Verdict.SAME:
            lines.append("where the change is meant: pytest --numerics-update, and commit the file")
        return "\n".join(lines)

    @staticmethod
    def _line(name: str, each: Comparison) -> str:
        word = "different" if each.beyond else "same" if each.inside else "inconclusive"
        text = (
            f"  {name}: {word}; new {'over' if each.log else 'minus'} stored is {each.effect}, margin {each.margin:g}"
        )
        if word == "inconclusive" and each.needed:
            text += f"; about {each.needed} seeds may tell"
        elif word == "inconclusive" and each.effect.n < stats.seeds_needed(each.family):
            text += f"; it takes at least {stats.seeds_needed(each.family)} seeds"
        return text


def measured(
    path: Path,
    make: Make,
    seeds: Sequence[int],
    margin: float | Mapping[str, float] | None,
    ratio: float | None,
    *,
    update: bool,
) -> Drift:
    """Make the figures, and store them or hold them against the stored ones.

    Raises:
        ValueError: neither margin nor ratio, or both; no seeds, or one twice; a name that is no file's.
        FileNotFoundError: there is no baseline.
    """
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are different whole numbers, not {seeds}")
    if (margin is None) == (ratio is None):
        raise ValueError(
            "a drift is judged by a declared margin: give margin=, or ratio=, the change that does not matter"
        )
    if not re.fullmatch(r"[\w.-]+", path.stem):
        raise ValueError(f"a baseline's name becomes a file's: letters, digits, '.', '_' and '-', not {path.stem!r}")
    if not update and not path.is_file():
        raise FileNotFoundError(f"no baseline {path}: run pytest --numerics-update, and commit the file")
    figures = _figures(make, seeds)
    if update:
        _write(path, seeds, figures)
        return Drift(path, {})
    return held_against(path, seeds, figures, margin, ratio)


def _figures(make: Make, seeds: Sequence[int]) -> Figures:
    rows = []
    for seed in seeds:
        value = make(seed)
        rows.append(dict(value) if isinstance(value, Mapping) else {ONLY: value})
    if any(row.keys() != rows[0].keys() for row in rows):
        raise ValueError("make(seed) gives figures of the same names for every seed")
    return {name: tuple(float(row[name]) for row in rows) for name in rows[0]}


def held_against(
    path: Path,
    seeds: Sequence[int],
    figures: Figures,
    margin: float | Mapping[str, float] | None,
    ratio: float | None,
) -> Drift:
    """Figures of now against those of a file, as one family.

    Seeds that both have are compared in pairs; where these are not all, the samples are compared unpaired.

    Raises:
        ValueError: the file is no baseline, or of other figures.
    """
    stored = _read(path)
    old: Figures = {name: tuple(map(_number, values)) for name, values in stored["figures"].items()}
    if old.keys() != figures.keys():
        raise ValueError(f"{path} holds {', '.join(old)}, and now there are {', '.join(figures)}: store them anew")
    paired = list(stored["seeds"]) == list(seeds)
    compare = stats.paired if paired else stats.unpaired
    comparisons = []
    for name, values in figures.items():
        limit = ratio if ratio is not None else margin[name] if isinstance(margin, Mapping) else margin
        comparisons.append(compare(values, old[name], log=ratio is not None, margin=limit))
    together = dict(zip(figures, stats.together(comparisons), strict=True))
    was, now = stored["versions"], versions()
    changed = ", ".join(f"{name} {was.get(name)}" for name in now if was.get(name) != now[name])
    return Drift(path, together, f" (stored with {changed})" if changed else "")


def versions() -> dict[str, str]:
    """Versions that figures may depend on."""
    import platform  # noqa: PLC0415

    import torch  # noqa: PLC0415 - a second, needed only here

    return {"depthgauge": __version__, "torch": torch.__version__, "Python": platform.python_version()}


def _write(path: Path, seeds: Sequence[int], figures: Figures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {name: [each if math.isfinite(each) else str(each) for each in row] for name, row in figures.items()}
    document = {"schema": SCHEMA, "versions": versions(), "seeds": list(seeds), "figures": values}
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    beside.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = jsonfile.read(path)
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}")
        if any(len(values) != len(document["seeds"]) for values in document["figures"].values()):
            raise ValueError("it has not a value a seed")
    except (jsonfile.JsonError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is no baseline: {error}; pytest --numerics-update stores a new one") from error
    return dict(document)


def _number(value: Any) -> float:
    return float(value)  # also "nan" and "inf", which JSON has no numbers for
