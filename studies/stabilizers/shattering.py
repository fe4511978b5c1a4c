"""Gradients at unrelated inputs: how fast depth makes them strangers, with and without shortcuts and normalization."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthgauge import drawing, stats, theory
from depthgauge.frames import by_case, groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.theory.shattering import BLOCKS
from depthgauge.verdict import Claim, Sentence

Floats = NDArray[np.float64]
EXPONENTIAL = Claim(
    "stabilizers/shattering", "the gradients of a ReLU network at two inputs lose their correlation exponentially with "
    "depth, unless it has skip connections",
)  # fmt: skip
PREDICTED = Claim(
    "stabilizers/shattering_theory", "theory predicts how the correlation of the gradients at two inputs falls by depth"
)
DEPTHS = (1, 2, 4, 8, 16, 32)
PROBED = 4  # exponential: the correlation at twice this depth is the square of that at this depth
SQUARE = 0.1  # that ratio within 10 % of 1: as far as the square of a power of depth, or of a slower law, is from it
MARGIN = 0.1  # relative: a mean correlation closer to theory than this is the predicted one
JUDGED = {"batch-norm": 8}  # deepest layer held against theory: beyond, the correlation is less than its own scatter
LEAST = 16  # or the deepest with that many units a layer: what theory leaves out grows as depth over width
PAIRED = 16  # inputs whose gradients are compared
NAMES = {"plain": "plain", "batch-norm": "batch norm", "skip": "skips", "skip-norm": "skips and layer norm"}
EXPECTED = {"plain": True, "batch norm": True, "skips": False, "skips and layer norm": False}
SIZES = sizes("width seeds inputs", quick=(96, 12, 96), standard=(256, 40, 256), full=(384, 60, 384), tiny=(16, 6, 20))


def grids(width: int, seeds: int, inputs: int) -> Iterator[Grid]:
    """Every kind of block."""
    yield Grid({"block": BLOCKS}, {"width": width, "inputs": inputs}, seeds, together=("seed",), chunk=4)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Mean correlation over pairs of inputs of the whole Jacobians, by depth; every output counts alike."""
    for case in cases:
        draws = generator(case.random_seed("seed", "width"), Purpose.WEIGHTS)  # of all blocks: paired
        given = generator(case.random_seed("seed", "width"), Purpose.INPUTS)
        x = torch.randn(case.integer("inputs"), case.integer("width"), generator=given, dtype=torch.float64)
        for depth, value in _correlations(x.to(context.device), case.text("block"), draws):
            yield case.rows("correlation", value, layer_index=depth)


def _correlations(x: Tensor, block: str, draws: torch.Generator) -> Iterator[tuple[int, float]]:
    width = x.shape[1]
    jacobians = torch.eye(width, dtype=x.dtype, device=x.device).expand(PAIRED, width, width)
    for layer in range(1, max(DEPTHS) + 1):
        weight = torch.randn(width, width, generator=draws, dtype=x.dtype).to(x) * math.sqrt(2 / width)
        normed, back = _normalized(x, jacobians, block)
        on = (normed > 0).to(x.dtype)
        branch = weight @ (on[:PAIRED, :, None] * back)
        shortcut = block.startswith("skip")
        x = (x if shortcut else 0) + (normed * on) @ weight.T
        jacobians = jacobians + branch if shortcut else branch
        if layer in DEPTHS:
            flat = torch.nn.functional.normalize(jacobians.flatten(1))
            pairs = (flat @ flat.T)[~torch.eye(len(flat), dtype=torch.bool, device=x.device)]
            yield layer, float(pairs.mean())


