"""ReLU networks of He's weights at every width: how far the signal's second moment scatters from seed to seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, replicas, stats, theory
from depthgauge.conditions import tallied
from depthgauge.frames import by_case, groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.replicas import plain
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

WIDTH = Claim(
    "initialization/width",
    "the narrower a ReLU network of He's weights, the more its signal's second moment differs from seed to seed, by "
    "the exact law of its width",
)

SIGMA_W2 = 2.0
MEAN_MARGIN = 0.25  # of the predicted standard deviation: a mean closer to theory than this is called the same
RATIO_MARGIN = 1.4  # of a variance; its square is below 2, the least step from width to width, so the order is implied
MEAN, VARIANCE = "mean", "variance over predicted"
SIZES = sizes(
    "widths depth seeds", quick=((16, 32, 64, 128), 30, 400), standard=((16, 32, 64, 128, 256), 30, 1000),
    full=((16, 32, 64, 128, 256, 512), 30, 2000), tiny=((8, 16), 4, 5),
)  # fmt: skip


def grids(widths: Sequence[int], depth: int, seeds: int) -> Iterator[Grid]:
    """Every width, with so many networks."""
    yield Grid({"width": tuple(widths)}, {"depth": depth}, seeds, chunk=_chunk)


def _chunk(first: Case) -> int:
    return replicas.most_members(first.integer("depth") * first.integer("width") ** 2, each=8)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Growth of ln second moment from the first pre-activation to each later one; one input a network, float64."""
    width, depth = cases[0].integer("width"), cases[0].integer("depth")
    networks = plain.Networks.draw(width, depth, "gaussian", [case.random_seed("width", "seed") for case in cases])
    seen = plain.propagate(networks.to(context.device), "relu", [(math.sqrt(SIGMA_W2), 0.0)])
    with np.errstate(divide="ignore"):  # a network whose units all died: -infinity
        logs = np.log(seen["second_moment", "forward"][0])
    for case, own in zip(cases, logs, strict=True):
        yield case.rows("log_growth", own - own[0], layer_index=np.arange(1, depth + 1))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Mean and variance over the networks that no layer killed, held against the law; growth by layer."""
    lines = by_case(rows, "log_growth")
    params = params_of(rows, "width", "depth").assign(died=(lines == -np.inf).any(axis=1))
    died = params.groupby("width")["died"].sum()
    asked: dict[tuple[str, int], stats.Comparison] = {}
    profiles = []
    for width, networks in groups(params[~params["died"]], "width"):
        growth = lines.loc[networks.index].to_numpy()
        mean, variance = theory.relu_log_gain(int(width), SIGMA_W2)
        steps = np.arange(growth.shape[1])
        total, squared = steps[-1] * mean, steps[-1] * variance
        sd = math.sqrt(squared)
        asked[MEAN, int(width)] = stats.against(growth[:, -1], total, sd=sd, margin=MEAN_MARGIN * sd)
        asked[VARIANCE, int(width)] = stats.variance_ratio(growth[:, -1], squared, margin=RATIO_MARGIN)
        columns = {
            "width": int(width), "layer": steps + 1, "predicted": steps * mean,
            "predicted_sd": np.sqrt(steps * variance), "n": len(growth), **stats.band(growth),
        }  # fmt: skip
        profiles.append(pd.DataFrame(columns))
    if not asked:
        return
    question = Question.of("width_moments", ("moment", "width"), asked, label="{moment} at width {width}")
    yield question.table({key: {"died": int(died[key[1]])} for key in asked})
    growth_by_layer = pd.concat(profiles, ignore_index=True)
    yield "width_growth", growth_by_layer
    others = question.listed(agrees, {False: "beyond them:", None: "undecided:"})
    yield question.verdict(
        WIDTH, agrees, shown=(VARIANCE, min(width for _, width in asked)),
        unit={key: "times the law's variance" if key[0] == VARIANCE else "ln of the second moment" for key in asked},
        says=tallied(question.read(agrees), "means and variances"),
        why=f"{sum(map(bool, question.read(agrees).values()))} of {len(question)} means and variances of ln growth "
        f"are the law's within their margins" + (f"; {others}" if others else ""),
        method=f"equivalence with the exact law, margin {MEAN_MARGIN:g} predicted standard deviations for a mean "
        f"(normal law) and a factor of {RATIO_MARGIN:g} for a variance (chi-square law)",
    )  # fmt: skip
    last = growth_by_layer[growth_by_layer["layer"] == growth_by_layer["layer"].max()].sort_values("width")
    if len(last) > 1:
        narrow, wide = last.iloc[[0, -1]].to_dict("records")
        yield Sentence(
            f"He's weights keep a ReLU signal on average alone: from the first of {narrow['layer']} layers to the last "
            f"the median network of width {narrow['width']} keeps {math.exp(narrow['median']):.2g} of its second "
            f"moment, of width {wide['width']} {math.exp(wide['median']):.2g}.",
            "width_growth",
            (WIDTH.id,),
        )


@drawing.figure(
    "width_growth", "The narrower the network, the further He's weights scatter the signal, and the lower its median",
    lambda width_growth: f"ReLU MLPs, weights N(0, 2 / width), no biases, {width_growth['n'].min()} seeds or more. "
    "Lines: median; bands: the middle 90 %; dashed: the exact mean; dotted: 1.64 exact standard deviations from it.",
)  # fmt: skip
def plot_growth(width_growth: pd.DataFrame) -> Any:
    """Growth of ln second moment, one panel a width."""
    axes = {"xlabel": "layer", "ylabel": "ln growth of the second moment"}
    return drawing.panels(width_growth, "width", _profile_and_scatter, axes=axes)


def _profile_and_scatter(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    """The profile, and where the law has the middle 90 % of the seeds."""
    drawing.profile(axis, rows, "layer", **options)
    for side in (-1.64, 1.64):
        ends = rows["predicted"] + side * rows["predicted_sd"]
        axis.plot(rows["layer"], ends, color="black", linestyle=":", linewidth=1, label="exact scatter")


METHOD = """
**Widths.** Predicted: `theory.relu_log_gain`, exact in mean and variance, for networks that no layer killed (the table
counts the others). The growth itself has the mean 1 at every width, its logarithm a mean below 0.
"""
PART = Part("widths", (WIDTH,), SIZES, grids, run, analyse, (plot_growth,), METHOD)
