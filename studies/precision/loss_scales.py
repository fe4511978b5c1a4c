"""Exponents of all that a training holds, by layer, and the loss scales that keep its gradients in a format."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, formats, models, probe, stats
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, enumerated
from depthgauge.replicas.order import order
from depthgauge.studies.precision import passes
from depthgauge.studies.precision.passes import FORMATS, KINDS, LOST, NETWORKS, PLACES, VALUES
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SCALE = Claim("precision/loss_scale", "some loss scale keeps every gradient of a network inside float16")
OVERFLOW = Claim("precision/overflow", "a real float16 pass overflows just where one float32 pass predicts it")
SAFE = Claim("precision/safe_scale", "at a predicted safe scale a real float16 pass loses no more than predicted")
STATE = Claim("precision/second_moment", "of a step's values Adam's second moment loses the most to float16")

MOMENT = "exp_avg_sq"
OTHERS = tuple(kind for kind in KINDS if kind != MOMENT)
MORE = 0.01  # of the values: the second moment loses more than another where it does by more than this
QUICK = ("mlp", "sigmoid_mlp")
SIZES = sizes(
    "networks steps batch seeds",
    quick=(QUICK, 20, 16, 8), standard=(tuple(NETWORKS), 200, 32, 10), full=(tuple(NETWORKS), 1000, 64, 20),
    tiny=(("mlp",), 2, 4, 5),
)  # fmt: skip


def grids(networks: tuple[str, ...], steps: int, batch: int, seeds: int) -> Iterator[Grid]:
    """Every network, trained for some steps."""
    yield Grid({"network": networks}, {"steps": steps, "batch": batch}, seeds, ("seed",), 4)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """A training by Adam in float32, looked at in its first and its last step; a real float16 pass before it."""
    digits = data.load("mnist5k").train
    for case in cases:
        seed, last = case.random_seed("seed"), case.integer("steps")
        built = {**NETWORKS[case.text("network")], "input_shape": (1, 28, 28), "classes": 10, "seed": seed}
        model = models.build(**built).to(context.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
        for step, chosen in enumerate(order(seed, len(digits), case.integer("batch"), last + 1)):
            x, y = (part.to(context.device) for part in digits[chosen])
            optimizer.zero_grad()
            if 0 < step < last:
                passes.backward(model, x, y)
                optimizer.step()
                continue
            before = copy.deepcopy(model)
            with probe.track(model, optimizer=optimizer) as record:
                passes.backward(model, x, y)
                optimizer.step()
            yield from passes.scales(case, step, record)
            yield from passes.losses(case, step, record, optimizer)
            if case.integer("seed") == 0:
                yield from passes.by_layer(case, step, record, passes.owners(model), optimizer)
            if not step:
                yield from passes.real(case, record, before, x, y)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Safe scales and who sets them, predicted against real passes, and what is lost of each kind of value."""
    found = _intervals(rows)
    yield "loss_scales", found
    yield from saved(rows, found)
    yield from validated(rows)
    yield from lost(rows)
    where = ["network", "step", "direction", "layer", "layer_index"]
    binades = rows["metric"].str.extract(r"^binade (-?\d+)")[0].dropna().astype(int)
    yield "exponents", rows.loc[binades.index, where].assign(binade=binades, share=rows["value"].round(6))
    yield "loss_scale_map", passes.charts(rows)
    answers = rows[rows["metric"] == "answer"]
    yield "layers", answers[where].assign(answer=[passes.ANSWERS[int(code)] for code in answers["value"]])


