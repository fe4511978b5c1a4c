"""How often a pre-activation is exactly a point at which its activation has no derivative, by number format."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import data, stats, theory
from depthgauge.frames import groups, params_of, records
from depthgauge.parts import Answer, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.activation.extremes import highest
from depthgauge.studies.activation.functions import kinks, label
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

TINY = 1e-3  # of the pre-activations: the claim's "tiny" is at most one in a thousand
TITLES = {
    "dense": "fully connected, standardized images",
    "blank": "3 x 3 convolution, images with a background of 0",
}


def run_kinks(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One layer at its exact gain on real digits, in the format: the share of its outputs that lie exactly on a kink.

    `expected`: what rounding alone predicts. Given an example, a pre-activation is N(0, |x|^2 / fan-in) over the draw
    of the weights; where a convolution sees nothing but zeros it is 0 for certain.
    """
    images = data.load("mnist5k").train.x
    for case in cases:
        spec, kind, fmt = (case.text(name) for name in ("activation", "layer_kind", "format"))
        x = images[: case.integer("examples")]
        if kind == "blank":
            x = x - x.min()
            x = x / x.square().mean().sqrt()
        if kind == "dense":
            x = x.flatten(1)
        layer = _layer(kind, x, case.integer("width"), case.random_seed("seed", "layer_kind"))
        points = torch.tensor(kinks(spec))
        dtype = getattr(torch, fmt)
        with torch.no_grad():
            z = layer.to(context.device, dtype)(x.to(context.device, dtype)).float().cpu()
            landed = [float((z == point).double().mean()) for point in points]
        yield case.rows("landed", landed, layer=[f"{float(point):g}" for point in points])
        expected = expected_landing(layer.float().cpu(), x, fmt, points.tolist())
        yield case.rows("expected", expected, layer=[f"{float(point):g}" for point in points])
        yield case.rows("outputs", z.numel())


