"""Errors of a network's layers in float16 and bfloat16 against float32: their own, and what the network adds up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import data, drawing, precision, stats
from depthgauge.frames import groups, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.stats import Comparison
from depthgauge.studies.precision.networks import NORMED, OVERFLOWING, built, one_thread, trained
from depthgauge.studies.precision.rankings import FORMATS, draw_gradient_ranking, draw_profiles, draw_ranking
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

RATIO = Claim(
    "precision/ratio",
    "float16 is closer to float32 than bfloat16 by 2^3, the ratio of their significands, layer by layer and in the "
    "logits, until it overflows",
)
GRADIENTS = Claim(
    "precision/gradient_ratio",
    "float16 is closer to float32 than bfloat16 by 2^3 in the gradients too, layer by layer, under a loss scale",
)
NORMS = Claim(
    "precision/norms",
    "a normalization layer makes a larger error of its own than a matrix product does, in the same network",
)

EIGHT = 8.0  # 2^-7 over 2^-10
MARGIN = 1.25  # a factor: ratios from 6.4 to 10 count as 8, those of two kinds of layer from 0.8 to 1.25 as equal
LOSS_SCALE = 2.0**10  # a customary one
BY = ("network", "state", "place")
PLACES = {"own": "own errors", "total": "total errors", "logits": "logits"}
SIZES = sizes(
    "networks steps seeds batch", quick=((NORMED, OVERFLOWING), (0,), 8, 32),
    standard=(("mlp", NORMED, "lenet5", "plain_cnn", "resnet18", "transformer", OVERFLOWING), (0, 100), 14, 64),
    full=(("mlp", NORMED, "lenet5", "plain_cnn", "vgg16", "googlenet", "resnet18", "resnet50", "transformer",
           OVERFLOWING), (0, 400), 20, 128),
    tiny=((NORMED, OVERFLOWING), (0,), 5, 2),
)  # fmt: skip


def grids(networks: tuple[str, ...], steps: tuple[int, ...], seeds: int, batch: int) -> Iterator[Grid]:
    """Networks as they are built, and after a short training; of the overflowing one only as it is built."""
    for taken, when in ((networks, (0,)), (tuple(name for name in networks if name != OVERFLOWING), steps[1:])):
        if when:
            claims = tuple(claim.id for claim in (RATIO, GRADIENTS, NORMS))
            yield Grid({"network": taken, "steps": when}, {"batch": batch}, seeds, chunk=4, claims=claims)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Own, inherited and total error of every module in both formats; a layer's name is followed by its kind."""
    digits = data.load("mnist5k").train
    for case in cases:
        seed = case.random_seed("network", "seed")
        model = built(case.text("network"), seed).to(context.device)
        order = torch.randperm(len(digits), generator=generator(seed, Purpose.SAMPLE))
        x, y = (part.to(context.device) for part in digits[order])
        trained(model, x, y, case.integer("steps"), seed)
        x, y = x[: case.integer("batch")], y[: case.integer("batch")]

        def scaled(model: nn.Module, images: Tensor, labels: Tensor = y) -> Tensor:
            return LOSS_SCALE * nn.functional.cross_entropy(model(images), labels)

        for fmt in FORMATS:
            with one_thread():
                frame = precision.bisect(model.eval(), x, fmt, loss=scaled)
            for direction, own in groups(frame, "direction"):
                at: dict[str, Any] = {"layer_index": own["layer_index"].to_numpy(), "direction": direction}
                at["layer"] = (own["layer"] + " " + own["kind"]).tolist()
                for column in ("own", "inherited", "total"):
                    yield case.rows(f"{fmt}_{column}", own[column].to_numpy(), **at)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The ranking of the layers, and the ratio of the two formats' errors, forward and backward."""
    errors = tidy(rows)
    table = ranking(errors)
    yield "layer_errors", table
    ratios = measured(errors)
    for claim, direction in ((RATIO, "forward"), (GRADIENTS, "backward")):
        yield from ratio(claim, direction, ratios[ratios["direction"] == direction])
    yield from norms(errors)


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a case, module and direction: the errors of both formats, the module's name and kind."""
    params = params_of(rows, "network", "steps")
    index = ["case", "direction", "layer_index", "layer"]
    table = rows.pivot_table(index=index, columns="metric", values="value", sort=False)
    table = table.reset_index().rename_axis(columns=None)
    table[["layer", "kind"]] = table["layer"].str.rsplit(" ", n=1, expand=True)
    table["network"] = table["case"].map(params["network"])
    table["state"] = np.where(table["case"].map(params["steps"]).astype(int) > 0, "trained", "initialized")
    return table


def ranking(errors: pd.DataFrame) -> pd.DataFrame:
    """Medians over networks of one architecture, module by module, the largest error of its own in bfloat16 first."""
    keys = ["network", "state", "direction", "layer", "layer_index", "kind"]
    columns = [f"{fmt}_{column}" for fmt in FORMATS for column in ("own", "inherited", "total")]
    table = errors.groupby(keys, sort=False)[columns].median().reset_index()
    parents = {(row.network, row.layer.rpartition(".")[0]) for row in records(table)}
    table["composite"] = [(row.network, row.layer) in parents for row in records(table)]
    return table.sort_values([*keys[:3], "bfloat16_own"], ascending=[True, True, False, False], kind="stable")