def _intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a network, step and format: the scales that are safe for every seed, and the layers that set them."""
    ends = rows[rows["metric"].str.contains("least|greatest")]
    ends = ends.assign(**ends["metric"].str.extract(r"^(?P<format>\S+) (?P<end>least|greatest)$"))
    table = []
    for (network, step, fmt), own in groups(ends.dropna(subset="format"), ["network", "step", "format"]):
        row: dict[str, Any] = {"network": network, "step": int(step), "format": fmt}
        for end, worst in (("least", "max"), ("greatest", "min")):
            values = own[own["end"] == end]
            row[end] = 2.0 ** values["value"].agg(worst, skipna=False)
            layers = values["layer"].dropna() + " (" + values["direction"].dropna() + ")"
            row[f"{end}_set_by"] = layers.mode().iloc[0] if len(layers) else ""
            row |= {"seeds": len(values), "saved": int(values["value"].notna().sum())}
        if not row["least"] <= row["greatest"]:
            row |= {"least": math.nan, "greatest": math.nan}
        table.append(row)
    return pd.DataFrame(table)


def saved(rows: pd.DataFrame, found: pd.DataFrame) -> Iterator[Answer]:
    """Room for a loss scale of float16, by network and step."""
    room = rows[rows["metric"] == "headroom"]
    cells = groups(room, ["network", "step"])
    asked = {(network, int(step)): stats.against(own["value"], -0.5) for (network, step), own in cells}
    by, label = ("network", "step"), "{network} at step {step}"
    question = Question.of("headroom", by, asked, label=label, family=lambda step, **_: step, reference="no room")
    yield question.table()
    yield question.verdict(
        SCALE, above, unit="powers of two of room",
        why="a scale that loses at most 1 % of any gradient, and overflows in none, "
        + question.listed(above, {True: "is left for", False: "is not for", None: "is undecided for"}, 12),
        method="log2 of greatest over least, below 0 where none is safe, t against -1/2",
    )  # fmt: skip
    if starts := {network: above(c) for (network, step), c in question.where(step=0).members.items()}:
        safe = found[(found["format"] == "float16") & (found["step"] == 0) & (found["least"] > 0)]
        served = [row for row in records(safe) if starts.get(row.network)][:1]
        example = "".join(
            f"; {row.network} needs 2^{math.log2(row.least):.0f} to 2^{math.log2(row.greatest):.0f}" for row in served
        )
        said = [*starts.values()]
        undecided = f" ({said.count(None)} undecided)" * (None in said)
        kept = f"in {said.count(True)} of {len(said)} networks at initialization{undecided}{example}"
        yield Sentence(f"One loss scale keeps every gradient inside float16 {kept}.", "loss_scale_map", (SCALE.id,))


def validated(rows: pd.DataFrame) -> Iterator[Answer]:
    """Real float16 passes against the map."""
    found = rows[rows["metric"].isin(["overflows", "as_predicted", "excess"])]
    if found.empty:
        return
    found = found.pivot_table(index=["network", "seed", "layer"], columns="metric", values="value").reset_index()
    yield "real_passes", found.rename(columns={"layer": "scale"})
    ends, untried = found[found["layer"].isin(["least", "greatest"])], _untried(rows)
    safe = ends.assign(right=(ends["overflows"] == 0) & (ends["excess"] <= LOST))
    for name, claim, right, where in (
        ("overflow", OVERFLOW, found.assign(right=found["as_predicted"] == 1), enumerated(PLACES)),
        ("safe_scale", SAFE, safe, "both ends of the safe interval"),
    ):
        asked = {}
        for network, own in groups(right, "network"):
            seeds = own.groupby("seed")["right"].all()
            asked[network,] = stats.coverage(int(seeds.sum()), len(seeds), 0.5)
        question = Question.of(name, ("network",), asked, label="{network}", reference="half of them")
        yield question.table()
        yield question.verdict(
            claim, above, unit="share of seeds",
            why=f"real passes at {where} are "
            + question.listed(above, {True: "as predicted for", False: "not for", None: "undecided for"}, 9)
            + f"; without a safe scale, and so without a pass, are {untried}" * bool(untried),
            method=f"a float16 copy of the network, the loss in float32; on top of what the map says a tensor may lose "
            f"{LOST:.0%} of its values and {VALUES} more; networks drawn for which all is as predicted, against half",
        )  # fmt: skip


def _untried(rows: pd.DataFrame) -> str:
    """Networks of which no loss scale keeps all gradients, with the number of seeds: `mlp (1 of 10)`."""
    least = rows[(rows["metric"] == "float16 least") & (rows["step"] == 0)]
    shares = {str(network): own["value"].isna() for network, own in groups(least, "network")}
    return enumerated((f"{name} ({none.sum()} of {len(none)})" for name, none in shares.items() if none.any()), 9)


def lost(rows: pd.DataFrame) -> Iterator[Answer]:
    """Losses of each kind of value by format, unscaled, and Adam's second moment against the others."""
    shares = rows.assign(**rows["metric"].str.extract(r"^(?P<format>\S+) (?P<share>under|subnormal|over)$"))
    shares, keys = shares.dropna(subset="share"), ["network", "step", "format", "direction"]
    yield "lost_values", shares.pivot_table(index=keys, columns="share", values="value", sort=False).reset_index()
    half = shares[(shares["format"] == "float16") & (shares["share"] == "under") & (shares["step"] == shares["steps"])]
    asked, gone = {}, {}
    for network, own in groups(half, "network"):
        by_kind = own.pivot_table(index="seed", columns="direction", values="value")
        asked[network,] = stats.paired(by_kind[MOMENT], by_kind[list(OTHERS)].max(axis=1), margin=MORE)
        gone[str(network)] = float(by_kind[MOMENT].mean())
    if not asked:
        return
    worst = max(gone, key=gone.__getitem__)
    yield Sentence(
        f"After {half['steps'].iloc[0]:.0f} steps float16 rounds up to {gone[worst]:.0%} of Adam's second moments to "
        f"zero ({worst}, of {len(gone)} networks).",
        claims=(STATE.id,),
    )
    question = Question.of("second_moment", ("network",), asked, label="{network}", reference="no difference")
    yield question.table()
    yield question.verdict(
        STATE, above, unit="share of values",
        why="more of it is rounded to zero than of any other: "
        + question.listed(above, {True: "for", False: "not for", None: "undecided for"}, 9),
        method=f"share of the second moment less the largest of {enumerated(OTHERS, 9)}, paired seeds, margin {MORE:g}",
    )  # fmt: skip


