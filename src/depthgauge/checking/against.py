"""Changes since an earlier check: by intervals, never by one threshold on one number."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from depthgauge.checking.amounts import shown
from depthgauge.checking.answers import WORST_FIRST, Answer, Finding, Measure, Status
from depthgauge.checking.found import Found
from depthgauge.environment import differences

if TYPE_CHECKING:
    import pandas as pd

MARGIN = 1.25  # a factor: two figures whose ratio lies inside it, interval and all, are the same
_LESS_IS_BETTER = {"s", "ms", "µs", "B", "KiB", "MiB", "GiB", "bytes", "seconds"}  # of seconds and memory


class Change(StrEnum):
    """Change of an answer; that which is to be seen first is first."""

    WORSE = "worse"
    BETTER = "better"
    CHANGED = "changed"  # it differs, and nothing says in which direction is better
    INCONCLUSIVE = "inconclusive"
    SAME = "same"


ORDER = tuple(Change)


@dataclass(frozen=True)
class Row:
    """Change of one question's answer.

    Attributes:
        id: the question's.
        change: the verdict.
        says: why, in a sentence with both figures.
        before: the earlier figure, and `after` the present one.
    """

    id: str
    change: Change
    says: str
    before: Measure
    after: Measure


@dataclass(frozen=True)
class Changes:
    """Two checks, question by question.

    Attributes:
        earlier: the earlier one, in words.
        rows: what became of each question that both asked, the worst first.
        notes: what else differs: the machine, versions, questions that one of them asked alone.
    """

    earlier: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def tally(self) -> str:
        """`1 worse, 1 inconclusive, 5 same`."""
        counts = [(change, sum(row.change is change for row in self.rows)) for change in ORDER]
        return ", ".join(f"{count} {change.value}" for change, count in counts if count) or "nothing in common"

    def to_frame(self) -> pd.DataFrame:
        """A row a question: `id`, `change`, `says`, `value_before`, ..., `high_after`, `unit`."""
        import pandas as pd  # noqa: PLC0415 - for whoever asks for a frame

        columns = ["id", "change", "says"]
        columns += [f"{name}_{when}" for when in ("before", "after") for name in ("value", "low", "high")] + ["unit"]
        rows = [
            (row.id, row.change.value, row.says, *_ends(row.before), *_ends(row.after), row.after.unit)
            for row in self.rows
        ]
        return pd.DataFrame(rows, columns=columns)

    def __str__(self) -> str:
        """A line a question."""
        return "\n".join(f"{row.change.value:<13} {row.id.replace('_', ' ')}: {row.says}" for row in self.rows)


def against(now: Found, earlier: Found, margin: float = MARGIN) -> Changes:
    """Hold a check against an earlier one.

    Worse or better is what moved beyond both intervals, or a fact that was not there: a parameter without a gradient
    has no interval. A status that changed while the figure behind it did not leave its interval is inconclusive.

    Args:
        now: the present one.
        earlier: the earlier one.
        margin: factor within which figures are the same.

    Raises:
        ValueError: the margin is not above 1.
    """
    if not 1 < margin < math.inf:
        raise ValueError(f"margin is a factor above 1, not {margin!r}")
    rows = [_row(earlier.answers[answer.id], answer, margin) for answer in now.asked if answer.id in earlier.answers]
    rows.sort(key=lambda row: ORDER.index(row.change))
    return Changes(_named(earlier), tuple(rows), tuple(_notes(now, earlier)))


def _named(earlier: Found) -> str:
    return " of ".join(filter(None, [earlier.about.name or "an earlier check", earlier.about.started]))


def _notes(now: Found, earlier: Found) -> Iterable[str]:
    for these, those, when in ((earlier, now, "earlier"), (now, earlier, "now")):
        alone = [answer.id for answer in these.asked if answer.id not in those.answers]
        if alone:
            yield f"asked {when} alone: {', '.join(alone)}"
    if apart := differences(earlier.run, now.run):
        yield f"the two ran in different environments, which figures of time and memory depend on: {'; '.join(apart)}"


def _row(before: Answer, after: Answer, margin: float) -> Row:
    change, says = _change(before, after, margin)
    return Row(after.id, change, says, before.figure, after.figure)


def _change(before: Answer, after: Answer, margin: float) -> tuple[Change, str]:
    if Status.UNDECIDED in (before.status, after.status):
        return Change.INCONCLUSIVE, f"{before.status.value} before, {after.status.value} now: {after.says}"
    gone, new = _apart(before, after), _apart(after, before)
    if not gone and not new and before.status is after.status:
        return _figures(before.figure, after.figure, margin)
    rank = WORST_FIRST.index(after.status) - WORST_FIRST.index(before.status)
    way = (rank > 0) - (rank < 0) or (not new) - (not gone)
    moved = {1: gone, -1: new, 0: (*gone, *new)}[way] or (*gone, *new)
    told = f"{before.status.value} before, {after.status.value} now"
    doubtful = [_overlap(finding, after if finding in gone else before) for finding in moved]
    if doubtful and all(doubtful):
        return Change.INCONCLUSIVE, f"{told}, and the figures do not tell them apart: {doubtful[0]}"
    change = {1: Change.BETTER, -1: Change.WORSE, 0: Change.CHANGED}[way]
    what = moved[0].text if moved else after.says
    return change, f"{told}; {'gone' if way > 0 else 'new' if way < 0 else 'among them'}: {what}"


def _apart(these: Answer, others: Answer) -> tuple[Finding, ...]:
    """Findings of faults and of what is to be looked at that the other answer has not, at the same place."""
    known = {(finding.kind, finding.where, finding.status) for finding in others.findings}
    told = (finding for finding in these.findings if finding.status in (Status.BROKEN, Status.LOOK))
    return tuple(finding for finding in told if (finding.kind, finding.where, finding.status) not in known)


def _overlap(finding: Finding, other: Answer) -> str:
    """Both intervals where a finding's figure overlaps that of the other check; empty where nothing is in doubt."""
    mine = finding.measure
    measures = (other.measure, *(each.measure for each in other.findings))
    theirs = next((each for each in measures if each.name == mine.name and each.unit == mine.unit), Measure())
    if not (_has_interval(mine) and _has_interval(theirs)):
        return ""
    apart = mine.high < theirs.low or theirs.high < mine.low
    return "" if apart else f"{mine.name} {shown(mine)} and {shown(theirs)} overlap"


