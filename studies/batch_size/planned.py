"""The planner's score: batch sizes and a network that were held out of the fits, predicted and measured.

Held out before anything was measured: the smallest and the largest batch size of every curve, and the network `HELD`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from depthgauge import drawing, stats
from depthgauge.parts import Answer
from depthgauge.questions import Key, Question, above, agrees
from depthgauge.stats import Comparison, Estimate
from depthgauge.studies.batch_size.hyperbola import GROUP, REFERENCE, Curve, Curves
from depthgauge.studies.batch_size.noise_scales import ESTIMATES, Predictions
from depthgauge.verdict import Claim

BATCHES = Claim(
    "batch_size/planner",
    "steps at the smallest and the largest batch size are predicted from those between, within a factor of 1.25",
)
COVERAGE = Claim("batch_size/planner_coverage", "prediction intervals of 95 % hold the steps at held-out batch sizes")
MODEL = Claim(
    "batch_size/planner_model",
    "steps of a network that was not swept are predicted from its noise scale and its steps at one batch size, within "
    "a factor of 1.25",
)
HELD = "lenet5"  # of which the planner sees one batch size
WITHIN = 1.25  # factor: a prediction nearer than this is right
COVERED = 0.75  # share of intervals that hold what was measured: more than this must be shown


def answers(found: Curves, predicted: Predictions) -> Iterator[Answer]:
    """Predictions beside what was measured, their intervals beside the width, and the nearest batch size's steps."""
    rows = [*batches(found), *model(found, predicted)]
    table = pd.DataFrame(rows)
    yield "planned", table
    if not rows:
        return
    asked: dict[Key, Comparison] = {}
    held: dict[Key, Comparison] = {}
    for each in rows:
        curve = found[each["net"], each["optimizer"]]
        place = curve.batch.index(each["batch"])
        compared = stats.against(curve.at(place), each["predicted"], log=True, margin=WITHIN)
        key = tuple(each[name] for name in (*GROUP, "held"))
        (asked if each["held"] == "batch" else held)[key] = curve.settled(compared)
    names = (*GROUP, "held")
    for name, some, claim in (("planned_batches", asked, BATCHES), ("planned_model", held, MODEL)):
        question = Question.of(name, names, some, label="{net} with {optimizer} at {batch}", reference="prediction")
        if not question:
            continue
        own = table[table["held"] == ("batch" if claim is BATCHES else "network")]
        near, naive = (math.exp(np.median(np.abs(np.log(own[c].to_numpy())))) for c in ("ratio", "nearest_ratio"))
        yield question.table()
        yield question.verdict(
            claim, agrees, unit="steps",
            why=f"{sum(map(bool, question.read(agrees).values()))} of {len(question)} predictions are within "
            f"{WITHIN:g}; the median is off by a factor of {near:.2f}, that of the steps of the nearest batch size by "
            f"{naive:.2f}"
            + question.listed(agrees, {False: "beyond the margin:", None: "undecided:"}, 8, lead="; "),
            method=f"geometric mean of measured steps against the prediction, log scale, margin {WITHIN:g}",
        )  # fmt: skip
    yield from covered(table)


def covered(table: pd.DataFrame) -> Iterator[Answer]:
    """Count the intervals that hold what was measured, beside their width."""
    own = table[(table["held"] == "batch") & table["low_95"].notna()]
    if own.empty:
        return
    hits = int(own["covered"].sum())
    asked = {("batch",): stats.coverage(hits, len(own), COVERED)}
    question = Question.of(
        "planner_coverage",
        ("held",),
        asked,
        label="held-out batch sizes",
        reference="the least that counts",
        counted="batch sizes",
    )
    width = float(own["width_factor"].median())
    yield question.table({("batch",): {"covered": hits, "median_width_factor": width}})
    # curves share seeds and data: the interval counts them as if they were independent
    yield question.verdict(
        COVERAGE, above, unit="share of batch sizes",
        why=f"{hits} of {len(own)} intervals hold the measured steps; from their low to their high ends is a factor of "
        f"{width:.1f} in the median",
        method=f"share of intervals, above or below {COVERED:.0%}, exact binomial; curves share seeds; steps of "
        "runs that did not all arrive, or of a rate at an edge, count as outside",
    )  # fmt: skip


