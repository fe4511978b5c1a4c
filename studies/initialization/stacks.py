"""Residual stacks at initialization: how the stream grows, by block order and by the factor on the branch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from depthgauge import drawing, initialization, models, stats, theory
from depthgauge.frames import by_case, groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.theory.residual import Order
from depthgauge.verdict import Claim, Sentence

RESIDUAL = Claim(
    "initialization/residual",
    "the signal of a residual stack grows by exactly the factor that block order and branch scaling predict",
)

SIGMA_W = 2**0.5
INPUTS = 16
MARGIN = 0.05  # ln a block: growth closer to the prediction than this is called the same
CONFIDENCE = 0.99
ORDERS: Mapping[tuple[str, str], Order] = {
    ("pre", "none"): "pre", ("post", "none"): "post", ("pre", "layer"): "pre-norm",
}  # fmt: skip
EXPONENTS = {"1": 0.0, "1/sqrt(L)": -0.5}  # of the number of blocks, in the factor on the branch
FORMULAS = {"pre": "x + s W relu(x)", "post": "relu(x) + s W relu(x)", "pre-norm": "x + s W relu(norm(x))"}
SIZES = sizes("seeds width blocks", quick=(20, 128, 32), standard=(40, 200, 32), full=(60, 400, 32), tiny=(5, 8, 3))


def grids(seeds: int, width: int, blocks: int) -> Iterator[Grid]:
    """Every order of a block, with and without a factor on its branch."""
    for order, norm in ORDERS:
        fixed: dict[str, Value] = {"order": order, "norm": norm, "blocks": blocks, "width": width}
        yield Grid({"branch": tuple(EXPONENTS)}, fixed, seeds, together=("branch", "seed"), chunk=64)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Growth of ln second moment from the first layer to every sum; Gaussian inputs of second moment 1, float64."""
    for case in cases:
        blocks, width = case.integer("blocks"), case.integer("width")
        seed = case.random_seed("seed", "width")
        model = models.build(
            "mlp", input_shape=(width,), width=width, depth=blocks + 1, classes=2, bias=False, seed=seed,
            residual=float(blocks) ** EXPONENTS[case.text("branch")], order=case.text("order"), norm=case.text("norm"),
            init=initialization.gaussian(SIGMA_W),
        )  # fmt: skip
        inputs = torch.randn(INPUTS, width, generator=generator(seed, Purpose.INPUTS), dtype=torch.float64)
        logs = _log_moments(model.double().to(context.device), inputs.to(context.device))
        yield case.rows("log_growth", logs - logs[0], layer_index=np.arange(len(logs)))


def _log_moments(model: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Mean over the inputs of ln second moment, at the first layer's output and after every join."""
    logs: list[float] = []

    def record(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        logs.append(float(output.square().mean(1).log().mean()))

    first, *blocks = model.get_submodule("hidden").children()
    for place in (first.get_submodule("linear"), *(block.get_submodule("join") for block in blocks)):
        place.register_forward_hook(record)
    with torch.no_grad():
        model(inputs)
    return np.array(logs)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Growth by block, measured and predicted, for every order and factor."""
    params = params_of(rows, "order", "norm", "branch", "blocks", "width")
    lines = by_case(rows, "log_growth")
    rates: dict[tuple[Any, ...], stats.Comparison] = {}
    profiles = []
    for (order, norm, branch, blocks, width), networks in groups(params, list(params.columns)):
        kind, scale = ORDERS[order, norm], float(blocks) ** EXPONENTS[branch]
        law = np.log(theory.residual_trajectory("relu", SIGMA_W, scale, int(blocks), order=kind, q_0=SIGMA_W**2))
        law -= law[0]
        values = lines.loc[networks.index].dropna(axis=1, how="all").to_numpy()
        columns = {
            "block_order": FORMULAS[kind], "branch": f"s = {branch}", "width": int(width), "n": len(values),
            "block": np.arange(len(law)), "predicted": law / math.log(10), **stats.band(values / math.log(10)),
        }  # fmt: skip
        profiles.append(pd.DataFrame(columns))
        rates[FORMULAS[kind], branch] = stats.against(
            values[:, -1] / int(blocks), law[-1] / int(blocks), margin=MARGIN, confidence=CONFIDENCE
        )
    question = Question.of("residual_rates", ("block_order", "branch"), rates, label="{block_order} with s = {branch}")
    yield question.table()
    yield "residual", pd.concat(profiles, ignore_index=True)
    yield question.prediction(RESIDUAL, "growth rates", within=f"{MARGIN:g} a block", unit="ln a block")
    yield from sentences(question, int(params["blocks"].max()))


def sentences(rates: Question, blocks: int) -> Iterator[Sentence]:
    """Growth over the whole stack, with a factor on the branch and without; the geometric mean over seeds."""
    for order, words in (("pre", "without a norm"), ("pre-norm", "with layer norm")):
        growth = {key[1]: c.effect.value for key, c in rates.where(block_order=FORMULAS[order]).members.items()}
        if set(EXPONENTS) <= set(growth):
            plain, scaled = (f"{math.exp(growth[branch] * blocks):.2g}" for branch in EXPONENTS)
            yield Sentence(
                f"{blocks} residual blocks of He's weights {words} multiply a signal's second moment by {plain}; with "
                f"a factor 1/sqrt({blocks}) on each branch by {scaled}.",
                "residual_growth",
                (RESIDUAL.id,),
            )


@drawing.figure(
    "residual_growth", "A factor on the branch, or a norm before it, keeps a residual stack from exploding",
    lambda residual: f"ReLU MLPs of width {residual['width'].max()}, weights N(0, 2 / n), s the factor on each of L "
    f"branches, {residual['n'].min()} seeds. Lines: median over seeds; bands: the middle 90 %; dashed: exact growth at "
    "infinite width.",
)  # fmt: skip
def plot_growth(residual: pd.DataFrame) -> Any:
    """Growth of the stream, one colour an order, one panel a factor on the branch."""
    axes = {"xlabel": "residual block", "ylabel": r"$\log_{10}$ growth of the second moment"}
    return drawing.panels(residual, "branch", drawing.profile, x="block", by="block_order", axes=axes)


METHOD = "**Residual stacks.** Predicted: `theory.residual_trajectory`, the exact factor at infinite width."
PART = Part("stacks", (RESIDUAL,), SIZES, grids, run, analyse, (plot_growth,), METHOD)
