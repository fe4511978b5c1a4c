"""The difference of two profiles, operator by operator: where a step has become slower or faster.

change = difference(before, after)
change.rows          # name, kind, before, after, difference (seconds of a step), calls_before, calls_after
change.ratio         # step over step, with its interval
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from depthgauge.profiling.analysis import Profile
from depthgauge.stats import Estimate

NOTHING = "nothing computes"
"""The row of the time in which no operator runs, so that the rows add up to the step."""


@dataclass(frozen=True)
class Difference:
    """Two profiles, held against each other.

    Attributes:
        before: the profile that the other is held against.
        after: the other.
        rows: one row an operator (on a device, a kernel's operator), the largest change first. Columns: name, kind;
            before, after and difference, seconds of a step without the profiler; calls_before, calls_after, of a step.
            Operators take their share of the traced step; what is left of it is the row `NOTHING`.
        ratio: time of a step after over before. Its interval holds both steps' intervals at once (98 %); the two
            profiles were not measured in turns, so that the machine's own change is in it.
        settings: name, value before, value after, of each setting that differs.
    """

    before: Profile
    after: Profile
    rows: pd.DataFrame
    ratio: Estimate
    settings: tuple[tuple[str, str, str], ...]

    @property
    def seconds(self) -> float:
        """The change of a step's time, the sum of the rows' changes."""
        return self.after.seconds.value - self.before.seconds.value

    @property
    def certain(self) -> bool:
        """Tell whether the interval of the ratio excludes 1."""
        return self.ratio.has_interval and not self.ratio.low <= 1 <= self.ratio.high


def difference(before: Profile, after: Profile) -> Difference:
    """Hold two profiles against each other; an operator that one of them lacks takes no time there."""
    parts = _parts(before).add_suffix("_before"), _parts(after).add_suffix("_after")
    merged = parts[0].join(parts[1], how="outer").fillna(0.0)
    rows = pd.DataFrame(
        {
            "before": merged["seconds_before"],
            "after": merged["seconds_after"],
            "difference": merged["seconds_after"] - merged["seconds_before"],
            "calls_before": merged["calls_before"],
            "calls_after": merged["calls_after"],
        }
    )
    rows = rows.sort_values("difference", key=lambda each: -each.abs(), kind="stable").reset_index()
    return Difference(before, after, rows, _ratio(before.seconds, after.seconds), _settings(before, after))


def _parts(profile: Profile) -> pd.DataFrame:
    """Calls and seconds of each operator, indexed by name and kind, and the rest of the step."""
    table = profile.operators.groupby(["name", "kind"])[["calls", "share"]].sum()
    seconds = table["share"] * profile.seconds.value
    parts = pd.DataFrame({"calls": table["calls"], "seconds": seconds})
    parts.loc[(NOTHING, "other"), ["calls", "seconds"]] = [0.0, profile.seconds.value - float(seconds.sum())]
    return parts


def _ratio(before: Estimate, after: Estimate) -> Estimate:
    low = high = math.nan
    if before.has_interval and after.has_interval and before.low > 0:
        low, high = after.low / before.high, after.high / before.low
    how = "ratio of two medians, from the interval of each"
    return Estimate(after.value / before.value, low, high, min(before.n, after.n), how)


def _settings(before: Profile, after: Profile) -> tuple[tuple[str, str, str], ...]:
    """Name the requests and machines of the two where they differ."""
    first, second = map(_asked, (before, after))
    names = dict.fromkeys((*first, *second))
    return tuple(
        (name, str(first.get(name, "–")), str(second.get(name, "–")))
        for name in names
        if first.get(name) != second.get(name)
    )


def _asked(profile: Profile) -> Mapping[str, object]:
    captured = profile.capture
    return {**captured.setting, **{name: captured.fingerprint.get(name) for name in ("torch", "cpu", "commit")}}
