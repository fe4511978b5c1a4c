"""Share of pre-activations that are exactly a point without a derivative, by number format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import data, drawing, stats, theory
from depthgauge.conditions import tallied
from depthgauge.frames import groups, params_of
from depthgauge.models.activations import kinks, names
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, enumerated
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

KINK = Claim("N14", "the chance of hitting a point where the function has no derivative is tiny")

KEYS = ["layer_kind", "format", "points"]
TINY = 1e-3  # of the pre-activations: the claim's "tiny" is at most one in a thousand
LAYERS = {"dense": "fully connected, standardized images", "blank": "3 x 3 convolution, background of 0"}
FORMATS = ("float32", "bfloat16", "float16")
SIZES = sizes(
    "activations examples", quick=(("relu", "hardtanh", "hardswish"), 200), standard=(names(), 500),
    full=(names(), 2000), tiny=(("relu", "hardtanh"), 20),
)  # fmt: skip


def grids(activations: tuple[str, ...], examples: int) -> Iterator[Grid]:
    """Every activation that has a kink, in every format."""
    if kinked := tuple(name for name in activations if kinks(name)):
        yield Grid(
            {"activation": kinked, "format": FORMATS, "layer_kind": tuple(LAYERS)},
            {"width": 256, "examples": examples}, 6, ("activation", "seed"), 64,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One layer at gain 1 on real digits: shares of its outputs exactly on each kink, and what rounding predicts."""
    images = data.load("mnist5k").train.x
    for case in cases:
        spec, kind, fmt = (case.text(name) for name in ("activation", "layer_kind", "format"))
        x, width = images[: case.integer("examples")], case.integer("width")
        layer: nn.Linear | nn.Conv2d
        if kind == "dense":
            x = x.flatten(1)
            layer = nn.Linear(x.shape[1], width, bias=False)
        else:
            x = x - x.min()
            x = x / x.square().mean().sqrt()
            layer = nn.Conv2d(1, max(1, width // 32), 3, bias=False)
        draws = generator(case.random_seed("seed", "layer_kind"), Purpose.WEIGHTS)
        nn.init.normal_(layer.weight, 0.0, layer.weight[0].numel() ** -0.5, generator=draws)
        points, dtype = torch.tensor(kinks(spec)).tolist(), getattr(torch, fmt)
        with torch.no_grad():
            z = layer.to(context.device, dtype)(x.to(context.device, dtype)).float().cpu()
            landed = [float((z == point).double().mean()) for point in points]
        stds = deviations(layer.float().cpu(), x)
        expected = [theory.landing_share(fmt, point, stds) for point in points]
        for metric, shares in (("landed", landed), ("expected", expected)):
            yield case.rows(metric, shares, layer=[f"{point:g}" for point in points])
        yield case.rows("outputs", z.numel())


def deviations(layer: nn.Linear | nn.Conv2d, x: Tensor) -> np.ndarray:
    """Standard deviation of each of the layer's outputs over the draw of its weights; 0 where its inputs are 0."""
    ones = torch.ones_like(layer.weight[:1])
    apply = nn.functional.linear if isinstance(layer, nn.Linear) else nn.functional.conv2d
    std = (apply(x.square(), ones).flatten() / ones.numel()).clamp(min=0).sqrt().double().numpy()
    return np.where(std < 1e-6, 0.0, std)  # sums of squares of zeros


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Shares by layer, format and kinks: activations with the same kinks are one condition, measured once."""
    params = params_of(rows, "layer_kind", "format", "activation")
    params = params.join(rows.pivot_table(index="case", columns="metric", values="value", aggfunc="sum", sort=False))
    params["points"] = [", ".join(f"{point:g}" for point in kinks(spec)) for spec in params["activation"]]
    asked, further = {}, {}
    for (layer, fmt, points), every in groups(params, KEYS):
        specs = list(dict.fromkeys(every["activation"]))
        draws = every[every["activation"] == specs[0]]
        # One hit more than was seen: without any, equal draws would say nothing of the chance.
        landed = draws["landed"].to_numpy() + np.eye(1, len(draws))[0] / draws["outputs"].iloc[0]
        asked[layer, fmt, points] = stats.against(landed, 0.0, margin=TINY)
        named = enumerated((spec.rpartition(":")[2] for spec in specs), 2)
        hits, outputs = round((draws["landed"] * draws["outputs"]).sum()), int(draws["outputs"].sum())
        columns = {"activation": named, "hits": hits, "outputs": outputs, "predicted": draws["expected"].mean()}
        further[layer, fmt, points] = columns
    label = "kinks at {points} in {format}, {layer_kind}"
    question = Question.of("kinks", KEYS, asked, label=label, reference="never", counted="draws of the weights")
    yield question.table(further)
    said = list(question.read(agrees).values())
    yield question.verdict(
        KINK, agrees, unit="share of pre-activations",
        says=tallied(question.read(agrees), "combinations of kink, format and layer"),
        why=f"in {said.count(True)} of {len(said)} combinations of kink, format and layer at most one pre-activation "
        f"in {1 / TINY:,.0f} lies exactly on a kink{question.listed(agrees, {False: '; more on'}, 20)}",
        method="one layer at initialization on real digits; t over draws of the weights, one hit more than seen "
        f"counted, margin {TINY:g}; dense: {LAYERS['dense']}; blank: {LAYERS['blank']}",
    )  # fmt: skip
    if blank := {c.effect.value: key for key, c in question.where(layer_kind="blank").members.items() if c.above}:
        yield Sentence(
            f"Where images have a background of exactly 0, {max(blank):.0%} of a convolution's pre-activations are "
            f"exactly 0, a kink of {further[blank[max(blank)]]['activation']}.",
            claims=(KINK.id,),
        )


@drawing.figure(
    "kinks", "How often a pre-activation is exactly a point without a derivative",
    lambda kinks: f"Mean over {kinks['n'].min()} draws of the weights, 95 % intervals that hold at once, one hit more "
    "than seen counted; ticks: what rounding to the format predicts, at the left edge 1e-9 or less. Dense: "
    f"{LAYERS['dense']}; blank: {LAYERS['blank']}. The claim's tiny is {TINY:g}.",
)  # fmt: skip
def draw_kinks(kinks: pd.DataFrame) -> Any:
    """Share of pre-activations on a kink, measured and predicted, by format."""
    shown = kinks.assign(predicted=kinks["predicted"].clip(lower=1e-9))
    axes = {"xscale": "log", "xlim": (5e-10, 2), "xlabel": "share of pre-activations"}
    return drawing.panels(shown, "layer_kind", drawing.estimates, at="activation", by="format", axes=axes)


METHOD = "**Kinks.** Predicted: what rounding puts on a point of a Gaussian over draws (`theory.landing_share`)."
PART = Part("kinks", (KINK,), SIZES, grids, run, analyse, (draw_kinks,), METHOD)
