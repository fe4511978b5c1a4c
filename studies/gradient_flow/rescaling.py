"""One layer multiplied by alpha, the next divided by it: what stays the same and what does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from depthgauge import data, models, theory
from depthgauge.frames import only, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import enumerated, judged
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

RESCALED = Claim(
    "N08",
    "the range of the numbers does not affect what a network can express (rescaling the layers leaves the function)",
)
ROUNDING = 64  # a change of the output of up to so many roundings of the format is none
SAME = "the same function"
KEYS = ["activation", "format", "log10_alpha"]
SIZES = sizes("width", quick=(128,), standard=(128,), full=(128,), tiny=(8,))


def grids(width: int) -> Iterator[Grid]:
    """Homogeneous activations and others, in two formats."""
    activations, alphas = ("relu", "linear", "tanh", "sigmoid", "gelu"), (1, 3, 6)
    varied = {"activation": activations, "format": ("float16", "float32"), "log10_alpha": alphas}
    yield Grid(varied, {"width": width}, seeds=5, together=(*KEYS, "seed"), chunk=200)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Three hidden layers on real digits; the first times alpha, the second divided by it."""
    digits = data.load("mnist5k").train
    for case in cases:
        dtype, alpha = getattr(torch, case.text("format")), 10.0 ** case.integer("log10_alpha")
        phi = theory.activation(case.text("activation")).module()
        width, seed = case.integer("width"), case.random_seed("activation", "seed")
        model = models.build("mlp", depth=3, width=width, activation=phi, init="he", seed=seed)
        model = model.to(context.device, dtype)
        x, y = digits.x[:64].to(context.device, dtype), digits.y[:64].to(context.device)
        before, gradient_before = _output_and_gradient(model, x, y)
        (_, first), (_, second), *_ = models.layers(model)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.mul_(alpha)
            next(second.parameters()).div_(alpha)  # its weight; its bias stays
        after, gradient_after = _output_and_gradient(model, x, y)
        change = float((after - before).norm() / before.norm())
        ratio = math.log(gradient_after / gradient_before) if gradient_after else -math.inf
        yield case.rows("function_change", change if math.isfinite(change) else math.inf)
        yield case.rows("log_gradient_ratio", ratio)


def _output_and_gradient(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Outputs, in float64, and the norm of the first layer's weight gradient."""
    output = model(x)
    loss = torch.nn.functional.cross_entropy(output.float(), y)
    (gradient,) = torch.autograd.grad(loss, next(model.parameters()))
    return output.detach().double(), float(gradient.double().norm())


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """N08: which networks compute the same function after their layers were rescaled, and which still train alike."""
    params = params_of(rows, *KEYS).astype({"log10_alpha": int})
    params = params.assign(change=only(rows, "function_change"), gradient=only(rows, "log_gradient_ratio"))
    measured = {"n": ("change", "size"), "value": ("change", "max"), "log_gradient_ratio": ("gradient", "mean")}
    table = params.groupby(KEYS, sort=False).agg(**measured).reset_index()
    roundings = table["format"].map(lambda name: ROUNDING * float(torch.finfo(getattr(torch, name)).eps))
    table["answer"] = (table["value"] <= roundings).map({True: SAME, False: "another function"})
    yield "rescaling", table
    yield from rescaled(table)


def rescaled(table: pd.DataFrame) -> Iterator[Answer]:
    """The verdict on N08, and the largest change at the least alpha: in float32, where it was measured."""
    least = table["log10_alpha"].min()
    in_float32 = (table["format"] == "float32") & (table["log10_alpha"] == least)
    single = table[in_float32] if in_float32.any() else table
    kept = list(single.loc[single["answer"] == SAME, "activation"])
    others = single[single["answer"] != SAME]
    changed = [f"{row.activation} (by {row.value:.2g})" for row in records(others)]
    lost = table[(table["answer"] != SAME) & table["activation"].isin(kept)]
    left = enumerated(f"{row.format} at alpha = {10**row.log10_alpha:,}" for row in records(lost))
    worst, first = max(records(single), key=lambda row: row.value), single.iloc[0]
    yield judged(
        RESCALED, (answer == SAME for answer in table["answer"]),
        "multiplying one layer by alpha and the next by 1/alpha leaves the function of "
        f"{enumerated(kept) or 'none'}, and changes that of {enumerated(changed) or 'none'}"
        + (f"; even the former lose it in {left}" if left else "")
        + f"; at alpha = {10**least:,} the first layer's gradient of {first['activation']} changes by a factor of "
        f"{math.exp(first['log_gradient_ratio']):.2g}",
        observed=worst.value, predicted=0.0, unit="relative change of the output", n=worst.n, table="rescaling",
        answer=worst.answer, reference="unchanged",
        condition=f"{worst.activation} in {worst.format} at alpha = {10**worst.log10_alpha:,}",
        says=says(kept, list(others["activation"]), left),
        method=f"largest change over seeds; one of up to {ROUNDING:g} roundings of the format is none",
    )  # fmt: skip
    if kept and len(others):
        yield Sentence(
            f"Multiplying one layer by {10**least:,} and dividing the next by it leaves the output of a {kept[0]} "
            f"network as it was, and changes the output of a {worst.activation} network by up to {worst.value:.0%}.",
            claims=(RESCALED.id,),
        )


def says(kept: list[str], changed: list[str], rounded: str) -> str:
    """For which activations the function stays, but for the rounding of some format."""
    words = (f"true for {enumerated(kept)}" * bool(kept), f"false for {enumerated(changed)}" * bool(changed))
    return "; ".join(filter(None, (*words, f"rounding breaks it in {rounded}" * bool(rounded))))


METHOD = """**Rescaling.** One layer is multiplied by alpha, the next divided by it; a function is the same within 64
roundings."""
PART = Part("rescaling", (RESCALED,), SIZES, grids, run, analyse, method=METHOD)
