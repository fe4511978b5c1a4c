"""A part's helper: do networks end alike at equal rate x lambda, more than at equal lambda or equal rate?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats
from depthgauge.frames import groups
from depthgauge.parts import Answer
from depthgauge.questions import Question, below, every, listed, spelled
from depthgauge.verdict import Claim, Sentence

PRODUCT = Claim("regularization/product", "with AdamW final accuracy depends on rate x lambda")
CLOSER = 1.1  # spreads within 10 % of each other are the same


def answers(runs: pd.DataFrame) -> Iterator[Answer]:
    """The spread of test accuracy among cells of equal product, against cells of equal lambda and of equal rate."""
    runs = runs[(runs["decay"] > 0) & (runs["lr"] * runs["decay"] < 2)]
    runs = runs.assign(product=np.log2(runs["lr"] * runs["decay"]).round(6), map=runs["optimizer"] + ", " + runs["net"])
    cells = runs.groupby(["map", "lr", "decay"], sort=False)["test_accuracy"].agg(["mean", "size"]).reset_index()
    yield "decay_map", cells.rename(columns={"lr": "rate", "decay": "lambda", "mean": "test_accuracy", "size": "n"})
    asked, spreads = {}, []
    acted = runs[runs["lr"] * runs["decay"] * runs["steps"] >= 1]
    for name, own in groups(acted, "map"):
        within = {by: np.array([_within(seed, by) for _, seed in groups(own, "seed")]) for by in AXES}
        if not np.isfinite(list(within.values())).all():
            continue  # too few cells where decay had time
        for by, values in within.items():
            at = {"map": name, "equal": AXES[by], "n": len(values)}
            spreads.append({**at, **spelled("value", stats.mean(values)), "cells": own.groupby("seed").size().max()})
        for by in ("decay", "lr"):
            asked[name, AXES[by]] = stats.paired(within["product"], within[by], log=True, margin=CLOSER, test="t")
    yield "decay_spreads", pd.DataFrame(spreads).rename(columns={"value_low_95": "low_95", "value_high_95": "high_95"})
    question = Question.of(
        "product", ("map", "other"), asked, label="{map}: equal product against {other}", reference="as close"
    )
    if not question:
        return
    yield question.table()
    found = {
        name: every([below(question.members[name, AXES[by]]) for by in ("decay", "lr")])
        for name in dict.fromkeys(name for name, _ in asked) if name.startswith("AdamW")
    }  # fmt: skip
    if found:
        words = {True: "closest at equal products:", False: "not so:", None: "undecided:"}
        yield question.where(map=tuple(found)).verdict(
            PRODUCT, found, unit="times the spread", why=f"accuracies are {listed(found, words)}",
            method="root mean square of the cells around the mean of their group, per degree of freedom, of the cells "
            "where rate x lambda x steps is 1 or more, so that decay has had time, and rate x lambda is below 2; holds "
            f"where it is smaller by {CLOSER:g} in groups of equal product than in those of equal lambda and of equal "
            "rate, log ratio by seed, paired t",
        )  # fmt: skip
    yield from _product_sentence(found, question)


AXES = {"product": "equal product", "decay": "equal lambda", "lr": "equal rate"}


def _within(cells: pd.DataFrame, by: str) -> float:
    """Root mean square of test accuracies around the mean of their group, per degree of freedom."""
    deviation = cells["test_accuracy"] - cells.groupby(by)["test_accuracy"].transform("mean")
    freedom = len(cells) - cells[by].nunique()
    return math.sqrt(float((deviation**2).sum()) / freedom) if freedom > 0 else math.nan


def _product_sentence(found: dict[str, bool | None], question: Question) -> Iterator[Answer]:
    plain, normed = found.get("AdamW, plain"), found.get("AdamW, normalized")
    if normed and plain is False and question.members["AdamW, plain", "equal lambda"].beyond:
        yield Sentence(
            "AdamW's strength of decay is rate x lambda where all weights are normalized; without normalization "
            "networks of equal lambda end more alike than those of equal product.",
            figure="decay_map", claims=(PRODUCT.id,),
        )  # fmt: skip


@drawing.figure(
    "decay_map", "Test accuracy over learning rate and weight decay, in plain and in normalized networks",
    lambda decay_map: f"Mean test accuracy of {decay_map['n'].min()} seeds on 8 x 8 digits, 300 training examples with "
    "a fifth of the labels wrong. Lines: rate x lambda is the same.",
)  # fmt: skip
def draw_map(decay_map: pd.DataFrame) -> Any:
    """Accuracy over rate and lambda, a panel a map."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "learning rate", "ylabel": "lambda"}
    return drawing.panels(
        decay_map, "map", drawing.heat, x="rate", y="lambda", value="test_accuracy", axes=axes, shared="none",
        over=pd.DataFrame(_lines(decay_map)),
    )  # fmt: skip


def _lines(cells: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for name, own in groups(cells, "map"):
        rates = np.sort(own["rate"].unique())
        for product in (4.0**-6, 4.0**-4, 4.0**-2):
            for rate in rates:
                yield {"map": name, "rate": rate, "lambda": product / rate, "line": f"product {product:.2g}"}


@drawing.figure(
    "decay_spreads", "How much test accuracy varies among runs of equal product, equal lambda and equal rate",
    lambda decay_spreads: f"Root mean square within groups, mean of {decay_spreads['n'].min()} seeds, 95 % intervals; "
    "cells of the map where rate x lambda x steps is 1 or more.",
)  # fmt: skip
def draw_spreads(decay_spreads: pd.DataFrame) -> Any:
    """Spread within groups, a row a map, a colour a grouping."""
    axes = {"xlabel": "spread of test accuracy within groups"}
    return drawing.panels(decay_spreads, "", drawing.estimates, at="map", by="equal", axes=axes)


FIGURES = (draw_map, draw_spreads)
