"""Where activations and gradients leave a number format, on a mini-batch of real digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D

from depthgauge import data, models, probe, stats, theory
from depthgauge.frames import only, params_of, records
from depthgauge.initialization import Init, gaussian
from depthgauge.parts import Answer, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.gradient_flow.answers import COLOURS, coinciding
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Figure, Status, Verdict

FORMATS = ("float16", "float32")
LOST = 0.01  # a tensor has left a format when more than this share of its values is rounded to zero, or any overflows
SCALES = range(41)  # powers of two that are tried as loss scales
UNSTABLE = ("gelu",)  # its critical point without biases is at variance 0 (see `theory.critical_sigma_w`): none is used
DIRECTIONS = {"activation": "forward", "activation_gradient": "backward"}


def run_overflow(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One forward and backward pass of a mini-batch in float32: what each format would lose in every layer.

    Activations are those of the hidden layers, gradients those of the mean cross-entropy with respect to them, at
    loss scale 1. Exact zeros (the inactive half of a ReLU layer) are no loss of the format and are left out.
    """
    digits = data.load("mnist5k").train
    for case in cases:
        order = torch.randperm(len(digits), generator=generator(case.random_seed("seed"), Purpose.SAMPLE))
        x, y = digits[order[: case.integer("batch")]]
        model = _network(case).to(context.device)
        with probe.track(model, directions=DIRECTIONS, layers="hidden.*.activation") as record:
            torch.nn.functional.cross_entropy(model(x.to(context.device)), y.to(context.device)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for fmt in FORMATS:
            frame = record.fractions(fmt)
            for direction, word in DIRECTIONS.items():
                own = frame[frame["direction"] == direction].sort_values("layer_index")
                layers = np.arange(1, len(own) + 1)
                for share in ("under", "over"):
                    values = own[share].fillna(1.0 if share == "under" else 0.0).to_numpy()  # nothing but zeros is left
                    yield case.rows(f"{fmt}_{share}", values, layer_index=layers, direction=word)
        yield case.rows("log2_loss_scale", _smallest_scale(record))


def _network(case: Case) -> torch.nn.Module:
    activation = case.text("activation")
    init: Init = "default"
    if case.text("init") == "critical":
        init = gaussian(theory.critical_sigma_w(activation, 0.0))
    return models.build(
        "mlp",
        depth=case.integer("depth"),
        width=case.integer("width"),
        activation=activation,
        init=init,
        seed=case.random_seed("seed"),
    )


def _smallest_scale(record: probe.Record) -> float:
    """log2 of the smallest power of two that keeps all gradients inside float16; infinity where none of SCALES does."""
    for power in SCALES:
        frame = record.fractions("float16", 2.0**power)
        own = frame[frame["direction"] == "activation_gradient"]
        if own["over"].max() > 0:
            return math.inf  # a larger scale only overflows more
        if (own["under"].fillna(1.0) <= LOST).all():
            return float(power)
    return math.inf


def analyse_overflow(rows: pd.DataFrame) -> Answer:
    """Where activations and gradients leave each format, and the loss scale that would save the gradients."""
    keys = ["activation", "init", "depth"]
    profile = rows[rows["layer_index"].notna()]
    mean = profile.groupby([*keys, "direction", "metric", "layer_index"], sort=False)["value"].mean().reset_index()
    mean[["format", "share"]] = mean.pop("metric").str.rsplit("_", n=1, expand=True).to_numpy()
    table = mean.pivot_table(index=[*keys, "direction", "format", "layer_index"], columns="share", values="value")
    table = table.reset_index().rename_axis(columns=None)
    scales = params_of(rows, *keys)
    scales["log2_loss_scale"] = only(rows, "log2_loss_scale")
    found = []
    for key, own in scales.groupby(keys, sort=False)["log2_loss_scale"]:
        at = table[(table[keys] == list(key)).all(axis=1)]
        found.append({**dict(zip(keys, key, strict=True)), **_exits(at), **_needed(own.to_numpy())})
    limits = pd.DataFrame(found)
    return Answer({"overflow": table, "loss_scales": limits}, (_loss_scale_verdict(limits),), _sentences(limits))


def _exits(profile: pd.DataFrame) -> dict[str, float]:
    """How many layers a signal has passed when it has left a format: from the input, or back from the output."""
    exits = {}
    for (direction, fmt), own in profile.groupby(["direction", "format"]):
        lost = own[(own["under"] > LOST) | (own["over"] > 0)]["layer_index"]
        deepest = own["layer_index"].max()
        passed = math.inf
        if len(lost):
            passed = float(lost.min() if direction == "forward" else deepest - lost.max() + 1)
        exits[f"{fmt}_{direction}"] = passed
    return exits


def _needed(log2_scales: np.ndarray) -> dict[str, float]:
    """The loss scale that saves every seed, and how many seeds any scale saves."""
    return {
        "loss_scale": float(2.0 ** log2_scales.max()),
        "saved": int(np.isfinite(log2_scales).sum()),
        "seeds": int(log2_scales.size),
    }


def _loss_scale_verdict(limits: pd.DataFrame) -> Verdict:
    saved, seeds = int(limits["saved"].sum()), int(limits["seeds"].sum())
    share = stats.rate(saved, seeds)
    every = [
        None if row.seeds < 5 else row.saved == row.seeds if row.saved in (0, row.seeds) else None
        for row in records(limits)
    ]
    lost = [f"{row.activation} ({row.init})" for row in records(limits) if row.saved == 0]
    kept = [
        f"{row.activation} ({row.init}) at {row.loss_scale:.0f}" for row in records(limits) if row.saved == row.seeds
    ]
    return verdict_on(
        "gradient_flow/loss_scale",
        Status(stats.combine(every)),
        f"at depth {limits['depth'].max():.0f}: saved are {', '.join(kept) or 'none'}; beyond saving are "
        f"{', '.join(lost) or 'none'}, where each scale leaves gradients at zero or makes others overflow",
        observed=share.value,
        low=share.low,
        high=share.high,
        unit="share of networks saved",
        n=seeds,
        method=f"exact fractions from exponent histograms; saved: a power of two up to 2^{max(SCALES)} at which no "
        f"layer loses more than {LOST:.0%} of its gradients to zero, and none to infinity; Wilson interval",
    )


def _sentences(limits: pd.DataFrame) -> tuple[str, ...]:
    default = limits[(limits["init"] == "default") & np.isfinite(limits["float16_backward"])]
    if default.empty:
        return ()
    left = ", ".join(f"{row.float16_backward:.0f} ({row.activation})" for row in records(default))
    saved = [f"{row.activation} by {row.loss_scale:.0f}" for row in records(default) if row.saved == row.seeds]
    sentence = (
        f"In a network of {default['depth'].max():.0f} layers at PyTorch's default initialization, on real digits, "
        f"gradients have left float16 this many layers below the output: {left}; a loss scale saves "
        f"{', '.join(saved) or 'none of them'}."
    )
    return (sentence,)


def plot_overflow(tables: Mapping[str, pd.DataFrame]) -> Iterator[Figure]:
    """Share of gradients that float16 rounds to zero, layer by layer."""
    if "overflow" not in tables:
        return
    table = tables["overflow"]
    own = table[(table["direction"] == "backward") & (table["format"] == "float16")].sort_values("layer_index")
    inits, names = (list(dict.fromkeys(own[column])) for column in ("init", "activation"))
    names.sort(key=list(COLOURS).index)
    canvas, axes = plt.subplots(1, len(inits), figsize=(9.5, 4.3), sharey=True, squeeze=False)
    remarks = []
    for axis, init in zip(axes[0], inits, strict=True):
        lines = own[own["init"] == init].pivot_table(index="layer_index", columns="activation", values="under")
        lines = lines[[name for name in names if name in lines]]
        for group in coinciding(lines, within=SEEN):
            for above, activation in enumerate(group):  # the first is drawn widest, so that each shows
                width = 1.6 + 2.4 * (len(group) - 1 - above)
                axis.plot(lines.index, lines[activation], color=COLOURS[activation], lw=width)
            if len(group) > 1:
                start = lines[group[0]].iloc[0]
                axis.annotate(
                    f"{', '.join(group)}: one curve", (lines.index[0], start),
                    xytext=(0, 7 if start < 0.5 else -7), textcoords="offset points",
                    va="bottom" if start < 0.5 else "top", color="0.3",
                )  # fmt: skip
                remarks.append(f"{TITLES[init]}: the curves of {', '.join(group)} lie on each other.")
        missing = [name for name in names if name in UNSTABLE and name not in lines]
        if missing and init == "critical":
            remarks.append(
                f"{TITLES[init]}: without {', '.join(missing)}, for want of a critical sigma_w at a stable fixed "
                "point (no biases)."
            )
        axis.set(
            title=f"{TITLES[init]}: {_lost_at_first(lines)}",
            xlabel="layer (the gradient enters at the last)",
            ylim=(-0.03, 1.03),
        )
    axes[0, 0].set_ylabel("share of gradients rounded to zero")
    handles = [Line2D([], [], color=COLOURS[name], lw=1.6, label=name) for name in names]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    default = own[(own["layer_index"] == 1) & (own["init"] == "default")]
    yield Figure(
        "float16_underflow",
        canvas,
        "At PyTorch's default most float16 gradients of a deep network are zero before they reach the first layers"
        if len(default) and (default["under"] > 0.5).all()
        else "How many of a deep network's gradients float16 rounds to zero",
        f"Gradients of the cross-entropy of a batch of real digits, as float16 would hold them without loss scaling; "
        f"mean over seeds, depth {own['depth'].max():.0f}. Exact zeros are not counted. {' '.join(remarks)}".rstrip(),
    )


def _lost_at_first(lines: pd.DataFrame) -> str:
    """What became of the gradients by the first layer, over the activations."""
    if lines.to_numpy().max() < LOST:
        return f"less than {LOST:.0%} lost"
    low, high = (f"{share:.0%}" for share in (lines.iloc[0].min(), lines.iloc[0].max()))
    return f"{low if low == high else f'{low} to {high}'} lost at layer 1"


SEEN = 0.01  # a share
TITLES = {"default": "PyTorch's default", "critical": "Critical sigma_w"}