def batches(found: Curves) -> Iterator[dict[str, Any]]:
    """Both ends of every curve, from what lies between."""
    for (net, optimizer), curve in found.items():
        if len(curve.batch) < 5 or net == HELD:
            continue
        inner = curve.held(slice(1, -1))
        for place, nearest in ((0, 1), (len(curve.batch) - 1, len(curve.batch) - 2)):
            batch = curve.batch[place]
            yield row((net, optimizer, batch, "batch"), inner.fit.predicted(batch), curve, nearest)


def model(found: Curves, predicted: Predictions) -> Iterator[dict[str, Any]]:
    """Every other batch size of the held-out network, from its noise scale and the steps at one."""
    curve = found.get((HELD, REFERENCE))
    for (net, base, estimate), figure in predicted.items():
        if curve is None or net != HELD or estimate != ESTIMATES[0] or base not in curve.batch:
            continue
        present = curve.batch.index(base)
        both = [seed for seed in curve.seeds if seed in figure.without.index]
        logs = np.log(curve.at(present))[[curve.seeds.index(seed) for seed in both]]
        for place, batch in enumerate(curve.batch):
            if place != present:
                ratio = figure.pseudo(partial(_relative, batch, base))[both]
                yield row((HELD, REFERENCE, batch, "network"), _ahead(logs, ratio.to_numpy()), curve, present)


def _relative(batch: int, present: int, logs: Any) -> Any:
    """Logarithm of the steps over those at the present batch size."""
    return np.log(1 + np.exp(logs) / batch) - np.log(1 + np.exp(logs) / present)


def _ahead(logs: ArrayLike, ratio: ArrayLike) -> Estimate:
    """Steps predicted of as many runs, with an interval that allows for theirs as for those at hand."""
    mean, own = stats.mean(np.add(logs, ratio)), stats.mean(logs)
    half = math.hypot(mean.high - mean.low, own.high - own.low) / 2
    low, value, high = (math.exp(mean.value + side * half) for side in (-1, 0, 1))
    return Estimate(value, low, high, mean.n, "noise scale and steps at one batch size, jackknife, t, 95 %")


def row(key: tuple[str, str, int, str], guess: Estimate, curve: Curve, nearest: int) -> dict[str, Any]:
    """One prediction beside what was measured, and the steps at the place of the nearest batch size."""
    measured = math.exp(np.log(curve.at(curve.batch.index(key[2]))).mean())
    naive = math.exp(np.log(curve.at(nearest)).mean())
    place = curve.batch.index(key[2])
    known = not (curve.late[:, place].any() or curve.edge[place])  # else the steps measured are a bound
    return {
        **dict(zip((*GROUP, "held"), key, strict=True)), "measured": measured, "predicted": guess.value,
        "low_95": guess.low, "high_95": guess.high, "covered": known and guess.contains(measured),
        "ratio": measured / guess.value, "nearest": naive,
        "nearest_ratio": measured / naive, "width_factor": guess.high / guess.low,
    }  # fmt: skip


@drawing.figure(
    "planned", "Steps that the planner predicted, and what was measured",
    "Ratio of the predicted steps to the measured ones, with 95 % prediction intervals, for batch sizes and a network "
    "that the fits had not seen. Grey: within a factor of 1.25. Crosses: the steps of the nearest batch size instead.",
)  # fmt: skip
def draw_planned(planned: pd.DataFrame) -> Any:
    """Predictions over measurements, a row each."""
    shown = planned.drop(columns="predicted").assign(
        name=planned["net"] + ", " + planned["optimizer"] + ", B = " + planned["batch"].astype(str),
        value=1 / planned["ratio"], low_95=planned["low_95"] / planned["measured"],
        high_95=planned["high_95"] / planned["measured"], nearest=1 / planned["nearest_ratio"],
    )  # fmt: skip
    axes = {"xscale": "log", "xlabel": "predicted over measured steps"}
    return drawing.panels(shown, "", _scored, axes=axes, size=(7.0, 1.8 + 0.26 * len(shown)))


def _scored(axis: Any, rows: pd.DataFrame) -> None:
    axis.axvspan(1 / WITHIN, WITHIN, color="0.9", zorder=0, label=f"within {WITHIN:g}")
    axis.axvline(1, color="0.5", lw=0.9)
    drawing.estimates(axis, rows.assign(guess="prediction"), at="name", by="guess")
    places = {text.get_text(): place for place, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)}
    axis.plot(rows["nearest"], rows["name"].map(places), "x", color="0.4", ms=5, label="nearest batch size")
