"""What the parts of the study share: an answer, and views of the tidy frame by case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import stats
from depthgauge.verdict import Status, Verdict

MARGIN = 0.02  # ln a layer: rates closer to each other than this are called the same
CONFIDENCE = 0.99  # of a family of comparisons with theory


@dataclass(frozen=True)
class Answer:
    """What one part contributes to the findings."""

    tables: Mapping[str, pd.DataFrame]
    verdicts: tuple[Verdict, ...] = ()
    sentences: tuple[str, ...] = ()


def verdict_on(claim: str, status: Status, why: str, **figures: Any) -> Verdict:
    """A verdict on the claim of that id; its text is filled in from the study's declaration."""
    return Verdict(claim, "", status, why=why, **figures)


def by_case(rows: pd.DataFrame, metric: str, direction: str | None = None) -> pd.DataFrame:
    """One row a case, one column a layer."""
    chosen = rows[rows["metric"] == metric]
    if direction is not None:
        chosen = chosen[chosen["direction"] == direction]
    return chosen.pivot_table(index="case", columns="layer_index", values="value", sort=False, dropna=False)


def logs(frame: pd.DataFrame) -> pd.DataFrame:
    """Natural logarithms; what has died out is -infinity."""
    with np.errstate(divide="ignore"):
        return pd.DataFrame(np.log(frame.to_numpy()), frame.index, frame.columns)


def only(rows: pd.DataFrame, metric: str) -> pd.Series[float]:
    """The one number of each case."""
    return rows[rows["metric"] == metric].set_index("case")["value"]


def records(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples."""
    return iter(frame.itertuples())


def shades(count: int) -> list[Any]:
    """Colours for an ordered quantity, dark to light, without the palest end."""
    import seaborn as sns  # noqa: PLC0415 - a second that workers, which draw nothing, need not spend

    return list(sns.color_palette("viridis", count))


def groups(frame: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, pd.DataFrame]]:
    """(key, rows) for each value of a column, or of several, in order of first appearance."""
    yield from frame.groupby(by, sort=False)


def params_of(rows: pd.DataFrame, *names: str) -> pd.DataFrame:
    """One row a case: its parameters."""
    return rows.drop_duplicates("case").set_index("case").reindex(columns=list(names))


CONDITION = {stats.Answer.EQUIVALENT: True, stats.Answer.DIFFERENT: False, stats.Answer.INCONCLUSIVE: None}


def agree(comparisons: Iterable[stats.Comparison]) -> tuple[Status, tuple[stats.Comparison, ...]]:
    """Whether measured figures agree with their predictions within the margin, condition by condition, as a family."""
    family = stats.together(comparisons)
    return Status(stats.combine(CONDITION[member.answer] for member in family)), family