def _lines(ends: Mapping[str, Sequence[float]], x: str) -> pd.DataFrame:
    """Upright lines over all layers, at the values of each name."""
    rows = [(at, layer, name) for name, places in ends.items() for at in places for layer in (-1e3, 1e3, math.nan)]
    return pd.DataFrame(rows, columns=[x, "layer_index", "line"])


def _map(axis: Any, rows: pd.DataFrame, *, x: str, value: str, over: pd.DataFrame, ends: tuple[int, int]) -> None:
    drawing.heat(axis, rows, x, "layer_index", value, over=over)
    last = int(rows["layer_index"].max())
    layers, places = range(0, last + 1, 1 + last // 8), range(20 * (ends[0] // 20), ends[1], 20)
    axis.set_yticks(layers, list(map(str, layers)))
    axis.set_xticks(places, list(map(str, places)))
    axis.set_xlim(*ends)


def _pictured(exponents: pd.DataFrame) -> str:
    return max(map(str, exponents["network"].unique()), key="mlp".__eq__)  # the deep one, where it was measured


@drawing.figure(
    "exponents", "What a training holds, by layer and binade: Adam's second moment lies lowest",
    lambda exponents: f"Share of a layer's values from 2^binade up to twice that; {_pictured(exponents)}, after "
    f"{exponents['step'].max():.0f} steps of Adam. Between its two lines a format has values, subnormal ones included.",
)  # fmt: skip
def draw_exponents(exponents: pd.DataFrame) -> Any:
    """Heat maps of exponents over layers, by kind of value, with the windows of two formats."""
    shown = exponents[(exponents["network"] == _pictured(exponents)) & (exponents["step"] == exponents["step"].max())]
    shown = shown[shown["direction"] != "exp_avg"].assign(log10_share=lambda own: np.log10(own["share"]))
    held = [formats.get(name) for name in (FORMATS[0], FORMATS[-1])]
    windows = {f.name: (math.log2(f.smallest_subnormal) - 1.5, math.floor(math.log2(f.max)) + 0.5) for f in held}
    return drawing.panels(
        shown.assign(kind=shown["direction"].str.replace("_", " ")), "kind", _map, x="binade", value="log10_share",
        over=_lines(windows, "binade"), ends=(shown["binade"].min() - 1, 18),
    )  # fmt: skip


@drawing.figure(
    "loss_scale_map", "What float16 loses of each layer's gradients, at every loss scale",
    "Share that is rounded to zero or overflows, the largest among a layer's gradients (of output, weight, bias), from "
    "one float32 pass at initialization. Lines: the least and the greatest scale at which all gradients are kept.",
)  # fmt: skip
def draw_map(loss_scale_map: pd.DataFrame) -> Any:
    """The loss-scale map of each network, with its safe interval."""
    shown = loss_scale_map[loss_scale_map["format"] == "float16"]
    shown = shown.assign(lost=shown[["under", "over"]].max(axis=1))
    over = [
        _lines({f"{end} safe scale": [own[end].iloc[0]]}, "log2_scale").assign(network=network)
        for network, own in groups(shown, "network") for end in ("least", "greatest")
    ]  # fmt: skip
    ends = tuple(shown["log2_scale"].agg(["min", "max"]))
    options: dict[str, Any] = {"x": "log2_scale", "value": "lost", "over": pd.concat(over), "ends": ends}
    return drawing.panels(shown, "network", _map, shared="", **options)


METHOD = """**Loss scales.** One float32 pass gives exponent histograms, from which follows exactly what rounding each
gradient once would lose at every power of two (`record.loss_scale`). The real pass computes all in float16 but the
loss. Adam's default eps, 1e-8, is 0 in float16: where the second moment is 0, an update is not finite. The bias of
attention's keys has no gradient but rounding errors, as softmax does not see it; it counts like any other."""
PART = Part(
    "loss_scales", (SCALE, OVERFLOW, SAFE, STATE), SIZES, grids, run, analyse, (draw_exponents, draw_map), METHOD,
    shown=("loss_scales",),
)  # fmt: skip
