"""Residual stacks at initialization: how the stream grows, by block order and by the factor on the branch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn

from depthgauge import initialization, models, stats, theory
from depthgauge.frames import by_case, groups, params_of
from depthgauge.parts import Answer, Tables, verdict_on
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Rows
from depthgauge.theory.residual import Order
from depthgauge.verdict import Figure, Status

SIGMA_W = 2**0.5
INPUTS = 16
MARGIN = 0.05  # ln a block: growth closer to the prediction than this is called the same
CONFIDENCE = 0.99
ORDERS: Mapping[tuple[str, str], Order] = {
    ("pre", "none"): "pre",
    ("post", "none"): "post",
    ("pre", "layer"): "pre-norm",
}
EXPONENTS = {"1": 0.0, "1/sqrt(L)": -0.5}  # of the number of blocks, in the factor on the branch
SPELLED = {"pre": "x + s W relu(x)", "post": "relu(x) + s W relu(x)", "pre-norm": "x + s W relu(norm(x))"}


def run_stacks(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
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
        found = _sums(model.double().to(context.device), inputs.to(context.device))
        yield case.rows("log_growth", found - found[0], layer_index=np.arange(len(found)))


def _sums(model: nn.Module, inputs: torch.Tensor) -> np.ndarray:
    """Mean over the inputs of ln second moment, at the first layer's output and after every join."""
    seen: list[float] = []

    def note(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(float(output.square().mean(1).log().mean()))

    count = len(list(model.get_submodule("hidden").children()))
    places = ["hidden.0.linear", *(f"hidden.{block}.join" for block in range(1, count))]
    handles = [model.get_submodule(place).register_forward_hook(note) for place in places]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return np.array(seen)


def analyse_stacks(rows: pd.DataFrame) -> Answer:
    """Growth by block, measured and predicted, for every order and factor."""
    params = params_of(rows, "order", "norm", "branch", "blocks", "width")
    lines = by_case(rows, "log_growth")
    found, comparisons, told = [], [], []
    for (order, norm, branch, blocks, width), own in groups(params, list(params.columns)):
        kind, scale = ORDERS[order, norm], float(blocks) ** EXPONENTS[branch]
        law = np.log(theory.residual_trajectory("relu", SIGMA_W, scale, int(blocks), order=kind, q_0=SIGMA_W**2))
        law -= law[0]
        values = lines.loc[own.index].dropna(axis=1, how="all").to_numpy()
        low, high = np.quantile(values, (0.05, 0.95), axis=0)
        found.append(
            pd.DataFrame(
                {
                    "order": kind, "branch": branch, "width": int(width), "block": np.arange(len(law)),
                    "growth": values.mean(0), "low": low, "high": high, "predicted": law, "n": len(values),
                }
            )
        )  # fmt: skip
        rate = values[:, -1] / int(blocks)
        comparisons.append(stats.against(rate, law[-1] / int(blocks), margin=MARGIN, confidence=CONFIDENCE))
        told.append((kind, branch, law[-1]))
    family = stats.together(comparisons)
    answers = [{"equivalent": True, "different": False}.get(str(member.answer)) for member in family]
    at = int(np.argmax([abs(member.effect.value - member.reference) for member in family]))
    worst, (kind, branch, _) = family[at], told[at]
    verdict = verdict_on(
        "initialization/residual", Status(stats.combine(answers)),
        f"{answers.count(True)} of {len(family)} growth rates lie within {MARGIN:g} of the exact factor; furthest is "
        f"{SPELLED[kind]} with s = {branch}",
        observed=worst.effect.value, low=worst.effect.low, high=worst.effect.high, predicted=worst.reference,
        unit="ln of the second moment a block", n=worst.effect.n,
        method=f"t test over seeds of the mean rate against theory, equivalence margin {MARGIN:g}, Holm over "
        f"{len(family)} at {CONFIDENCE:.0%}; the figure is the furthest from theory",
    )  # fmt: skip
    return Answer({"residual": pd.concat(found, ignore_index=True)}, (verdict,), tuple(_sentences(told, params)))


def _sentences(told: Sequence[tuple[str, str, float]], params: pd.DataFrame) -> Iterator[str]:
    ends = {(kind, branch): end for kind, branch, end in told}
    if {("pre", "1"), ("pre", "1/sqrt(L)"), ("pre-norm", "1")} <= set(ends):
        yield (
            f"Over {int(params['blocks'].max())} residual blocks x + W relu(x) with He's weights the signal's second "
            f"moment grows by {math.exp(ends['pre', '1']):.2g}; with the branch over sqrt(L) by "
            f"{math.exp(ends['pre', '1/sqrt(L)']):.2f}, and by {math.exp(ends['pre-norm', '1']):.2g} with a norm "
            "before each branch."
        )


def plot_stacks(tables: Tables) -> Iterator[Figure]:
    """Growth of the stream, one colour an order, one panel a factor on the branch."""
    if "residual" not in tables:
        return
    table = tables["residual"]
    branches = list(dict.fromkeys(table["branch"]))
    canvas, axes = plt.subplots(1, len(branches), figsize=(9.6, 4.4), squeeze=False)
    shades = {"pre": "C1", "post": "C3", "pre-norm": "C0"}
    for axis, branch in zip(axes[0], branches, strict=True):
        for order, shade in shades.items():
            own = table[(table["branch"] == branch) & (table["order"] == order)]
            to = 1 / math.log(10)
            axis.fill_between(own["block"], own["low"] * to, own["high"] * to, color=shade, alpha=0.25, lw=0)
            axis.plot(own["block"], own["growth"] * to, color=shade, marker="o", ms=3.4, lw=0)
            axis.plot(own["block"], own["predicted"] * to, color=shade, lw=1.3, label=SPELLED[order])
        axis.set(xlabel="residual block", title=f"s = {branch}")
    axes[0, 0].set_ylabel("log10 growth of the second moment")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3)
    yield Figure(
        "residual_growth", canvas,
        "How the signal of a residual stack grows, by block order and by the factor s on the branch",
        f"ReLU MLPs of width {table['width'].max()}, weights N(0, 2 / n), {table['n'].min()} seeds. Points: mean over "
        "seeds; bands: middle 90 %; lines: exact growth at infinite width.",
    )  # fmt: skip
