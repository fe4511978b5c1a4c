"""Where activations and gradients leave a number format, on a mini-batch of real digits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import data, drawing, models, probe, stats, theory
from depthgauge.frames import groups, only, params_of, records
from depthgauge.initialization import Init, gaussian
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, enumerated
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Status

SAVED = Claim("gradient_flow/loss_scale", "some loss scale keeps the gradients of every layer inside float16")

FORMATS = ("float16", "float32")
LOST = 0.01  # a tensor has left a format when more than this share of its values is rounded to zero, or any overflows
SCALES = range(41)  # powers of two that are tried as loss scales
FEWEST = 5  # networks of a configuration that answer for it
DIRECTIONS = {"activation": "forward", "activation_gradient": "backward"}
KEYS = ["activation", "init", "depth"]
USUAL = {"depth": 50, "width": 128, "batch": 64}
SIZES = {"quick": USUAL, "standard": USUAL, "full": USUAL, "tiny": {"depth": 4, "width": 8, "batch": 4}}


def grids(**shape: int) -> Iterator[Grid]:
    """PyTorch's default, and critical weights; none for GELU, whose critical point without biases is unstable."""
    for init, activations in (
        ("default", ("relu", "tanh", "sigmoid", "gelu")), ("critical", ("relu", "tanh", "sigmoid"))
    ):  # fmt: skip
        yield Grid({"activation": activations}, {**shape, "init": init}, 5, ("activation", "seed"), 10)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """One forward and backward pass of a mini-batch in float32: what each format would lose in every layer.

    Activations are those of the hidden layers, gradients those of the mean cross-entropy with respect to them, at
    loss scale 1. Exact zeros (the inactive half of a ReLU layer) are no loss of the format and are left out.
    """
    digits = data.load("mnist5k").train
    for case in cases:
        order = torch.randperm(len(digits), generator=generator(case.random_seed("seed"), Purpose.SAMPLE))
        x, y = digits[order[: case.integer("batch")]]
        model = network(case).to(context.device)
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


def network(case: Case) -> torch.nn.Module:
    """A multilayer perceptron at PyTorch's default, or with weights at the critical sigma_w."""
    activation = case.text("activation")
    init: Init = "default"
    if case.text("init") == "critical":
        init = gaussian(theory.critical_sigma_w(activation, 0.0))
    shape: dict[str, Any] = {"depth": case.integer("depth"), "width": case.integer("width")}
    return models.build("mlp", **shape, activation=activation, init=init, seed=case.random_seed("seed"))


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


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Where activations and gradients leave each format, and the loss scale that would save the gradients."""
    profile = rows[rows["layer_index"].notna()]
    mean = profile.groupby([*KEYS, "direction", "metric", "layer_index"], sort=False)["value"].mean().reset_index()
    mean[["format", "share"]] = mean.pop("metric").str.rsplit("_", n=1, expand=True).to_numpy()
    table = mean.pivot_table(index=[*KEYS, "direction", "format", "layer_index"], columns="share", values="value")
    table = table.reset_index().rename_axis(columns=None)
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
    named = [(f"{row.activation} ({row.init})", row) for row in records(limits)]
    kept = [f"{name} at {row.loss_scale:.0f}" for name, row in named if row.saved == row.networks]
    lost = [name for name, row in named if row.saved == 0]
    answers = [
        None if row.networks < FEWEST or 0 < row.saved < row.networks else bool(row.saved) for row in records(limits)
    ]
    asked = {("configurations",): stats.coverage(len(kept), len(limits), 0.5)}
    share = Question.of("saved", ("pooled",), asked, label="all {pooled}", reference="half", counted="configurations")
    yield share.table()
    verdict = share.verdict(
        SAVED, lambda _: None, unit="share of configurations",
        why=f"at depth {limits['depth'].max()} a loss scale saves {enumerated(kept, 9) or 'none'}; beyond saving are "
        f"{enumerated(lost, 9) or 'none'}, where each scale leaves gradients at zero or makes others overflow",
        method=f"exact fractions from exponent histograms; a configuration is saved where for each of its networks a "
        f"power of two up to 2^{max(SCALES)} leaves no layer with more than {LOST:.0%} of its gradients at zero, and "
        "none at infinity; exact binomial interval",
    )  # fmt: skip
    yield replace(verdict, status=Status(stats.combine(answers)))
    default = limits[(limits["init"] == "default") & np.isfinite(limits["float16_backward"])]
    if len(default):
        left = ", ".join(f"{row.float16_backward:.0f} ({row.activation})" for row in records(default))
        yield (
            f"In a network of {default['depth'].max()} layers at PyTorch's default initialization, on real digits, "
            f"gradients have left float16 this many layers below the output: {left}; a loss scale saves "
            f"{(default['saved'] == default['networks']).sum()} of these {len(default)} configurations."
        )


@drawing.figure(
    "float16_underflow", "How many of a deep network's gradients float16 rounds to zero",
    lambda overflow: "Gradients of the cross-entropy of a batch of real digits, as float16 would hold them without "
    f"loss scaling; mean over seeds, depth {overflow['depth'].max()}. The gradient enters at the last layer. Exact "
    "zeros are not counted. GELU has no critical sigma_w at a stable fixed point without biases.",
)  # fmt: skip
def underflow(overflow: pd.DataFrame) -> Any:
    """Share of gradients that float16 rounds to zero, layer by layer."""
    own = overflow[(overflow["direction"] == "backward") & (overflow["format"] == "float16")]
    axes = {"ylabel": "share rounded to zero", "ylim": (-0.03, 1.03)}
    return drawing.panels(own, "activation", drawing.lines, by="init", x="layer_index", y="under", axes=axes)


PART = Part(
    "overflow", (SAVED,), SIZES, grids, run, analyse, (underflow,), """
**Number formats.** One mini-batch of real digits; exponent histograms of every hidden layer's activations and of the
cross-entropy's gradients with respect to them give the exact shares that a format loses at any power-of-two loss scale.
""",
)  # fmt: skip