def _figures(before: Measure, after: Measure, margin: float) -> tuple[Change, str]:
    """Tell what became of a figure whose findings stayed."""
    if math.isnan(before.value) or math.isnan(after.value) or (before.name, before.unit) != (after.name, after.unit):
        return Change.SAME, "the same findings, without a figure that both have"
    told = f"{after.name} {shown(before)} before, {shown(after)} now".strip()
    sure = [_has_interval(measure) for measure in (before, after)]
    if all(sure):
        return _intervals(before, after, margin, told)
    if before.value == after.value and not any(sure):
        return Change.SAME, told
    return Change.INCONCLUSIVE, f"{told}, without an interval to tell a change from noise"


def _intervals(before: Measure, after: Measure, margin: float, told: str) -> tuple[Change, str]:
    if _within(before, after, margin):
        return Change.SAME, f"{told}: within a factor of {margin:g}"
    if before.low <= after.high and after.low <= before.high:
        return Change.INCONCLUSIVE, f"{told}: the intervals overlap, and reach beyond a factor of {margin:g}"
    if after.unit not in _LESS_IS_BETTER:
        return Change.CHANGED, told
    return (Change.WORSE if after.value > before.value else Change.BETTER), told


def _within(before: Measure, after: Measure, margin: float) -> bool:
    """Tell whether the ratio of two figures lies inside the margin with its whole interval."""
    if _ends(before) == _ends(after):
        return True
    ends = (before.low, before.high, after.low, after.high)
    if not (min(ends) > 0 or max(ends) < 0):
        return False
    ratios = [abs(after.low / before.high), abs(after.high / before.low)]
    return 1 / margin < min(ratios) and max(ratios) < margin


def _has_interval(measure: Measure) -> bool:
    return all(map(math.isfinite, (measure.low, measure.high)))


def _ends(measure: Measure) -> tuple[float, float, float]:
    return measure.value, measure.low, measure.high
