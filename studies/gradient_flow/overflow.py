"""Activations and gradients that leave a number format, on a mini-batch of real digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, models, probe, stats, theory
from depthgauge.conditions import explained
from depthgauge.frames import groups, only, params_of, records
from depthgauge.initialization import Init, gaussian
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, enumerated
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

SAVED = Claim("gradient_flow/loss_scale", "some loss scale keeps the gradients of every layer inside float16")

FORMATS = ("float16", "float32")
LOST = 0.01  # a tensor has left a format when more than this share of its values is rounded to zero, or any overflows
LARGEST = 40  # power of two, of the loss scales that are tried
FEWEST = 5  # networks of a configuration that answer for it
DIRECTIONS = {"activation": "forward", "activation_gradient": "backward"}
KEYS = ["activation", "init", "depth"]
WEIGHTS = {"critical": "critical weights", "default": "PyTorch's default"}
SIZES = sizes("depth width batch", quick=(50, 128, 64), standard=(50, 128, 64), full=(50, 128, 64), tiny=(4, 8, 4))


def grids(depth: int, width: int, batch: int) -> Iterator[Grid]:
    """PyTorch's default, and critical weights; none for GELU, whose critical point without biases is unstable."""
    shape, bounded = {"depth": depth, "width": width, "batch": batch}, ("relu", "tanh", "sigmoid")
    for init, activations in (("default", (*bounded, "gelu")), ("critical", bounded)):
        yield Grid({"activation": activations}, {**shape, "init": init}, 5, ("activation", "seed"), 10)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Losses of each format among hidden activations and their gradients, at loss scale 1; exact zeros do not count.

    The pass runs in float64: in float32 what float32 loses would be gone before it could be counted.
    """
    digits = data.load("mnist5k").train
    for case in cases:
        activation, seed = case.text("activation"), case.random_seed("seed")
        x, y = digits[torch.randperm(len(digits), generator=generator(seed, Purpose.SAMPLE))[: case.integer("batch")]]
        critical = case.text("init") == "critical"
        init: Init = gaussian(theory.critical_sigma_w(activation, 0.0)) if critical else "default"
        shape: dict[str, Any] = {"depth": case.integer("depth"), "width": case.integer("width")}
        model = models.build("mlp", **shape, activation=activation, init=init, seed=seed)
        model, x = model.to(context.device, torch.float64), x.to(context.device, torch.float64)
        with probe.track(model, directions=DIRECTIONS, layers="hidden.*.activation") as record:
            torch.nn.functional.cross_entropy(model(x), y.to(context.device)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for fmt in FORMATS:
            frame = record.fractions(fmt).fillna({"under": 1.0, "over": 0.0})  # where nothing but zeros is left
            for direction, word in DIRECTIONS.items():
                own = frame[frame["direction"] == direction].sort_values("layer_index")
                at: dict[str, Any] = {"layer_index": np.arange(1, len(own) + 1), "direction": word}
                for share in ("under", "over"):
                    yield case.rows(f"{fmt}_{share}", own[share].to_numpy(), **at)
        yield case.rows("log2_loss_scale", math.log2(_least_scale(record.loss_scale("float16", lost=LOST))))


def _least_scale(scale: probe.LossScale) -> float:
    """The least safe loss scale from 1 on; infinity where none is, or a layer's gradients are zeros at each scale."""
    least = max(scale.least, 1.0)
    saves = least <= scale.greatest and least <= 2.0**LARGEST  # false where there is no safe scale, which is NaN
    return least if saves and (scale.to_frame()["n"] > 0).all() else math.inf


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Layers at which activations and gradients leave each format, and the loss scale that would save the gradients."""
    profile = rows[rows["layer_index"].notna()]
    profile = profile.assign(**profile["metric"].str.extract(r"(?P<format>.*)_(?P<share>.*)"))
    index = [*KEYS, "direction", "format", "layer_index"]
    table = profile.pivot_table(index=index, columns="share", values="value").reset_index().rename_axis(columns=None)
    yield "overflow", table
    params = params_of(rows, *KEYS).astype({"depth": int}).assign(log2_scale=only(rows, "log2_loss_scale"))
    limits = []
    for key, own in groups(params, KEYS):
        log2_scale = own["log2_scale"].to_numpy()
        counts = {"networks": len(log2_scale), "saved": np.isfinite(log2_scale).sum()}
        passed = _passed(table[(table[KEYS] == list(key)).all(axis=1)])
        limits.append({**dict(zip(KEYS, key, strict=True)), **passed, "loss_scale": 2.0 ** log2_scale.max(), **counts})
    yield "loss_scales", pd.DataFrame(limits)
    yield from saved(pd.DataFrame(limits))


def _passed(profile: pd.DataFrame) -> dict[str, float]:
    """How many layers a signal has passed when it has left a format: from the input, or back from the output."""
    passed = {}
    for (direction, fmt), own in groups(profile, ["direction", "format"]):
        lost = own[(own["under"] > LOST) | (own["over"] > 0)]["layer_index"]
        place = lost.min() if direction == "forward" else own["layer_index"].max() - lost.max() + 1
        passed[f"{fmt}_{direction}"] = float(place) if len(lost) else math.inf
    return passed


def saved(limits: pd.DataFrame) -> Iterator[Answer]:
    """Does a loss scale save every network of a configuration, or none? Counted over configurations."""
    named = {f"{row.activation} ({row.init})": row for row in records(limits)}
    kept = [f"{name} at {row.loss_scale:.0f}" for name, row in named.items() if row.saved == row.networks]
    lost = [name for name, row in named.items() if row.saved == 0]
    clear = {name: row.networks >= FEWEST and row.saved in {0, row.networks} for name, row in named.items()}
    answers = {name: bool(row.saved) if clear[name] else None for name, row in named.items()}
    share = Question.share("saved", len(kept), len(limits), counted="initializations")
    if len(limits) < FEWEST:  # configurations that are too few to count: the networks of each carry the answer
        asked = {(row.activation, row.init): stats.coverage(row.saved, row.networks, 0.5) for row in named.values()}
        by = ("activation", "init")
        share = Question.of(
            "saved", by, asked, label="{activation} ({init})", reference="half of them", counted="networks"
        )
    yield share.table()
    yield share.verdict(
        SAVED, answers, unit=f"share of {share.counted}", says=_which(limits, answers),
        why=f"at depth {limits['depth'].max()} a loss scale saves {enumerated(kept, 9) or 'none'}; beyond saving are "
        f"{enumerated(lost, 9) or 'none'}, where each scale leaves gradients at zero or makes others overflow",
        method=f"a configuration is saved where for each of its networks a power of two up to 2^{LARGEST} leaves in no "
        f"layer more than {LOST:.0%} of the gradients at zero, and none at infinity; exact binomial interval",
    )  # fmt: skip
    default = limits[(limits["init"] == "default") & np.isfinite(limits["float16_backward"])]
    if len(default):
        few, many = default["float16_backward"].min(), default["float16_backward"].max()
        yield Sentence(
            f"{default['depth'].max()} layers deep at PyTorch's default initialization, gradients leave float16 after "
            f"{few:.0f} to {many:.0f} layers, and a loss scale saves them for "
            f"{(default['saved'] == default['networks']).sum()} of {len(default)} activations.",
            claims=(SAVED.id,),
        )


def _which(limits: pd.DataFrame, answers: Mapping[str, bool | None]) -> str:
    """The initializations, or activations, that a loss scale saves."""
    keys = [(WEIGHTS.get(row.init, row.init), row.activation) for row in records(limits)]
    said = dict(zip(keys, answers.values(), strict=True))
    return explained(("init", "activation"), said, lambda key: f"{key[1]} ({key[0]})")


@drawing.figure(
    "float16_underflow", "How many of a deep network's gradients float16 rounds to zero",
    lambda overflow: "Gradients of the cross-entropy of a batch of real digits, without loss scaling; mean over seeds, "
    f"depth {overflow['depth'].max():.0f}. The gradient enters at the last layer; exact zeros are not counted.",
)  # fmt: skip
def underflow(overflow: pd.DataFrame) -> Any:
    """Share of gradients that float16 rounds to zero, layer by layer."""
    own = overflow[(overflow["direction"] == "backward") & (overflow["format"] == "float16")]
    axes = {"ylabel": "share rounded to zero", "ylim": (-0.03, 1.03)}
    return drawing.panels(
        own, "activation", drawing.lines, by="init", x="layer_index", y="under", marks=False, axes=axes
    )


METHOD = """
**Number formats.** Exponent histograms of one pass in float64 give the exact share of every hidden layer's activations,
and of the gradients with respect to them, that a format loses at any power-of-two loss scale.
"""
PART = Part("overflow", (SAVED,), SIZES, grids, run, analyse, (underflow,), METHOD)
