"""Dropout's expectation, exactly: over all masks of a layer, at the layer itself and behind what follows it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from depthgauge import data, drawing, stats
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

UNCHANGED = Claim("N35", "dropout leaves the expectation unchanged")
VARIANCE = Claim(
    "regularization/dropout_variance", "dropout adds p / (1 - p) times the sum of squared products of weight and "
    "activation to the variance of a unit behind it",
)  # fmt: skip
FOLLOWED = {
    "the layer itself": "the_layer", "a linear layer": "linear", "ReLU": "relu", "tanh": "tanh", "softmax": "softmax",
}  # fmt: skip
MARGIN = 0.01  # of the output's own size: a shift of the mean that is none
EXACT = 1e-9  # relative: the formula is exact, and sums over all masks are in float64
IMAGES = 32
SIZES = sizes("units seeds rates", quick=(10, 20, (0.1, 0.5)), standard=(12, 40, (0.1, 0.2, 0.5, 0.8)),
              full=(13, 60, (0.1, 0.2, 0.5, 0.8)), tiny=(4, 5, (0.5,)))  # fmt: skip


def grids(units: int, seeds: int, rates: tuple[float, ...]) -> Iterator[Grid]:
    """Every rate of dropout."""
    yield Grid({"p": rates}, {"units": units, "width": 64}, seeds, together=("seed",), chunk=20)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Shift of the mean over all masks, over the size of the output without dropout; and the variances' ratio."""
    digits = data.load("digits").to(context.device).train.x[:IMAGES].flatten(1).double()
    for case in cases:
        draws = generator(case.random_seed("seed", "units", "width"), Purpose.WEIGHTS)
        hidden = torch.relu(digits @ _weights(digits.shape[1], case.integer("units"), draws).to(digits))
        behind = _weights(case.integer("units"), case.integer("width"), draws).to(digits)
        out = _weights(case.integer("width"), 10, draws).to(digits)
        masks, chances = (each.to(digits) for each in _masks(case.integer("units"), case.number("p")))
        dropped = masks[:, None] * hidden / (1 - case.number("p"))  # (masks, images, units)
        for name, function in _functions(behind, out).items():
            mean = torch.einsum("m,mij->ij", chances, function(dropped))
            there = function(hidden)
            yield case.rows("shift", float((mean - there).norm() / there.norm()), layer=name)
        linear = dropped @ behind
        spread = torch.einsum("m,mij->ij", chances, linear.square()) - torch.einsum("m,mij->ij", chances, linear) ** 2
        added = case.number("p") / (1 - case.number("p")) * (hidden.square() @ behind.square())
        yield case.rows("variance", float(spread.sum() / added.sum()))


def _weights(inputs: int, outputs: int, draws: torch.Generator) -> Tensor:
    """He's, so that a unit's input is as large as its layer's."""
    return torch.randn(inputs, outputs, generator=draws, dtype=torch.float64) * math.sqrt(2 / inputs)


def _masks(units: int, p: float) -> tuple[Tensor, Tensor]:
    """All masks, (2^units, units), and the chance of each."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)
    kept = masks.sum(1)
    return masks, (1 - p) ** kept * p ** (units - kept)


def _functions(behind: Tensor, out: Tensor) -> dict[str, Any]:
    """What follows the layer: hidden (..., units) to outputs."""
    return {
        "the_layer": lambda hidden: hidden,
        "linear": lambda hidden: hidden @ behind,
        "relu": lambda hidden: torch.relu(hidden @ behind),
        "tanh": lambda hidden: torch.tanh(hidden @ behind),
        "softmax": lambda hidden: (torch.relu(hidden @ behind) @ out).softmax(-1),
    }


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Shifts of the mean against none, and variances against the formula."""
    rates = params_of(rows, "p")["p"]
    shifts, variances = {}, {}
    for p, cases in groups(rates.to_frame(), "p"):
        own = rows[rows["case"].isin(cases.index)]
        for name, layer in FOLLOWED.items():
            values = own.loc[own["layer"] == layer, "value"].to_numpy()
            shifts[name, p] = stats.against(values, 0.0, margin=MARGIN)
        ratio = own.loc[own["metric"] == "variance", "value"].to_numpy()
        variances[p,] = stats.against(ratio, 1.0, margin=EXACT)
    question = Question.of(
        "dropout_mean", ("behind", "p"), shifts, label="{behind} at p = {p:g}", reference="no shift", counted="networks"
    )
    formula = Question.of(
        "dropout_variance", ("p",), variances, label="p = {p:g}", reference="the formula", counted="networks"
    )
    yield question.table()
    yield formula.table()
    yield question.verdict(
        UNCHANGED, agrees, unit="shift of the mean over the output's size",
        why=question.listed(agrees, {True: "the mean is kept behind", False: "it moves behind", None: "undecided:"}, 8),
        method=f"sum over all masks of one layer, no sampling; root mean square over {IMAGES} images of the shift over "
        f"that of the output without dropout; within {MARGIN:.0%}: unchanged",
    )  # fmt: skip
    yield formula.prediction(VARIANCE, "variances", within=f"{EXACT:g}", unit="measured over predicted")
    moved = {key: c.effect.value for key, c in question.members.items() if c.beyond}
    if moved and question.members["a linear layer", max(p for _, p in moved)].inside:
        (behind, p), worst = max(moved.items(), key=lambda item: item[1])
        yield Sentence(
            f"Dropout keeps the mean of a layer and of what is linear behind it, but not behind an activation: at p = "
            f"{p:g} the mean moves by {worst:.0%} of the output behind {behind}.",
            figure="dropout_mean", claims=(UNCHANGED.id,),
        )  # fmt: skip


@drawing.figure(
    "dropout_mean", "Dropout keeps the mean of a layer, but not behind an activation",
    lambda dropout_mean: f"Shift of the mean over all masks, over the output's size; mean of "
    f"{dropout_mean['n'].min()} networks at initialization, intervals of 95 % at once.",
)  # fmt: skip
def draw_mean(dropout_mean: pd.DataFrame) -> Any:
    """Shift of the mean, a row what follows the layer, a colour a rate."""
    axes = {"xlabel": "shift of the mean over the output's size"}
    return drawing.panels(dropout_mean, "", drawing.estimates, at="behind", by="p", axes=axes)


METHOD = f"""**Dropout's mean.** One hidden layer of few units on 8 x 8 digits, so that all its masks can be summed over
instead of drawn; He's weights, {IMAGES} images. Kept units are divided by 1 - p, as PyTorch does (inverted dropout;
Srivastava et al. 2014, section 10)."""
PART = Part("expectation", (UNCHANGED, VARIANCE), SIZES, grids, run, analyse, (draw_mean,), METHOD)
