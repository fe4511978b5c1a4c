"""Figures over seeds, held against those that were stored: different, the same, or inconclusive."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from depthgauge import jsonfile, stats
from depthgauge.folder import write_whole
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


@dataclass(frozen=True)
class _Baseline:
    """What a file of stored figures holds."""

    path: Path
    seeds: tuple[int, ...]
    figures: Figures
    versions: Mapping[str, object]


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
        ValueError: neither margin nor ratio, or both; no seeds, or one twice; a name that is no file's; the baseline is
            damaged, or of other figures; what is made is no figures, or has one without a margin, or without a ratio.
        FileNotFoundError: there is no baseline.
        OSError: it cannot be written.
    """
    __tracebackhide__ = True
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
    stored = None if update else _read(path)
    figures = _figures(make, seeds, lambda names: _check_names(stored, names, margin))
    if ratio is not None:
        _check_above_zero(figures)
    if stored is None:
        _write(path, seeds, figures)
        return Drift(path, {})
    return _held_against(stored, seeds, figures, margin, ratio)


def _figures(make: Make, seeds: Sequence[int], check: Callable[[Collection[str]], None]) -> Figures:
    """Figures by name, over seeds; their names are checked once the first seed has told them."""
    __tracebackhide__ = True
    rows: list[dict[str, float]] = []
    for seed in seeds:
        rows.append(_numbers(make(seed), seed))
        if rows[-1].keys() != rows[0].keys():
            raise ValueError("make(seed) gives figures of the same names for every seed")
        if len(rows) == 1:
            check(rows[0].keys())
    return {name: tuple(row[name] for row in rows) for name in rows[0]}


def _numbers(made: object, seed: int) -> dict[str, float]:
    """What one seed has made, by name; names are text, as in the file.

    Raises:
        ValueError: it is no number, and no mapping of names to numbers.
    """
    __tracebackhide__ = True
    named: dict[str, Any] = (
        {str(name): each for name, each in made.items()} if isinstance(made, Mapping) else {ONLY: made}
    )
    try:
        numbers = {name: float(value) for name, value in named.items()}
    except (TypeError, ValueError, RuntimeError, OverflowError):  # what a tensor of several numbers raises, too
        numbers = {}
    if not numbers:
        raise ValueError(f"make({seed}) gives {made!r:.60}, where a number belongs, or a mapping of names to numbers")
    return numbers


def _check_names(stored: _Baseline | None, names: Collection[str], margin: float | Mapping[str, float] | None) -> None:
    """Check that the baseline is of these figures, and that each has a margin.

    Raises:
        ValueError: it is not, or one has none.
    """
    __tracebackhide__ = True
    if stored and stored.figures.keys() != set(names):
        raise ValueError(
            f"{stored.path} holds {', '.join(stored.figures)}, and now there are {', '.join(names)}: store them anew"
        )
    margins = _by_text(margin) if isinstance(margin, Mapping) else dict.fromkeys(names, 0.0)
    if without := [name for name in names if name not in margins]:
        raise ValueError(f"margin has no {', '.join(without)}, which make(seed) gives: it has {', '.join(margins)}")


def _check_above_zero(figures: Figures) -> None:
    """Check that figures have ratios; one that is not finite is a result.

    Raises:
        ValueError: one is zero or less.
    """
    __tracebackhide__ = True
    for name, values in figures.items():
        if (least := min(values)) <= 0:
            raise ValueError(f"ratio= takes figures above zero, and {name} is {least:g}: give margin= in its place")


def _by_text(margin: Mapping[str, float]) -> dict[str, float]:
    return {str(name): limit for name, limit in margin.items()}


def _held_against(
    stored: _Baseline,
    seeds: Sequence[int],
    figures: Figures,
    margin: float | Mapping[str, float] | None,
    ratio: float | None,
) -> Drift:
    """Figures of now against those of a file, as one family.

    Seeds that both have are compared in pairs; where these are not all, the samples are compared unpaired.
    """
    __tracebackhide__ = True
    compare = stats.paired if stored.seeds == tuple(seeds) else stats.unpaired
    margins = _by_text(margin) if isinstance(margin, Mapping) else dict.fromkeys(figures, margin)
    comparisons = []
    for name, values in figures.items():
        limit = margins[name] if ratio is None else ratio
        try:
            comparisons.append(compare(values, stored.figures[name], log=ratio is not None, margin=limit))
        except ValueError as error:
            raise ValueError(f"{name} cannot be held against {stored.path}: {error}") from None
    together = dict(zip(figures, stats.together(comparisons), strict=True))
    was, now = stored.versions, versions()
    changed = ", ".join(f"{name} {was.get(name)}" for name in now if was.get(name) != now[name])
    return Drift(stored.path, together, f" (stored with {changed})" if changed else "")


def versions() -> dict[str, str]:
    """Versions that figures may depend on."""
    import platform  # noqa: PLC0415

    import torch  # noqa: PLC0415 - a second, needed only here

    return {"depthgauge": __version__, "torch": torch.__version__, "Python": platform.python_version()}


def _write(path: Path, seeds: Sequence[int], figures: Figures) -> None:
    __tracebackhide__ = True
    values = {name: [each if math.isfinite(each) else str(each) for each in row] for name, row in figures.items()}
    document = {"schema": SCHEMA, "versions": versions(), "seeds": list(seeds), "figures": values}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, f"{json.dumps(document, indent=1, allow_nan=False)}\n".encode())
    except OSError as error:
        raise OSError(f"the baseline {path} cannot be written: {error.strerror}") from None


def _read(path: Path) -> _Baseline:
    __tracebackhide__ = True
    try:
        document = jsonfile.read(path)
        if document["schema"] != SCHEMA:
            raise ValueError(f"its schema is {document['schema']}")
        seeds = tuple(map(int, document["seeds"]))
        figures = {name: tuple(map(float, values)) for name, values in document["figures"].items()}  # "nan", too
        if not figures or any(len(values) != len(seeds) for values in figures.values()):
            raise ValueError("it has not a value a seed")
        return _Baseline(path, seeds, figures, dict(document["versions"]))
    except KeyError as error:
        raise _damaged(path, f"it has no {error}") from error
    except (jsonfile.JsonError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is no baseline: {why}; pytest --numerics-update stores a new one")
