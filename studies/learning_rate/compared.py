"""Suggested rates beside the tuned one, and a rate that takes no test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats
from depthgauge.drawing.palette import GREY, INK
from depthgauge.frames import groups
from depthgauge.questions import Key, Question
from depthgauge.studies.learning_rate.suggested import DATA, OURS

BY = ["net", "optimizer", "batch", "noise"]
TOLERATED = 0.1  # share of conditions: a coverage this close to 95 % is it, 85 % and more
HALF_STEP = 10 ** (1 / 8)  # of the grid: the tuned rate is known no better
FIXED = "without a test"  # the rate that suits the other conditions of an optimizer
NAMED = {
    OURS: "the repeated test", "repeated_steepest": "half the repeated test's steepest",
    "repeated_risen": "a sixth of the repeated test's rise", "steepest_by_step": "Lightning before 2.5.3",
    "steepest_by_rate": "Lightning since 2.5.3", "valley": "fastai's valley", "tenth_of_lowest": "fastai's minimum",
}  # fmt: skip
"""A finder in words, as tables and sentences have it."""


def suggested_beside(rows: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """One row a (condition, seed, finder): its rate, the loss there and at the tuned rate, and its interval."""
    asked = rows[(rows["asked"] == "suggestion") & (rows["metric"] != "repetition")]
    wide = asked.pivot_table(index=[*BY, "seed", "layer"], columns="metric", values="value", dropna=False).reset_index()
    wide = wide[wide["rate"].notna() | wide["end"].notna() | (wide["layer"] == OURS)].rename(
        columns={"layer": "finder"}
    )
    repeated = rows[(rows["asked"] == "suggestion") & (rows["metric"] == "repetition")]
    ends = [(*key, *_order_interval(own["value"])) for key, own in groups(repeated, [*BY, "seed"])]
    order = pd.DataFrame(ends, columns=[*BY, "seed", "order_low", "order_high"]).assign(finder=OURS)
    best = tuned[[*BY, "seed", "lr", "score", "at_edge"]].rename(columns={"lr": "tuned"})
    whole = {"seed": int, "batch": int}
    table = wide.astype(whole).merge(order.astype(whole), on=[*BY, "seed", "finder"], how="left")
    return (
        table.merge(best.astype(whole), on=[*BY, "seed"])
        .assign(tuned_end=lambda t: -t["score"], finder=lambda t: t["finder"].map(NAMED))
        .drop(columns="score")
    )


def _order_interval(suggestions: pd.Series[float]) -> tuple[float, float]:
    """Ends of Student's interval over the repetitions alone."""
    estimate = stats.mean(suggestions, log=True)
    equal = suggestions.min() == suggestions.max()
    return (estimate.value,) * 2 if equal else (estimate.low, estimate.high)


def one_rate(every: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """The baseline without any test: of an optimizer's rates the one that is best on its other conditions."""
    choosing = every[~every["seed"].isin(tuned["seed"])]
    means = choosing.pivot_table(index=["optimizer", "net", "batch", "noise"], columns="lr", values="score")
    found = []
    for key, own in groups(tuned, BY):
        net, optimizer, batch, noise = key
        others = means.loc[optimizer].drop((net, batch, noise)).dropna(axis=1)
        if others.empty:
            continue
        rate = float(others.sub(others.max(axis=1), axis=0).mean().idxmax())
        there = every[(every[BY] == list(key)).all(axis=1) & (every["lr"] == rate)].set_index("seed")["score"]
        best = own.set_index("seed")
        found += [
            {**dict(zip(BY, key, strict=True)), "seed": seed, "finder": FIXED, "rate": rate, "end": -there[seed],
             "tuned_end": -best.loc[seed, "score"], "tuned": best.loc[seed, "lr"], "at_edge": best.loc[seed, "at_edge"]}
            for seed in best.index.intersection(there.index)
        ]  # fmt: skip
    return pd.DataFrame(found)


def tally(question: Question, reading: Callable[[stats.Comparison], bool | None]) -> str:
    """In how many tasks it is true, and of which finder most often."""
    by_finder: dict[str, list[bool | None]] = {}
    for (finder, *_), comparison in question.members.items():
        by_finder.setdefault(finder, []).append(reading(comparison))
    answers = [answer for given in by_finder.values() for answer in given]
    what = "pairs of finder and task" if len(by_finder) > 1 else "tasks"
    best, given = max(by_finder.items(), key=lambda pair: pair[1].count(True))
    most = f"; most often for {best}: {given.count(True)} of {len(given)}" if len(by_finder) > 1 else ""
    return f"true in {answers.count(True)} of {len(answers)} {what}, false in {answers.count(False)}{most}"


def coverages(ours: pd.DataFrame) -> tuple[dict[Key, stats.Comparison], dict[Key, dict[str, float]]]:
    """Count how often an interval holds the tuned rate: of each condition, which has one, in its first that is decided.

    Args:
        ours: the rows of `suggested_beside` in which the repeated test suggests a rate.
    """
    asked: dict[Key, stats.Comparison] = {}
    further: dict[Key, dict[str, float]] = {}
    new = ours[ours["net"].isin(list(DATA))]
    for name, own, low, high in (
        ("of the answer", ours, "low", "high"), ("of the repetitions alone", ours, "order_low", "order_high"),
        ("of the answer, on data it was not set by", new, "low", "high"),
    ):  # fmt: skip
        held = (own[low] / HALF_STEP <= own["tuned"]) & (own["tuned"] <= own[high] * HALF_STEP)
        if len(held):
            first = ~own.sort_values("seed").duplicated(BY)
            each = held[first.reindex(own.index)]  # the trainings of a condition miss its rate together
            asked[(name,)] = stats.coverage(int(each.sum()), len(each), 0.95, margin=TOLERATED)
            factor = float((own[high] / own[low]).median())
            further[(name,)] = {"median_factor": factor, "trainings": len(held), "held": int(held.sum())}
    return asked, further


def spanned(counts: pd.Series[int]) -> str:
    """The least of some counts and the largest, in words."""
    return " to ".join(dict.fromkeys(str(end) for end in (counts.min(), counts.max())))


def _by_finder(axis: Any, rows: pd.DataFrame) -> None:
    means = np.log(rows["value"]).groupby(rows["finder"]).mean().sort_values()
    places = {finder: place for place, finder in enumerate(means.index)}
    axis.axvline(1, color=GREY, lw=0.9, zorder=0)
    axis.plot(rows["value"], rows["finder"].map(places), "o", ms=5, alpha=0.45, color="C0", label="a task")
    axis.plot(np.exp(means), range(len(means)), "D", ms=7, color=INK, label="geometric mean")
    axis.set_yticks(range(len(means)), means.index)
    axis.invert_yaxis()


@drawing.figure(
    "finders", "Loss at the learning rate that a finder suggests, over that at the tuned rate",
    lambda regret: f"Dots: {regret.groupby('finder').size().max()} tasks (network, optimizer, batch and label noise), "
    f"each the mean of the {spanned(regret['n'])} seeds to which a rate was suggested; diamonds: their geometric mean. "
    f"{FIXED}: the rate that suits the "
    "optimizer's other tasks. 1: as good as tuned.",
)  # fmt: skip
def draw_finders(regret: pd.DataFrame) -> Any:
    """Ratios of losses, a row a finder, the best first."""
    rows = regret[np.isfinite(regret["value"]) & (regret["value"] > 0)]
    axes = {"xscale": "log", "xlabel": "times the loss at the tuned rate"}
    return drawing.panels(rows, "", _by_finder, axes=axes, size=(6.8, 1.2 + 0.42 * rows["finder"].nunique()))
