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
LEARNED = (1 / 2, 2 / 3)  # of a map's best accuracy: what a cell must reach to be judged, by a mild and a strict rule


def answers(runs: pd.DataFrame) -> Iterator[Answer]:
    """The spread of test accuracy among cells of equal product, against cells of equal lambda and of equal rate.

    Args:
        runs: those that are reported, and by negative seeds those whose validation accuracy tells which cells learned.
    """
    runs = runs[(runs["decay"] > 0) & (runs["lr"] * runs["decay"] < 2)]
    runs = runs.assign(product=np.log2(runs["lr"] * runs["decay"]).round(6), map=runs["optimizer"] + ", " + runs["net"])
    told = runs[runs["seed"] >= 0]
    cells = told.groupby(["map", "lr", "decay"], sort=False)["test_accuracy"].agg(["mean", "size"]).reset_index()
    acted = told["lr"] * told["decay"] * told["steps"] >= 1
    shares = told.merge(_shares(runs), "left", on=["map", "lr", "decay"])["share"].set_axis(told.index)
    asked, spreads = {}, []
    for (name, own), share in ((each, share) for each in groups(told[acted], "map") for share in LEARNED):
        judged = own[shares[own.index] >= share]
        within = {by: np.array([_within(seed, by) for _, seed in groups(judged, "seed")]) for by in AXES}
        if not all(len(values) and np.isfinite(values).all() for values in within.values()):
            continue  # too few cells where decay had time
        left_out = len(own) - len(judged)
        for by, values in within.items():
            at = {"map": name, "reached": f"{share:.0%} of the best", "equal": AXES[by], "n": len(values)}
            count = {"cells": judged.groupby("seed").size().max(), "left_out": left_out // own["seed"].nunique()}
            spreads.append({**at, **spelled("value", stats.mean(values)), **count})
        for by in ("decay", "lr"):
            pair = within["product"], within[by]
            asked[name, f"{share:.0%}", AXES[by]] = stats.paired(*pair, log=True, margin=CLOSER, test="t")
    yield "decay_map", cells.rename(columns={"lr": "rate", "decay": "lambda", "mean": "test_accuracy", "size": "n"})
    table = pd.DataFrame(spreads).rename(columns={"value_low_95": "low_95", "value_high_95": "high_95"})
    yield "decay_spreads", table
    question = Question.of(
        "product", ("map", "reached", "other"), asked, reference="as close",
        label="{map}, cells with {reached} of the best: equal product against {other}",
    )  # fmt: skip
    if question:
        yield question.table()
        yield from _judged(question, table)


def _shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Each cell's validation accuracy over the best of its map, by the seeds that are not reported."""
    chosen = runs[runs["seed"] < 0].groupby(["map", "lr", "decay"])["validation_accuracy"].mean()
    return (chosen / chosen.groupby("map").transform("max")).rename("share").reset_index()


def _judged(question: Question, spreads: pd.DataFrame) -> Iterator[Answer]:
    found: dict[str, bool | None] = {}
    for name in dict.fromkeys(name for name, *_ in question.members if name.startswith("AdamW")):
        own = question.where(map=name).members
        by_rule = {
            every(below(c) for (_, rule, _), c in own.items() if rule == each) for each in {rule for _, rule, _ in own}
        }
        found[name] = by_rule.pop() if len(by_rule) == 1 else None  # where the rules disagree, none
    if not found:
        return
    words = {True: "closest at equal products:", False: "not so:", None: "undecided:"}
    left = spreads.drop_duplicates(["map", "reached"])
    left_out = ", ".join(
        f"{row['left_out']} of {row['left_out'] + row['cells']} ({row['map']}, {row['reached']})"
        for row in left[left["map"].isin(list(found))].to_dict("records")
    )
    yield question.where(map=tuple(found)).verdict(
        PRODUCT, found, unit="times the spread",
        why=f"accuracies are {listed(found, words)}; cells left out as they learned too little: {left_out}",
        method="root mean square of the cells around the mean of their group, per degree of freedom, of the cells "
        "where rate x lambda x steps is 1 or more, so that decay has had time, and rate x lambda is below 2, and that "
        f"reach {' and, again, '.join(f'{share:.0%}' for share in LEARNED)} of the best cell's validation accuracy by "
        f"other seeds; holds where it is smaller by {CLOSER:g} in groups of equal product than in those of equal "
        "lambda and of equal rate, by both rules; where they disagree, undecided; log ratio by seed, paired t",
    )  # fmt: skip
    yield from _product_sentence(found, question)


AXES = {"product": "equal product", "decay": "equal lambda", "lr": "equal rate"}


def _within(cells: pd.DataFrame, by: str) -> float:
    """Root mean square of test accuracies around the mean of their group, per degree of freedom."""
    deviation = cells["test_accuracy"] - cells.groupby(by)["test_accuracy"].transform("mean")
    freedom = len(cells) - cells[by].nunique()
    return math.sqrt(float((deviation**2).sum()) / freedom) if freedom > 0 else math.nan


def _product_sentence(found: dict[str, bool | None], question: Question) -> Iterator[Answer]:
    if not found.get("AdamW, normalized"):
        return
    told = {name: question.where(map=name, other="equal lambda").members for name in found}
    times = {name: " and ".join(f"{c.effect.value:.2f}" for c in own.values()) for name, own in told.items()}
    rest = (
        f"; without normalization {times['AdamW, plain']} times" if found.get("AdamW, plain", True) is not True else ""
    )
    rules = " and ".join(rule for _, rule, _ in told["AdamW, normalized"])
    yield Sentence(
        "AdamW's strength of decay is rate x lambda where all weights are normalized: accuracies of equal product lie "
        f"{times['AdamW, normalized']} times as far apart as those of equal lambda, among cells that reach {rules} of "
        f"the best accuracy{rest}.",
        figure="decay_spreads", claims=(PRODUCT.id,),
    )  # fmt: skip


@drawing.figure(
    "decay_map", "Test accuracy over learning rate and weight decay, in plain and in normalized networks",
    lambda decay_map: f"Mean test accuracy of {decay_map['n'].min()} seeds on 8 x 8 digits, 300 training examples with "
    "a fifth of the labels wrong. Lines: rate x lambda is the same, and large enough to act within the steps.",
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
        for product in (4.0**-4, 4.0**-3, 4.0**-2):
            for rate in rates:
                yield {"map": name, "rate": rate, "lambda": product / rate, "line": f"product {product:.2g}"}


@drawing.figure(
    "decay_spreads", "How much test accuracy varies among runs of equal product, equal lambda and equal rate",
    lambda decay_spreads: f"Root mean square within groups, mean of {decay_spreads['n'].min()} seeds, 95 % intervals; "
    "cells of the map where rate x lambda x steps is 1 or more and that reach a share of the best cell's validation "
    "accuracy.",
)  # fmt: skip
def draw_spreads(decay_spreads: pd.DataFrame) -> Any:
    """Spread within groups, a row a map and rule, a colour a grouping."""
    axes = {"xlabel": "spread of test accuracy within groups"}
    named = decay_spreads.assign(run=decay_spreads["map"] + ", " + decay_spreads["reached"])
    return drawing.panels(named, "", drawing.estimates, at="run", by="equal", axes=axes)


FIGURES = (draw_map, draw_spreads)
