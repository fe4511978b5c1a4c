"""Rows as the store gives them to an analysis, without a store; and what a part's analysis yields, by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from depthgauge.parts import Part
from depthgauge.study import COORDINATES, Case, Rows
from depthgauge.verdict import Sentence, Status, Verdict

Tidy = Callable[..., pd.DataFrame]


def tidy_frame(rows: Iterable[Rows], failed: Mapping[Case, str] | None = None) -> pd.DataFrame:
    """The frame that `Stored.frame` reads back; `failed` cases have a status and no value."""
    cases: dict[str, Case] = {}
    found: dict[str, list[object]] = {
        name: [] for name in ("case", *COORDINATES, "metric", "value", "status", "message")
    }

    def extend(case: Case, n: int, **columns: object) -> None:
        cases[case.id] = case
        for name, column in {"case": case.id, **columns}.items():
            one = column is None or isinstance(column, str) or np.ndim(column) == 0
            found[name].extend([column] * n if one else column)

    for row in rows:
        told = {name: getattr(row, name) for name in (*COORDINATES, "metric", "value")}
        extend(row.case, np.size(row.value), **told, status="ok", message="")
    for case, status in (failed or {}).items():
        empty = dict.fromkeys(COORDINATES)
        extend(case, 1, **empty, metric="", value=np.nan, status=status, message="what happened")
    found["value"] = np.array(found["value"], dtype=np.float64)
    table = pd.DataFrame(found)
    for name in ("layer_index", "step"):
        table[name] = pd.to_numeric(table[name])
    for name in ("layer", "direction"):
        table[name] = table[name].astype("str")  # as the store has text: what is missing is NaN, in an empty column too
    names = sorted({name for case in cases.values() for name, _ in case.params})
    given = pd.DataFrame({name: [cases[i].get(name) for i in table["case"]] for name in names}, index=table.index)
    return pd.concat([table[["case"]], given, table.drop(columns="case")], axis=1)


@pytest.fixture(scope="session")
def tidy() -> Tidy:
    return tidy_frame


@pytest.fixture(scope="module", autouse=True)
def _studies_fork_their_ranks(warm_ranks: None) -> None:
    """A study is judged by what its ranks find."""


@dataclass(frozen=True)
class Answers:
    """What an analysis yielded, by kind; claims without the study's name."""

    verdicts: dict[str, Verdict]
    tables: dict[str, pd.DataFrame]
    sentences: list[str]

    @property
    def statuses(self) -> dict[str, Status]:
        return {name: verdict.status for name, verdict in self.verdicts.items()}


def answers_of(part: Part, rows: Iterable[Rows]) -> Answers:
    answers = list(part.analyse(tidy_frame(rows)))
    verdicts = [answer for answer in answers if isinstance(answer, Verdict)]
    return Answers(
        {verdict.id.rpartition("/")[2]: verdict for verdict in verdicts},
        dict(answer for answer in answers if isinstance(answer, tuple)),
        [answer.text for answer in answers if isinstance(answer, Sentence)],
    )


@pytest.fixture(scope="session")
def analysed() -> Callable[[Part, Iterable[Rows]], Answers]:
    return answers_of
