"""The first overflow of a training: its tensor, its step, and the chain that leads to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, formats, stats
from depthgauge.drawing.palette import GREY, INK
from depthgauge.frames import groups, records
from depthgauge.parts import Answer
from depthgauge.questions import Question, above
from depthgauge.studies.precision.nets import EXPLODE, LABELS
from depthgauge.studies.precision.recipes import RECIPES, REFERENCE
from depthgauge.verdict import Claim, Sentence

UNSCALED = ("float16", "float16_autocast")  # no loss scale enlarges their gradients
HALF = (*UNSCALED, "float16_scaled")
TOP = 1e9  # of magnitudes in a figure


def first_overflows(rows: pd.DataFrame) -> pd.DataFrame:
    """The first tensor of each run that is not finite, one row a run that has one."""
    first = rows[rows["metric"] == "nonfinite"].rename(columns={"case": "run", "step": "first_step"})
    return first[["run", "layer", "direction", "first_step"]]


def overflows(runs: pd.DataFrame, first: pd.DataFrame) -> Iterator[Answer]:
    """In how many runs of each network and recipe something overflows, where it starts, and what the scaler does."""
    table = []
    for (net, recipe), own in groups(runs.merge(first, on="run", how="left"), ["net", "recipe"]):
        started = own.dropna(subset="first_step")
        most = started.groupby(["direction", "layer"], as_index=False).size().sort_values("size").tail(1)
        table.append({
            "net": net, "recipe": recipe, "n": len(own), "overflowed": len(started),
            **{name: "".join(most[name]) for name in ("direction", "layer")},
            "first_step": started["first_step"].median(), "diverged": int(own["diverged"].sum()),
            **{name: own[name].median() if RECIPES[recipe].scaled else math.nan for name in ("skipped", "loss_scale")},
        })  # fmt: skip
    yield "overflows", pd.DataFrame(table)
    by_recipe = {(row.net, row.recipe): row for row in records(pd.DataFrame(table))}
    told: dict[str, str] = {}
    for (net, recipe), row in by_recipe.items():
        alone = by_recipe.get((net, "float16_autocast"))
        if recipe != "float16_scaled" or alone is None or 2 * alone.overflowed <= alone.n:
            continue
        steps = runs.loc[runs["net"] == net, "steps"].max()
        skipped = f"it skips {row.skipped:.0f} of {steps:.0f} steps"
        kept, without = row.n - row.diverged, alone.n - alone.diverged
        finite = f"{kept} of {row.n} runs stay finite with it, {without} of {alone.n} without"
        if alone.direction == "activation":
            told.setdefault("activation", f"does not help where an activation overflows: {skipped} ({LABELS[net]})")
        elif row.skipped >= steps:
            start = "trains nothing where a gradient overflows at every step"
            told.setdefault("always", f"{start}: {finite}, but {skipped} ({LABELS[net]})")
        else:
            told.setdefault("gradient", f"helps where a gradient overflows: {finite} ({LABELS[net]})")
    yield from (Sentence(f"A GradScaler {text}.") for text in told.values())


def exploding(runs: pd.DataFrame, first: pd.DataFrame, claim: Claim) -> Iterator[Answer]:
    """N28: is the first number that float16 cannot hold a gradient, in more than half of the runs?"""
    own = runs[runs["net"].isin(EXPLODE)].merge(first, on="run", how="left")
    wide = (
        own[own["recipe"] == REFERENCE].groupby("net")["direction"].count().reindex(own["net"].unique(), fill_value=0)
    )
    asked, further = {}, {}
    for (net, recipe), lines in groups(own[own["recipe"].isin(UNSCALED)], ["net", "recipe"]):
        starts = lines["direction"].fillna("none").str.endswith("gradient")
        asked[net, recipe] = stats.coverage(int(starts.sum()), len(lines), 0.5)
        counts = {"overflowed": lines["direction"].notna(), "in_activations": lines["direction"] == "activation"}
        further[net, recipe] = {**{name: int(each.sum()) for name, each in counts.items()}, "in_float32": wide[net]}
    question = Question.of(
        "first_overflow",
        ("net", "recipe"),
        asked,
        label="{recipe} with {net}",
        reference="half of them",
        counted="runs",
    )
    if not question:
        return
    yield question.table(further)
    words = {True: "a gradient in", False: "an activation or nothing in", None: "undecided in"}
    yield question.verdict(
        claim, above, unit="share of runs",
        why=f"where gradients explode, the first number that is not finite is {question.listed(above, words, 9)}. In "
        f"float32 {', '.join(f'{count} runs of {net}' for net, count in wide.items())} overflow",
        method="share of runs whose first tensor that is not finite, in the order of execution, is a gradient, against "
        "1/2; exact binomial; no loss scale",
    )  # fmt: skip


def chains(rows: pd.DataFrame) -> pd.DataFrame:
    """The largest magnitude of every tensor in the order of execution: median over runs, at the first overflow."""
    largest = rows[rows["metric"] == "largest"].sort_values("step", kind="stable")
    starts = largest.groupby("case")["step"].transform("min")
    by = ["net", "recipe", "layer_index", "layer", "direction"]
    table = largest[largest["step"] == starts].groupby(by, sort=False)["value"]
    return table.agg(largest="median", n="size").reset_index()


@drawing.figure(
    "chains", "Where numbers leave float16: a pass, tensor by tensor",
    "Largest magnitude in each layer's output, forward, and then in its gradient, backward: median of the runs, at the "
    "first overflow, or of float32 at the first step; equal lines lie on each other. Top: larger, or not finite.",
)  # fmt: skip
def draw_chains(chains: pd.DataFrame) -> Any:
    """Magnitudes along a pass, for the networks in which something overflows."""
    tensors = chains[chains["direction"].isin(["activation", "activation_gradient"])]
    broken = tensors.loc[np.isinf(tensors["largest"]), "net"].unique()
    shown = tensors[tensors["net"].isin(broken) & tensors["recipe"].isin([REFERENCE, *HALF])]
    shown = shown.assign(largest=shown["largest"].clip(1 / TOP, TOP), net=shown["net"].map(LABELS))

    def chain(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
        drawing.lines(axis, rows, "place", "largest", marks=False, **options)
        axis.axhline(formats.get("float16").max, color=INK, ls="--", lw=0.9, label="largest of float16")
        back = rows.loc[rows["direction"] == "activation_gradient", "place"].min()
        axis.axvline(back - 0.5, color=GREY, ls=":", lw=0.9, label="back from here")

    axes = {"yscale": "log", "xlabel": "tensor, in the order of execution", "ylabel": "largest magnitude"}
    shown["place"] = shown.groupby(["net", "recipe"])["layer_index"].rank()
    return None if shown.empty else drawing.panels(shown, "net", chain, by="recipe", axes=axes)
