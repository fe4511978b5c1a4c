"""What schemes reach of a model: all weight layers of ours, of a user's own perhaps some, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from torch import nn

from depthgauge import initialization
from depthgauge.factories import is_factory
from depthgauge.parts import Answer, verdict_on
from depthgauge.study import Case, Rows
from depthgauge.verdict import Status

METRIC = "layers_reached"


def reached(cases: Sequence[Case], model: nn.Module) -> tuple[Rows, ...]:
    """One row a case with the number of layers and, as its layer, the sentence.

    None for a model of ours of which every layer is reached, as that is to be expected.
    """
    found = initialization.reach(model)
    if not (found.others or is_factory(cases[0].text("model"))):
        return ()
    return tuple(case.rows(METRIC, float(len(found.reached)), layer=str(found)) for case in cases)


def nothing(rows: Sequence[Rows]) -> bool:
    """Whether these say that no layer is reached: every scheme and seed would be one network."""
    return any(row.value == 0 for row in rows)


def drawn(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of cases whose schemes reached something."""
    told = _told(frame)
    return frame[~frame["case"].isin(told.loc[told["value"] == 0, "case"])] if len(told) else frame


def answer(frame: pd.DataFrame, claims: Mapping[str, Sequence[str]]) -> Answer:
    """Verdicts on the claims of parts that had nothing to draw, a sentence on each model that is reached in part."""
    told = _told(frame)
    without = told[told["value"] == 0]
    verdicts = {
        claim: verdict_on(claim, Status.NOT_APPLICABLE, _sentence(row["model"], row["layer"]))
        for row in without.drop_duplicates("part").to_dict("records")
        for claim in claims[row["part"]]
    }
    partly = told[told["value"] > 0].drop_duplicates(["model", "layer"])
    return Answer({}, tuple(verdicts.values()), tuple(_sentences(partly)))


def _sentences(told: pd.DataFrame) -> Iterator[str]:
    for row in told.to_dict("records"):
        yield f"{_sentence(row['model'], row['layer'])}."


def _sentence(model: object, found: object) -> str:
    return f"Of {model} a scheme {found}"


def _told(frame: pd.DataFrame) -> pd.DataFrame:
    rows = frame.reindex(columns=["case", "status", "part", "model", "metric", "layer", "value"])
    return rows[(rows["status"] == "ok") & (rows["metric"] == METRIC)]
