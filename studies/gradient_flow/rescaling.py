"""One layer multiplied by alpha, the next divided by it: what stays the same and what does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from depthgauge import data, models, theory
from depthgauge.frames import only, params_of, records
from depthgauge.parts import Answer, verdict_on
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

ROUNDING = 64  # a change of the output of up to so many roundings of the format is none


def run_rescaling(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Three hidden layers on real digits; the first times alpha, the second divided by it."""
    digits = data.load("mnist5k").train
    for case in cases:
        dtype, alpha = getattr(torch, case.text("format")), 10.0 ** case.integer("log10_alpha")
        model = models.build(
            "mlp",
            depth=3,
            width=case.integer("width"),
            activation=theory.activation(case.text("activation")).module(),
            init="he",
            seed=case.random_seed("activation", "seed"),
        )
        model.to(context.device, dtype)
        x, y = digits.x[:64].to(context.device, dtype), digits.y[:64].to(context.device)
        before, gradient_before = _output_and_gradient(model, x, y)
        (_, first), (_, second), *_ = models.layers(model)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.mul_(alpha)
            next(second.parameters()).div_(alpha)  # its weight; its bias stays
        after, gradient_after = _output_and_gradient(model, x, y)
        change = float((after - before).norm() / before.norm())
        yield case.rows("function_change", change if math.isfinite(change) else math.inf)
        yield case.rows(
            "log_gradient_ratio", math.log(gradient_after / gradient_before) if gradient_after else -math.inf
        )


def _output_and_gradient(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Outputs, in float64, and the norm of the first layer's weight gradient."""
    model.zero_grad()
    output = model(x)
    torch.nn.functional.cross_entropy(output.float(), y).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    gradient = next(model.parameters()).grad
    assert gradient is not None
    return output.detach().double(), float(gradient.double().norm())


def analyse_rescaling(rows: pd.DataFrame) -> Answer:
    """N08: which networks compute the same function after their layers were rescaled, and which still train alike."""
    keys = ["activation", "format", "log10_alpha"]
    params = params_of(rows, *keys)
    params["change"] = only(rows, "function_change")
    params["gradient"] = only(rows, "log_gradient_ratio")
    table = (
        params.groupby(keys, sort=False)
        .agg(seeds=("change", "size"), change=("change", "max"), log_gradient_ratio=("gradient", "mean"))
        .reset_index()
    )
    epsilon = table["format"].map(lambda name: float(torch.finfo(getattr(torch, name)).eps))
    table["same"] = table["change"] <= ROUNDING * epsilon
    same, other = table[table["same"]], table[~table["same"]]
    status = Status.HOLDS if other.empty else Status.FAILS if same.empty else Status.DEPENDS
    single = table[(table["format"] == "float32") & (table["log10_alpha"] == table["log10_alpha"].min())]
    kept = [row.activation for row in records(single) if row.same]
    lost = [f"{row.activation} (by {row.change:.0%})" for row in records(single) if not row.same]
    left = sorted({f"{r.format} at alpha = 1e{r.log10_alpha:.0f}" for r in records(other) if r.activation in kept})
    worst = single.loc[single["change"].idxmax()]
    return Answer(
        {"rescaling": table},
        (
            verdict_on(
                "N08",
                status,
                "multiplying one layer by alpha and the next by 1/alpha leaves the function of "
                f"{', '.join(kept) or 'none'}, and changes that of {', '.join(lost) or 'none'}"
                + (f"; even the former lose it in {', '.join(left)}" if left else "")
                + f"; at alpha = 1e{single['log10_alpha'].iloc[0]:.0f} the first layer's gradient of "
                f"{single['activation'].iloc[0]} changes by a factor "
                f"{math.exp(single['log_gradient_ratio'].iloc[0]):.2g}",
                observed=float(worst["change"]), predicted=0.0, unit="relative change of the output",
                n=int(worst["seeds"]),
                method=f"largest change over seeds, against {ROUNDING:g} roundings of the format; the figure is "
                f"{worst['activation']}'s in float32 at alpha = 1e{worst['log10_alpha']:.0f}",
            ),
        ),
    )  # fmt: skip