def _normalized(x: Tensor, jacobians: Tensor, block: str) -> tuple[Tensor, Tensor]:
    """What goes into the activation, and its derivative by the first input; a batch's statistics are held fixed."""
    if block == "batch-norm":
        deviation = x.std(0, correction=0)
        return (x - x.mean(0)) / deviation, jacobians / deviation[:, None]
    if block == "skip-norm":
        deviation = x.std(1, correction=0, keepdim=True)
        out = (x - x.mean(1, keepdim=True)) / deviation
        first = out[: len(jacobians), :, None]
        back = jacobians - jacobians.mean(1, keepdim=True) - first * (first * jacobians).mean(1, keepdim=True)
        return out, back / deviation[: len(jacobians), :, None]
    return x, jacobians


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Correlations by depth against theory's, and whether doubling the depth squares them."""
    params = params_of(rows, "block", "width")
    wide = by_case(rows, "correlation")
    squares, ratios, lines = {}, {}, []
    for block, networks in groups(params, "block"):
        law = predicted(block)
        own = wide.loc[networks.index]
        both = own[2 * PROBED].to_numpy(), own[PROBED].to_numpy()
        squares[NAMES[block],] = stats.against(stats.pseudo_values(_over_square, *both), 1.0, margin=SQUARE)
        deepest = min(JUDGED.get(block, max(DEPTHS)), int(networks["width"].max()) // LEAST)
        for depth in DEPTHS:
            measured = stats.mean(own[depth].to_numpy())
            lines.append({
                "block": NAMES[block], "depth": depth, "n": len(own), "value": measured.value,
                "low_95": measured.low, "high_95": measured.high, "predicted": law[depth],
            })  # fmt: skip
            if depth <= deepest:
                ratio = (own[depth] / law[depth]).to_numpy()
                ratios[NAMES[block], depth] = stats.against(ratio, 1.0, margin=MARGIN, confidence=0.99)
    yield "shattering", pd.DataFrame(lines)
    question = Question.of(
        "shattering_law", ("block",), squares, label="{block}", reference="an exponential law", counted="networks",
    )  # fmt: skip
    theirs = Question.of(
        "shattering_theory", ("block", "depth"), ratios, label="{block} at depth {depth}", counted="networks"
    )
    yield question.table()
    yield theirs.table()
    yield from _answers(question)
    yield theirs.prediction(PREDICTED, "correlations", within=f"{MARGIN:.0%}", unit="measured over predicted")


def _over_square(twice: Floats, at: Floats) -> float:
    return float(twice.mean() / at.mean() ** 2)


def _answers(question: Question) -> Iterator[Answer]:
    found = question.read(agrees)
    answers = {name: None if found[name] is None else found[name] == EXPECTED[name] for name in question.read(agrees)}
    halved = ", ".join(f"{c.effect.value:.3g} ({name[0]})" for name, c in question.members.items())
    yield question.verdict(
        EXPONENTIAL, answers, unit="correlation at twice the depth over the square of that at the depth",
        why=f"from depth {PROBED} to {2 * PROBED} the correlation falls to {halved} times its square, where an "
        "exponential law has 1",
        method=f"mean over networks of the correlation at depth {2 * PROBED} over the squared mean at depth {PROBED}, "
        f"by the jackknife, as both are measured; within {SQUARE:.0%} of 1: exponential; slower laws fall less. True "
        "of networks without skips where it is exponential, and of those with skips where it is not",
    )  # fmt: skip
    if {("plain",), ("batch norm",)} <= set(question.members) and found["plain"] is False and found["batch norm"]:
        yield Sentence(
            "In a plain ReLU network of He's weights the gradients at two inputs part as a power of depth, as inputs "
            "grow alike; with batch normalization, which keeps inputs apart, they part exponentially.",
            figure="shattering", claims=(EXPONENTIAL.id,),
        )  # fmt: skip


def predicted(block: str) -> np.ndarray[Any, Any]:
    """Theory's correlation after 0 .. the greatest depth, from orthogonal inputs."""
    kind = next(each for each in BLOCKS if each == block)
    return theory.gradient_correlation("relu", math.sqrt(2), depth=max(DEPTHS), block=kind)


@drawing.figure(
    "shattering", "How the correlation of the gradients at two inputs falls with depth",
    lambda shattering: f"ReLU, weights of variance 2 / width; mean of {shattering['n'].min()} networks, 95 % "
    f"intervals, all pairs of {PAIRED} inputs. Dashed: theory at infinite width. What lies below the panel cannot be "
    "told from 0.",
)  # fmt: skip
def draw_shattering(shattering: pd.DataFrame) -> Any:
    """Correlation over depth, a line a kind of block."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "correlation of gradients", "ylim": (1e-3, 1.2)}
    shown = shattering[shattering["value"] > 1e-3]
    return drawing.panels(shown, "", drawing.estimates, at="depth", by="block", axes=axes)


METHOD = f"""**Shattered gradients.** Square networks at initialization, {PAIRED} of many independent normal inputs; the
correlation of two Jacobians of the last layer by the first pre-activations is the mean correlation of the gradients of
all its functions (Balduzzi et al. 2017). Batch normalization's statistics are those of all inputs and held fixed in the
derivative. Theory: `theory.gradient_correlation`."""
PART = Part(
    "shattering", (EXPONENTIAL, PREDICTED), SIZES, grids, run, analyse, (draw_shattering,), METHOD
)  # fmt: skip
