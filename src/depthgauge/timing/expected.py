"""The expected time of a run of the benchmark suite, from what earlier runs took on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from depthgauge.timing.stored import STORAGE, StoredRun, readable

TOOK = {False: "took_quick", True: "took_full"}
"""The entry of `extra_info` with a benchmark's seconds, by whether all were run (which time longer): setting up,
calibrating, timing, cleaning up."""

BESIDE = "took_beside"
"""The entry of a run with the seconds that no benchmark took: imports, and describing the machine."""

_LATEST = 5  # runs that are looked at
_BESIDE = 10.0  # seconds where no run is stored
_UNKNOWN = {False: 2.0, True: 5.0}  # seconds of a benchmark where no run is stored: quick, full


@dataclass(frozen=True)
class Expected:
    """The expected time of some benchmarks.

    Attributes:
        seconds: all together, with what the run takes beside them.
        benchmarks: their number.
        known: of how many of them an earlier run has the time.
    """

    seconds: float
    benchmarks: int
    known: int

    def __str__(self) -> str:
        how = f"{self.known} of them by earlier runs here" if self.known else "no earlier run here: a rough guess"
        return f"about {_spelled(self.seconds)} for {self.benchmarks} benchmarks ({how})"


def expected(names: Iterable[str], *, full: bool = False, storage: Path = STORAGE) -> Expected:
    """The time that benchmarks of these full names will take: what each took last, else the median of those known.

    Args:
        names: full names.
        full: whether it is a run of all benchmarks, which times each for longer.
        storage: pytest-benchmark's folder.
    """
    took: dict[str, float] = {}
    beside = _BESIDE
    for run in readable(storage.glob("*/*.json"), _LATEST):
        took.update(_took(run, TOOK[full]))
        stored = run.content.get(BESIDE)
        beside = stored if isinstance(stored, int | float) and stored > 0 else beside
    names = list(names)
    known = [took[name] for name in names if name in took]
    each = statistics.median(known) if known else _UNKNOWN[full]
    return Expected(beside + sum(known) + each * (len(names) - len(known)), len(names), len(known))


def _took(run: StoredRun, name: str) -> dict[str, float]:
    entries = run.content.get("benchmarks", [])
    found = {entry["fullname"]: entry.get("extra_info", {}).get(name) for entry in entries}
    return {each: seconds for each, seconds in found.items() if isinstance(seconds, int | float) and seconds > 0}


def _spelled(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"
