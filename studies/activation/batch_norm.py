"""Growth of the gradient under batch normalization, by activation and batch size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, models, replicas, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.models.activations import FEW, make, once, phi
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question
from depthgauge.studies.activation import field
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

GROWTH = Claim(
    "activation/batch_norm",
    "the growth of the gradient under batch normalization follows from activation and batch size",
)

MARGIN = 0.1  # ln a layer
CONFIDENCE = 0.99  # of the family of all comparisons with theory
SIZES = sizes(
    "activations width networks batches", quick=(FEW, 256, 13, (8, 32)), standard=(FEW, 512, 15, (6, 8, 16, 32, 128)),
    full=(FEW, 1024, 20, (6, 8, 16, 32, 128, 512)), tiny=(("relu", "tanh"), 16, 6, (8, 16)),
)  # fmt: skip


def grids(activations: tuple[str, ...], width: int, networks: int, batches: tuple[int, ...]) -> Iterator[Grid]:
    """Every activation at every batch size."""
    yield Grid({"activation": activations, "batch": batches}, {"width": width, "depth": 8}, networks, chunk=64)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Second moment of the gradient at every layer of MLPs with batch normalization, from PyTorch's own weights."""
    shared = cases[0]
    width, batch = shared.integer("width"), shared.integer("batch")
    template = models.build(
        "mlp", depth=shared.integer("depth"), width=width, activation=make(shared.text("activation")), norm="batch",
        input_shape=(width,), classes=width,
    )  # fmt: skip
    seeds = [case.random_seed("seed", "width", "depth") for case in cases]
    stack = replicas.stack(template, seeds, device=context.device)
    draws = field.draws(shared.random_seed("width", "batch"), batch, width, torch.float32)
    yield from field.gradients(cases, stack, *draws)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth a layer against theory, at every batch size."""
    params = params_of(once(rows), "activation", "spec", "batch").astype({"batch": int})
    params["growth"] = np.exp(field.growths(rows))
    against: dict[str, Any] = {"log": True, "margin": float(np.exp(MARGIN)), "confidence": CONFIDENCE}
    asked = {}
    for (name, spec, batch), nets in groups(params, ["activation", "spec", "batch"]):
        predicted = theory.batch_norm_growth(phi(spec), int(batch))
        asked[name, int(batch)] = stats.against(nets["growth"].to_numpy(), predicted, **against)
    label = "{activation} at batch {batch}"
    question = Question.of("batch_norm", ("activation", "batch"), asked, label=label, counted="networks")
    yield question.table()
    specs = dict(zip(params["activation"], params["spec"], strict=True))
    at = itertools.product(specs.items(), (4, 5, 6, 8, 11, 16, 23, 32, 64, 128, 256))
    lines = [(name, batch, theory.batch_norm_growth(phi(spec), batch)) for (name, spec), batch in at]
    yield "batch_norm_lines", pd.DataFrame(lines, columns=["activation", "batch", "predicted"])
    yield question.prediction(GROWTH, "growths a layer", within=f"{MARGIN:.0%} (ln)", unit="times a layer")
    relu = {batch: c for (name, batch), c in question.members.items() if name == "relu"}
    if len(relu) > 1:
        growth = {batch: f"{relu[batch].effect.value:.2g}" for batch in (min(relu), max(relu))}
        yield Sentence(
            "Under batch normalization a ReLU layer multiplies the squared gradient by "
            f"{' and by '.join(f'{factor} at batch {batch}' for batch, factor in growth.items())}.",
            claims=(GROWTH.id,),
        )


@drawing.figure(
    "batch_norm", "Batch normalization makes gradients explode with depth, and the smaller the batch, the faster",
    lambda batch_norm, _: "Factor by which Linear, BatchNorm and activation multiply the squared gradient: mean over "
    f"{batch_norm['n'].min()} networks, {100 * CONFIDENCE:g} % intervals that hold at once. Dashed: theory at infinite "
    "width, from batch 4; at 3 the mean is infinite.",
)  # fmt: skip
def draw_growth(batch_norm: pd.DataFrame, batch_norm_lines: pd.DataFrame) -> Any:
    """Growth a layer against batch size."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "growth a layer"}
    look: dict[str, Any] = {"at": "batch", "by": "activation", "theory": batch_norm_lines, "axes": axes}
    return drawing.panels(batch_norm, "", drawing.estimates, **look)


METHOD = "**Batch normalization.** Growth against `theory.batch_norm_growth`, at any batch size and infinite width."
PART = Part("batch_norm", (GROWTH,), SIZES, grids, run, analyse, (draw_growth,), METHOD)