def measured(errors: pd.DataFrame) -> pd.DataFrame:
    """bfloat16's error over float16's, one number a network and place: geometric means over its layers.

    Layers whose error in float16 is infinite are left out, and so is what has no error in one of the two.
    """
    found = []
    for place in PLACES:
        column = "total" if place == "logits" else place
        chosen = errors[(errors["layer"] == "") & (errors["direction"] == "forward")] if place == "logits" else errors
        low, high = chosen[f"float16_{column}"], chosen[f"bfloat16_{column}"]
        kept = np.isfinite(low) & np.isfinite(high) & (low > 0) & (high > 0)
        logs = chosen[kept].assign(place=place, log=np.log(high[kept] / low[kept]))
        found.append(logs.groupby(["case", "network", "state", "direction", "place"], sort=False)["log"].mean())
    means: pd.DataFrame = pd.concat(found).reset_index()
    return means.assign(ratio=np.exp(means["log"]))


def ratio(claim: Claim, direction: str, ratios: pd.DataFrame) -> Iterator[Answer]:
    """Is the ratio 8, in every network and at every place?"""
    by_network = {key: own["ratio"].to_numpy() for key, own in groups(ratios, list(BY)) if len(own) > 1}
    if not by_network:
        return
    asked = {key: stats.against(values, EIGHT, log=True, margin=MARGIN) for key, values in by_network.items()}
    name = "layer_ratios" if direction == "forward" else "gradient_ratios"
    question = Question.of(name, BY, asked, label="{place} of {network} ({state})", counted="networks")
    yield question.table()
    said = list(question.read(agrees).values())
    key = question.furthest
    yield question.verdict(
        claim, agrees, unit="bfloat16's error over float16's",
        why=f"the ratio is within a factor of {MARGIN:g} of 8 in {said.count(True)} of {len(said)} pairs of network "
        f"and place; {question.listed(agrees, {False: 'outside for', None: 'undecided for'}, 9) or 'none is outside'}; "
        f"furthest off is {question.words(key)} with {question.members[key].effect.value:.3g}",
        method="relative rms errors against float32 by teacher-forced bisection (precision.bisect), geometric mean "
        "over the modules of a network whose float16 error is finite; t over networks on logarithms, margin a factor "
        f"of {MARGIN:g}" + f"; loss scale {LOSS_SCALE:g}" * (direction == "backward"),
    )  # fmt: skip
    values = [member.effect.value for member in question.members.values()]
    if direction == "forward":
        yield Sentence(
            f"Until float16 overflows, errors in bfloat16 are {min(values):.2g} to {max(values):.2g} times as large; "
            "its significand is 8 times as coarse.",
            claims=(claim.id,),
        )


def norms(errors: pd.DataFrame) -> Iterator[Answer]:
    """Own errors of normalization layers over those of linear maps and convolutions, in one network and format."""
    forward = errors[(errors["direction"] == "forward") & (errors["bfloat16_own"] > 0)]
    group = forward["kind"].str.extract("(Norm|Linear|Conv)", expand=False).replace({"Linear": "Conv"})
    logs = forward.assign(group=group, log=np.log(forward["bfloat16_own"]))
    means = logs.pivot_table(index=["network", "state", "case"], columns="group", values="log", sort=False)
    if "Norm" not in means:
        return
    means = means.dropna()
    asked = {
        key: stats.against(np.exp((own["Norm"] - own["Conv"]).to_numpy()), 1.0, log=True, margin=MARGIN)
        for key, own in means.groupby(list(BY[:2]), sort=False)
    }
    label = "{network} ({state})"
    question = Question.of("norm_errors", BY[:2], asked, label=label, reference="equal", counted="networks")
    yield question.table()

    def larger(comparison: Comparison) -> bool | None:
        """By more than the margin; not so where the interval's upper end does not reach it."""
        return True if comparison.above else False if comparison.effect.high < MARGIN else None

    yield question.verdict(
        NORMS, larger, unit="norms' own error over that of matrix products",
        why=question.listed(larger, {True: "larger in", False: "not larger in", None: "undecided in"}, 9),
        method="own forward error in bfloat16, geometric means over the normalization layers and over the linear maps "
        f"and convolutions of a network, their ratio; t over networks on logarithms, margin a factor of {MARGIN:g}",
    )  # fmt: skip


@drawing.figure(
    "layer_ratios", "How much closer float16 is to float32 than bfloat16, before it overflows",
    "bfloat16's error over float16's, geometric means over modules and networks, with intervals that hold at once; "
    f"ticks: 8, the ratio of the significands. Gradients: at a loss scale of {LOSS_SCALE:g}.",
)  # fmt: skip
def draw_ratios(layer_ratios: pd.DataFrame, gradient_ratios: pd.DataFrame) -> Any:
    """Ratios by network, a panel a place and direction."""
    forward, backward = (table.assign(place=table["place"].map(PLACES)) for table in (layer_ratios, gradient_ratios))
    shown = pd.concat([forward, backward.assign(place="gradients, " + backward["place"])])
    axes = {"xlabel": "ratio", "xscale": "log", "xlim": (2, 32)}
    return drawing.panels(shown, "place", drawing.estimates, at="network", by="state", shared="both", axes=axes)


METHOD = f"""
**Layers in low precision.** Teacher-forced bisection (`precision.bisect`) on real digits, in the device's own float16
and bfloat16: a module's own error is that of its operations on the inputs, and backward on the gradients, that it has
in float32, its children replaced by their float32 outputs; the total error is that of the plain run of the whole
network. The loss, cross-entropy, is computed in float32 and scaled by {LOSS_SCALE:g}; models are in evaluation mode.
"""
FIGURES = (draw_ranking, draw_gradient_ranking, draw_profiles, draw_ratios)
PART = Part("layers", (RATIO, GRADIENTS, NORMS), SIZES, grids, run, analyse, FIGURES, METHOD)
