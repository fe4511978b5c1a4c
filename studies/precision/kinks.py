"""Share of pre-activations that a number format puts exactly on a point without a derivative."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, formats, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.models.activations import kinks
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

KINK = Claim("N14", "the chance of hitting a point where the function has no derivative is tiny")
LANDING = Claim("precision/landing", "rounding alone predicts how often a pre-activation is exactly on a kink")

TINY = 1e-3  # of the pre-activations: the claim's "tiny" is at most one in a thousand
CLOSE = 0.2  # of the predicted share: one within it is predicted
ENOUGH = 50  # hits a draw that are to be expected: of fewer, a share says little
FORMATS = ("float32", "tf32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
ACTIVATIONS = ("relu", "hardtanh", "hardswish")
SIZES = sizes(
    "width examples seeds", quick=(768, 150, 16), standard=(1024, 1000, 20), full=(2048, 4000, 30), tiny=(16, 10, 5)
)


def grids(width: int, examples: int, seeds: int) -> Iterator[Grid]:
    """One layer in every format."""
    yield Grid({"format": FORMATS}, {"width": width, "examples": examples}, seeds, ("seed",), 64)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """A fully connected layer on real digits: inputs, weights and results rounded to the format, sums in float32."""
    images = data.load("mnist5k").train.x.flatten(1)
    points = sorted({float(point) for name in ACTIVATIONS for point in kinks(name)})
    for case in cases:
        fmt, x = case.text("format"), images[: case.integer("examples")]
        draws = generator(case.random_seed("seed"), Purpose.WEIGHTS)
        w = torch.randn(case.integer("width"), x.shape[1], generator=draws) * x.shape[1] ** -0.5
        x, w = (formats.round(values, fmt).to(context.device) for values in (x, w))
        z = formats.round(x @ w.T, fmt).cpu()
        std = x.double().square().mean(1).sqrt().cpu().numpy()  # of a pre-activation over the draw, at gain 1
        shares = {
            "landed": [float((z == point).double().mean()) for point in points],
            "expected": [theory.landing_share(fmt, point, std) for point in points],
        }
        for metric, values in shares.items():
            yield case.rows(metric, values, layer=[f"{point:g}" for point in points])
        yield case.rows("outputs", z.numel())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Shares by format and kink, against the claim's `TINY` and against what rounding predicts."""
    params = params_of(rows, "format")
    outputs = rows[rows["metric"] == "outputs"].set_index("case")["value"]
    shares = rows[rows["layer"].notna()].pivot_table(index=["case", "layer"], columns="metric", values="value")
    shares = shares.reset_index("layer").join(params).join(outputs.rename("outputs"))
    shares = shares.sort_values(["format", "layer"], key=_order)
    tiny, predicted, further = {}, {}, {}
    for (fmt, point), draws in groups(shares, ["format", "layer"]):
        landed, count = draws["landed"].to_numpy(), int(draws["outputs"].iloc[0])
        # One hit more than was seen: without any, equal draws would say nothing of the chance.
        tiny[fmt, point] = stats.against(landed + np.eye(1, len(landed))[0] / count, 0.0, margin=TINY)
        expected = float(draws["expected"].mean())
        further[fmt, point] = {
            "hits": round((landed * count).sum()),
            "outputs": count * len(landed),
            "predicted": expected,
        }
        if expected * count >= ENOUGH:
            predicted[fmt, point] = stats.against(landed / expected, 1.0, margin=CLOSE)
    label = "{kink} in {format}"
    question = Question.of("kinks", ("format", "kink"), tiny, label=label, reference="never", counted="draws")
    yield question.table(further)
    said = list(question.read(agrees).values())
    yield question.verdict(
        KINK, agrees, unit="share of pre-activations",
        why=f"in {said.count(True)} of {len(said)} combinations of format and kink at most one pre-activation in "
        f"{1 / TINY:,.0f} lies exactly on the kink{question.listed(agrees, {False: '; more on'}, 20)}",
        method="one fully connected layer at initialization on real digits, rounded once; t over draws of the "
        f"weights, one hit more than seen counted, margin {TINY:g}",
    )  # fmt: skip
    shown = question.furthest
    yield Sentence(
        f"At gain 1 {further[shown]['hits'] / further[shown]['outputs']:.1%} of a layer's pre-activations are exactly "
        f"{shown[1]} in {shown[0]}, and none of {further['float32', shown[1]]['outputs']:,} in float32."
        if further.get(("float32", shown[1]), {}).get("hits", 1) == 0
        else f"The kink that is met most often is {question.words(shown)}.",
        claims=(KINK.id,),
    )
    if predicted:
        landing = Question.of("landing", ("format", "kink"), predicted, label=label, counted="draws")
        yield landing.table()
        yield landing.prediction(LANDING, "shares", within=f"{CLOSE:.0%}", unit="measured over predicted share")


def _order(column: pd.Series[str]) -> pd.Series[float]:
    return column.astype(float) if column.name == "layer" else column.map(FORMATS.index)


@drawing.figure(
    "kinks", "The fewer bits, the more often a pre-activation is exactly on a kink",
    lambda kinks: f"Mean over {kinks['n'].min()} draws of the weights, 95 % intervals that hold at once, one hit more "
    f"than seen counted; ticks: what rounding predicts, at the left edge 1e-9 or less. The claim's tiny is {TINY:g}.",
)  # fmt: skip
def draw_kinks(kinks: pd.DataFrame) -> Any:
    """Share of pre-activations on a kink, measured and predicted, by format."""
    shown = kinks.assign(predicted=kinks["predicted"].clip(lower=1e-9), kink=kinks["kink"].astype(float))
    axes = {"xscale": "log", "xlim": (5e-10, 1), "xlabel": "share of pre-activations"}
    return drawing.panels(shown, "", drawing.estimates, at="format", by="kink", axes=axes)


METHOD = """
**Kinks.** Inputs, weights and results of one layer are rounded to the format, by emulation; sums are float32's.
Predicted: what rounding puts on a point of a Gaussian over draws (`theory.landing_share`).
"""
PART = Part("kinks", (KINK, LANDING), SIZES, grids, run, analyse, (draw_kinks,), METHOD)
