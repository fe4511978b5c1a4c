"""Layers of a model that schemes reach: all weight layers of ours, of a user's own perhaps some, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import nn

from depthgauge import initialization, models
from depthgauge.factories import is_factory
from depthgauge.parts import Answer
from depthgauge.study import Case, Rows
from depthgauge.verdict import Claim, Sentence, Status, Verdict

METRIC = "layers_reached"


def model(case: Case, inputs: torch.Tensor, shape: Sequence[str]) -> nn.Module:
    """The small model of a case for inputs (n, ...) of 10 classes; `shape` names the parameters it is built with."""
    given = case.given(*(name for name in shape if name in case))
    if case["model"] == "mlp":
        given["width"] = case.integer("units")
    return models.build(case.text("model"), preset="small", input_shape=tuple(inputs.shape[1:]), classes=10, **given)


def reached(cases: Sequence[Case], model: nn.Module) -> tuple[Rows, ...]:
    """One row a case, the number of layers and the sentence; none where every layer of a model of ours is reached."""
    reach = initialization.reach(model)
    if not (reach.others or is_factory(cases[0].text("model"))):
        return ()
    return tuple(case.rows(METRIC, float(len(reach.reached)), layer=str(reach)) for case in cases)


def drawn(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of cases whose schemes reached something."""
    reach = rows[rows["metric"] == METRIC]
    return rows[~rows["case"].isin(reach.loc[reach["value"] == 0, "case"])]


def answers(rows: pd.DataFrame, claims: Sequence[Claim]) -> Iterator[Answer]:
    """Verdicts on a part's claims where schemes reach nothing, a sentence on each model that they reach in part."""
    reach = rows[rows["metric"] == METRIC].drop_duplicates(["model", "layer"])
    for row in reach.to_dict("records"):
        sentence = f"In {row['model']} an initialization scheme {row['layer']}"
        if row["value"] > 0:
            yield Sentence(f"{sentence}.")
        for claim in claims if row["value"] == 0 else ():
            yield Verdict(claim.id, claim.text, Status.NOT_APPLICABLE, why=sentence)
