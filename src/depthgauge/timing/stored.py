"""Two stored benchmark runs, held against each other.

    before, after = read("0001"), read("out.json")
    for row in compare(before, after).rows:
        row.name, row.ratio, row.low, row.high, row.pace

A run is a file that pytest-benchmark wrote. Two runs are two sessions: they were not interleaved, so that whatever
changed between them (the machine's clock rate, its neighbours, where things lie in memory) is in every ratio beside the
code. What of it can be seen is taken off: benchmarks marked as references time work that no version of depthgauge
changes, and a ratio counts only beyond what they differ by.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depthgauge import jsonfile, stats
from depthgauge.jsonfile import JsonError, NoFileError, conform
from depthgauge.stats import Pace

REFERENCE = "reference"
"""The entry of `extra_info` that marks work which no version of the code changes."""

STORAGE = Path(".benchmarks")
_BATCHES = 25
_SHORTEST, _LONGEST = 1e-12, 1e9  # seconds that a round may take


class StoredRunError(ValueError):
    """Missing or unreadable run; the message is one sentence for the user."""


@dataclass(frozen=True)
class StoredRun:
    """A run as pytest-benchmark stores it.

    Attributes:
        path: the file's path.
        seconds: full name of a benchmark -> the durations of its rounds, in their order; empty where none were kept.
        references: the full names of those that are marked so.
        content: the file's content.
    """

    path: Path
    seconds: Mapping[str, tuple[float, ...]]
    references: frozenset[str]
    content: Mapping[str, Any]


def read(run: str | Path, storage: Path = STORAGE) -> StoredRun:
    """A run by its path, or by the beginning of its name in pytest-benchmark's storage (`0001`).

    Raises:
        StoredRunError: no such run, several of them, or no file of pytest-benchmark.
    """
    path = _find(run, storage)
    try:
        content = conform(jsonfile.read(path), dict[str, Any], "the whole")
        listed = conform(content.get("benchmarks"), list[dict[str, Any]], "benchmarks")
        each = [_benchmark(entry, f"benchmarks[{place}]") for place, entry in enumerate(listed)]
    except NoFileError as error:  # a link that leads nowhere
        raise StoredRunError(str(error)) from error
    except JsonError as error:
        what = str(error).removeprefix(f"{path} ")
        raise StoredRunError(f"{path} is not a run of pytest-benchmark: it {what}") from error
    rounds = {name: seconds for name, seconds, _ in each}
    return StoredRun(path, rounds, frozenset(name for name, _, marked in each if marked), content)


def _find(run: str | Path, storage: Path) -> Path:
    """The file at that path, else the one in the storage whose name begins so."""
    if os.path.lexists(run):
        return Path(run)
    begun = str(run)
    files = sorted(file for file in storage.glob("*/*.json") if begun and file.name.startswith(begun))
    if len(files) > 1:
        raise StoredRunError(f"several runs begin with {begun!r}: {', '.join(file.stem for file in files)}")
    if not files:
        raise StoredRunError(f"there is no run {begun!r}, neither as a file nor in {storage}")
    return files[0]


def _benchmark(entry: dict[str, Any], where: str) -> tuple[str, tuple[float, ...], bool]:
    """Full name, durations of the rounds, and whether it is a reference."""
    stats_, extra = entry.get("stats"), entry.get("extra_info", {})
    seconds = conform(
        conform(stats_, dict[str, Any], f"{where}.stats").get("data", []), tuple[float, ...], f"{where}.stats.data"
    )
    if any(not _SHORTEST <= each <= _LONGEST for each in seconds):
        raise JsonError(f"has durations in {where}.stats.data that are not within {_SHORTEST:g} to {_LONGEST:g} s")
    marked = conform(extra, dict[str, Any], f"{where}.extra_info").get(REFERENCE)
    return conform(entry.get("fullname"), str, f"{where}.fullname"), seconds, bool(marked)


@dataclass(frozen=True)
class Row:
    """One benchmark in both runs.

    Attributes:
        name: its full name.
        ratio: median time of the second run over that of the first.
        low: lower end of the ratio's interval.
        high: upper end.
        pace: the second run's, against the first's.
        why: the reason where it is inconclusive.
    """

    name: str
    ratio: float
    low: float
    high: float
    pace: Pace
    why: str = ""


@dataclass(frozen=True)
class Sessions:
    """Two runs, held against each other.

    Attributes:
        rows: one for each benchmark that both hold, references left out.
        references: rows of the references: the machine's own difference.
        resolution: the factor that the references differ by, between the sessions and within them; NaN without any.
        only: full names that one of the runs alone holds.
    """

    rows: tuple[Row, ...]
    references: tuple[Row, ...]
    resolution: float
    only: tuple[str, ...]


def compare(before: StoredRun, after: StoredRun, *, margin: float = 1.05, confidence: float = 0.99) -> Sessions:
    """The second run against the first, benchmark by benchmark.

    The ratio is that of the medians; its interval follows from an order-statistic interval of each, both at half of
    alpha, so that it is conservative. Rounds next to each other are not independent: they are taken in up to 25 batches
    of neighbours, a median each. *Slower* and *faster* ask for an interval beyond the resolution; *same* for one within
    the margin, where the resolution is as well; without a reference nothing is concluded.

    Raises:
        ValueError: a margin below 1.
    """
    if not margin >= 1:
        raise ValueError(f"a margin is a factor of at least 1, such as 1.05; got {margin!r}")
    shared = [name for name in before.seconds if name in after.seconds]
    marked = before.references & after.references
    ratios = {name: _ratio(before.seconds[name], after.seconds[name], confidence) for name in shared}
    factors = [_factor(*ratios[name][1:]) for name in shared if name in marked]
    for run in (before, after):
        factors += [_within(run.seconds[name], confidence) for name in shared if name in marked]
    resolution = max(factors, default=math.nan)
    rows = {name: _row(name, ratios[name], resolution, margin) for name in shared}
    alone = set(before.seconds) ^ set(after.seconds)
    return Sessions(
        tuple(row for name, row in rows.items() if name not in marked),
        tuple(row for name, row in rows.items() if name in marked),
        resolution,
        tuple(sorted(alone)),
    )


def _row(name: str, ratio: tuple[float, float, float], resolution: float, margin: float) -> Row:
    value, low, high = ratio
    if why := _undecided(ratio, resolution):
        return Row(name, value, low, high, Pace.INCONCLUSIVE, why)
    if low > resolution or high < 1 / resolution:
        return Row(name, value, low, high, Pace.SLOWER if low > resolution else Pace.FASTER)
    if resolution <= margin and 1 / margin <= low and high <= margin:
        return Row(name, value, low, high, Pace.SAME)
    return Row(name, value, low, high, Pace.INCONCLUSIVE, "within the references' difference, or too wide")


def _undecided(ratio: tuple[float, float, float], resolution: float) -> str:
    """Name the data that an answer lacks; nothing where all is there."""
    value, low, high = ratio
    if math.isnan(value):
        return "no rounds are stored; save them: --benchmark-save-data"
    if not (low > 0 and high < math.inf):
        return "too few rounds for an interval"
    if math.isnan(resolution):
        return "no reference in both runs"
    return "too few rounds of the references" if math.isinf(resolution) else ""


def _ratio(before: tuple[float, ...], after: tuple[float, ...], confidence: float) -> tuple[float, float, float]:
    if not before or not after:
        return math.nan, math.nan, math.nan
    each = 1 - (1 - confidence) / 2
    first, second = (stats.median(_batched(rounds), each) for rounds in (before, after))
    value = float(np.median(after) / np.median(before))
    if not (first.has_interval and second.has_interval and first.low > 0 and second.low > 0):
        return value, 0.0, math.inf
    return value, second.low / first.high, second.high / first.low


def _factor(low: float, high: float) -> float:
    """The most that two runs of the same work differ by; infinite where there is no interval."""
    return max(high, 1 / low) if low else math.inf


def _within(rounds: tuple[float, ...], confidence: float) -> float:
    """A/A within one session: rounds in fours, first and last against the two between."""
    blocks = np.array(rounds[: len(rounds) // 4 * 4]).reshape(-1, 4)
    return stats.resolution(blocks[:, [0, 3]], blocks[:, [1, 2]], confidence=confidence) if len(blocks) else math.inf


def _batched(rounds: tuple[float, ...]) -> list[float]:
    return [float(np.median(batch)) for batch in np.array_split(rounds, min(len(rounds), _BATCHES))]


@dataclass(frozen=True)
class Past:
    """The medians of benchmarks in one stored run.

    Attributes:
        path: the run's file.
        when: the time that it names; empty where it names none.
        seconds: full name -> median of its rounds, divided by `pace`.
        pace: geometric mean of the references' medians over those of the first run; 1 without references in common.
    """

    path: Path
    when: str
    seconds: Mapping[str, float]
    pace: float


def readable(files: Iterable[Path], most: int) -> list[StoredRun]:
    """The latest stored runs among files, the oldest first; what cannot be read is left out."""
    changed: dict[Path, float] = {}
    for file in files:
        with contextlib.suppress(OSError):  # a link to nothing
            changed[file] = file.stat().st_mtime
    runs = []
    for file in sorted(changed, key=changed.__getitem__)[-most:]:
        with contextlib.suppress(StoredRunError):
            runs.append(read(file))
    return runs


def history(runs: Sequence[StoredRun]) -> tuple[Past, ...]:
    """The medians of stored runs in the order of their times, with the machine's own pace taken off.

    What the references, which no version of the code changes, differ by from the first run divides everything else.
    """
    runs = sorted(runs, key=lambda run: str(run.content.get("datetime", "")))
    medians = [{name: float(np.median(each)) for name, each in run.seconds.items() if each} for run in runs]
    past = []
    for run, mine in zip(runs, medians, strict=True):
        shared = [name for name in run.references & runs[0].references if name in mine and name in medians[0]]
        pace = math.exp(np.mean([math.log(mine[name] / medians[0][name]) for name in shared])) if shared else 1.0
        seconds = {name: each / pace for name, each in mine.items()}
        past.append(Past(run.path, str(run.content.get("datetime", ""))[:16], seconds, pace))
    return tuple(past)