def _layer(kind: str, x: Tensor, width: int, seed: int) -> nn.Linear | nn.Conv2d:
    """Weights of variance 1/fan-in, no bias: pre-activations of the inputs' own second moment."""
    layer: nn.Linear | nn.Conv2d
    if kind == "dense":
        layer = nn.Linear(x[0].numel(), width, bias=False)
    else:
        layer = nn.Conv2d(1, max(1, width // 32), 3, bias=False)
    std = layer.weight[0].numel() ** -0.5
    nn.init.normal_(layer.weight, 0.0, std, generator=generator(seed, Purpose.WEIGHTS))
    return layer


def expected_landing(layer: nn.Linear | nn.Conv2d, x: Tensor, fmt: str, points: Sequence[float]) -> list[float]:
    """Share of the layer's outputs that rounding to the format puts on each point, averaged over its inputs."""
    ones = torch.ones_like(layer.weight[:1])
    square = (
        nn.functional.linear(x.square(), ones)
        if isinstance(layer, nn.Linear)
        else nn.functional.conv2d(x.square(), ones)
    )
    std = (square.flatten() / ones.numel()).clamp(min=0).sqrt().double().numpy()
    std[std < 1e-6] = 0.0  # sums of squares of zeros
    # Equal up to a hundredth of their logarithm, at which the chance is the same to as much.
    bins, counts = np.unique(np.round(100 * np.log(std[std > 0])), return_counts=True)
    found = []
    for point in points:
        mass = sum(
            count * theory.landing_probability(fmt, point, math.exp(place / 100))
            for place, count in zip(bins, counts, strict=True)
        )
        found.append(float(mass + (point == 0) * (std == 0).sum()) / std.size)
    return found


def analyse_kinks(rows: pd.DataFrame) -> Answer:
    """Shares by layer, format and activation, all kinks of an activation together, against what rounding predicts."""
    keys = ["layer_kind", "format", "activation"]
    params = params_of(rows, *keys)
    by_case = rows.pivot_table(index="case", columns="metric", values="value", aggfunc="sum", sort=False)
    params = params.join(by_case)
    found = []
    for key, own in groups(params, keys):
        share = stats.mean(own["landed"].to_numpy())
        outputs = int(own["outputs"].sum())
        # without any hit the spread says nothing: the rule of three bounds the share
        high = share.high if own["landed"].any() else 3 / outputs
        compared = stats.paired(own["landed"], own["expected"], test="t")
        found.append(
            {
                **dict(zip(keys, key, strict=True)), "share": share.value, "low": max(share.low, 0.0), "high": high,
                "predicted": own["expected"].mean(), "deviation_se": compared.z if own["landed"].any() else math.nan,
                "outputs": outputs, "seeds": share.n,
            }
        )  # fmt: skip
    table = pd.DataFrame(found)
    table["points"] = [", ".join(f"{point:g}" for point in kinks(spec)) for spec in table["activation"]]
    table["activation"] = table["activation"].map(label)
    return Answer({"kinks": table}, (_verdict(table),), tuple(_sentences(table)))


def _verdict(table: pd.DataFrame) -> Verdict:
    conditions = [
        None if row.seeds < 5 else True if row.high <= TINY else False if row.low > TINY else None
        for row in records(table)
    ]
    often = [row for row, condition in zip(records(table), conditions, strict=True) if condition is False]
    by_share: dict[tuple[str, str, str], list[str]] = {}
    for row in sorted(often, key=lambda row: -row.share):
        by_share.setdefault((f"{row.share:.1g}", row.format, TITLES[row.layer_kind]), []).append(row.activation)
    told = "; ".join(
        f"{share} with {', '.join(names)} in {fmt} ({kind})" for (share, fmt, kind), names in by_share.items()
    )
    worst = highest(table, "share")
    return verdict_on(
        "N14",
        Status(stats.combine(conditions)),
        f"in {sum(condition is True for condition in conditions)} of {len(table)} combinations of activation, format "
        f"and layer at most one pre-activation in {1 / TINY:,.0f} lies exactly on a kink"
        + (f"; more often: {told}" if told else ""),
        observed=float(worst["share"]), low=float(worst["low"]), high=float(worst["high"]),
        predicted=float(worst["predicted"]), unit="share of pre-activations", n=int(worst["seeds"]),
        method="one layer at initialization on real digits; 95 % t interval over draws of the weights (without a "
        f"hit, 3 over the number of outputs), below or above {TINY:g}; the figure is the largest, "
        f"{worst['activation']} in {worst['format']}, {TITLES[worst['layer_kind']]}",
    )  # fmt: skip


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    dense = table[table["layer_kind"] == "dense"]
    told = []
    for fmt, own in groups(dense, "format"):
        if own["share"].max() > 0:
            told.append(f"at most {own['share'].max():.1g} of them in {fmt} ({highest(own, 'share')['activation']})")
        else:
            told.append(
                f"none of {own['outputs'].sum():,} in {fmt} (rounding predicts {_chance(own['predicted'].max())})"
            )
    if told:
        yield f"How often a pre-activation lies exactly on a kink is set by the number format: {', '.join(told)}."
    blank = table[(table["layer_kind"] == "blank") & (table["share"] > TINY)]
    if len(blank):
        worst = highest(blank, "share")
        yield (
            f"Where inputs have a background of exactly 0, {worst['share']:.0%} of a convolution's pre-activations are "
            f"exactly 0, the kink of {worst['activation']}, in every format: structure, not chance."
        )


def _chance(share: float) -> str:
    return f"{share:.0e}" if share > 1e-12 else "less than 1e-12"


def plot_kinks(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Share of pre-activations on a kink, measured and predicted, by format."""
    if "kinks" not in tables:
        return
    table = tables["kinks"]
    layers, formats = (list(dict.fromkeys(table[column])) for column in ("layer_kind", "format"))
    order = list(table.groupby("activation")["predicted"].max().sort_values().index)
    places = {name: i for i, name in enumerate(order)}
    canvas, axes = plt.subplots(
        1, len(layers), figsize=(3.4 * len(layers) + 1, 0.3 * len(order) + 2.2), sharey=True, squeeze=False
    )
    for axis, layer in zip(axes[0], layers, strict=True):
        for i, fmt in enumerate(formats):
            own = table[(table["layer_kind"] == layer) & (table["format"] == fmt)]
            y = own["activation"].map(places) + 0.22 * (i - 1)
            axis.vlines(own["predicted"].clip(lower=1e-11), y - 0.12, y + 0.12, color=f"C{i}", lw=2)
            hit = own["share"] > 0
            axis.plot(own["share"][hit], y[hit], "o", ms=5, color=f"C{i}", label=fmt)
            axis.plot(own["high"][~hit], y[~hit], "<", ms=5, mfc="white", mec=f"C{i}", mew=1.2)
        axis.axvline(TINY, color="0.6", lw=0.8, ls=":")
        axis.set(xscale="log", xlim=(5e-12, 2), xlabel="share of pre-activations")
        axis.set_title(TITLES[layer].replace(", ", ",\n"), fontsize="medium")
    axes[0, 0].set_yticks(range(len(order)), order)
    handles, names = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower center", ncols=len(formats))
    yield Figure(
        "kinks",
        canvas,
        "How often a pre-activation is exactly a point without a derivative",
        f"Points: measured over {int(table['seeds'].min())} draws of the weights; lines: what rounding to the format "
        "predicts (at the left edge: 1e-11 or less). Hollow: no hit; the point is then the upper bound, 3 over the "
        f"number of outputs. Dotted: {TINY:g}.",
    )
