"""Variance and layer norm by the ratio of mean and standard deviation: what each formula loses in each format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from depthgauge import drawing, formats, stats, summation, theory
from depthgauge.frames import groups, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.stats.trend import FEWEST_POINTS
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.theory.summation import unit_roundoff
from depthgauge.verdict import Claim, Sentence

GROWTH = Claim(
    "precision/variance",
    "the relative error of a variance grows as (mean / std)^2 in one pass over the data, and not at all in two",
)
LAW = Claim("precision/variance_law", "format, mean and std tell the size of a variance's rounding error in advance")
WELFORD = Claim("precision/welford", "Welford's update of a variance loses no accuracy to the mean")
LIBRARY = Claim("precision/layer_norm", "torch's variance and layer norm lose no accuracy to the mean")

FORMATS = ("float16", "bfloat16", "float32")
PASSES, OWN = ("one-pass", "two-pass"), ("torch.var", "layer_norm")
FORMULAS = (*summation.FORMULAS, *OWN)
EXPONENTS = {"one-pass": 2.0, "two-pass": 0.0, "welford": 0.0, **dict.fromkeys(OWN, 0.0)}
SIZE = 4.0  # of the largest numbers: sums of squares do not overflow float16
EARLY = 0.25  # times 1 / sqrt(u): ratios below are asked about; beyond, one pass has lost all, and two some
LATE = 8  # ratios from here on are asked of Welford's update; below, the errors of its sum hide that of its mean
MARGIN = 0.25  # of an exponent
FACTOR = 1.25  # errors within this factor of the law are the law's
AT = 64  # standard deviations, of the mean of the sentences
KEYS = ["formula", "format"]
LABEL = "{formula} in {format} at mean / std = {ratio:g}"
SIZES = sizes("features rows ratios seeds", quick=(256, 128, 11, 8), standard=(1024, 128, 12, 16),
              full=(4096, 128, 12, 20), tiny=(16, 8, 6, 5))  # fmt: skip


def grids(features: int, rows: int, ratios: int, seeds: int) -> Iterator[Grid]:
    """Every formula in every format; formulas of one format and seed have the same numbers."""
    varied, fixed = {"format": FORMATS, "formula": FORMULAS}, {"features": features, "rows": rows, "ratios": ratios}
    yield Grid(varied, fixed, seeds, ("formula",), len(FORMULAS))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Errors against float64, by ratio, root mean square over many rows; those of layer norm are its outputs'."""
    fmt, features, rows = cases[0].text("format"), cases[0].integer("features"), cases[0].integer("rows")
    ratios = [2**k for k in range(cases[0].integer("ratios")) if 2**k <= 0.25 / unit_roundoff(fmt)]
    draws = generator(cases[0].random_seed("format", "seed"), Purpose.OPERANDS)
    spread = torch.tensor([SIZE / (1 + ratio) for ratio in ratios])[:, None]
    x = spread * (torch.tensor(ratios)[:, None] + torch.randn(features, len(ratios), rows, generator=draws))
    x = formats.round(x, fmt).reshape(features, -1)
    exact = x.double().var(0, correction=0)
    for case in cases:
        formula = case.text("formula")
        if formula == "layer_norm":
            norm, reference = normed(x.to(context.device, getattr(torch, fmt))), normed(x.double())
            square = (norm.double().cpu() - reference).square().mean(0)
        else:
            square = ((variance(x, fmt, formula, context.device) - exact) / exact).square()
        yield case.rows("rms", square.reshape(len(ratios), rows).mean(1).sqrt().numpy(), step=ratios)


def variance(x: Tensor, fmt: str, formula: str, device: str) -> Tensor:
    """Variances of the columns in float64, rounded step by step or by the library on the device."""
    if formula == "torch.var":
        return x.to(device, getattr(torch, fmt)).var(0, correction=0).double().cpu()
    return summation.variances(x, fmt, cast("summation.Formula", formula)).double()


def normed(x: Tensor) -> Tensor:
    """Columns by torch's layer norm, with nothing added to the variance."""
    return layer_norm(x.T.contiguous(), (len(x),), eps=0.0).T


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Exponents by the ratio, errors against the law, and Welford's update against two passes."""
    params = params_of(rows, "format", "formula", "seed", "features")
    found = rows.pivot_table("value", "case", "step", sort=False).join(params)
    growth, law, curves = {}, {}, []
    for key, own in groups(found, KEYS):
        formula, fmt = key
        u, ratios = unit_roundoff(fmt), own[[c for c in own if isinstance(c, (int, float))]].dropna(axis=1).columns
        x, lines = ratios.to_numpy(float), own[ratios].to_numpy()
        asked = x < EARLY / math.sqrt(u) if formula in PASSES else x >= LATE * (formula == "welford")
        if asked.sum() >= FEWEST_POINTS:
            slopes = stats.slopes(np.log(np.hypot(1, x[asked])), np.log(lines[:, asked])).slope
            growth[key] = stats.against(slopes, EXPONENTS[formula], margin=MARGIN)
        known = predicted(formula, fmt, int(own["features"].iloc[0]), x)
        if formula in PASSES:
            for i in np.flatnonzero(asked):
                law[*key, x[i]] = stats.against(lines[:, i], known[i], log=True, margin=FACTOR)
        at = dict(zip(KEYS, key, strict=True))
        curves.append(pd.DataFrame({**at, "ratio": x, **stats.band(lines / u, 1.0), "predicted": known / u}))
    every = pd.concat(curves, ignore_index=True)
    yield "variance_errors", every
    yield from grown(Question.of("variance_growth", KEYS, growth, label="{formula} in {format}"))
    question = Question.of("variance_law", [*KEYS, "ratio"], law, label=LABEL)
    if question:
        yield question.table()
        yield question.prediction(LAW, "errors", within=f"a factor {FACTOR:g}", unit="share of the variance")
    yield from sentences(every[every["formula"] != "layer_norm"])


def predicted(formula: str, fmt: str, features: int, ratios: np.ndarray) -> np.ndarray:
    """The law's relative error by ratio; NaN for what has none."""
    if formula not in PASSES:
        return np.full(len(ratios), math.nan)
    own, stds = cast("Literal['one-pass', 'two-pass']", formula), SIZE / (1 + ratios)
    return np.array([theory.variance_error(fmt, r * s, s, features, own) for r, s in zip(ratios, stds, strict=True)])


def grown(growth: Question) -> Iterator[Answer]:
    """The exponents of the formulas, and of what torch has."""
    if not growth:
        return
    yield growth.table()
    near = f"2 and 0, ratios below {EARLY:g} / sqrt(u)"
    for claim, formulas, of in (
        (GROWTH, PASSES, near),
        (WELFORD, ("welford",), f"0, ratios from {LATE} on"),
        (LIBRARY, OWN, "0"),
    ):
        if own := growth.where(formula=formulas):
            found = own.read(lambda comparison: f"{round(comparison.effect.value, 2) + 0:.2f}")
            yield own.verdict(
                claim, agrees, unit="power of sqrt(1 + (mean / std)^2)",
                why="errors grow as sqrt(1 + (mean / std)^2) to the power of "
                + ", ".join(f"{value} ({words})" for words, value in found.items()),
                method=f"slope of ln error by seed, against {of}, margin {MARGIN:g}",
            )  # fmt: skip


def sentences(curves: pd.DataFrame) -> Iterator[Sentence]:
    """Errors of the formulas at a mean of many standard deviations, in float16."""
    for fmt, own in groups(curves, "format"):
        near = own[own["ratio"] == min(AT, own["ratio"].max())]
        errors = {row.formula: row.median * unit_roundoff(fmt) for row in records(near)}
        if fmt == "float16" and {"one-pass", "two-pass"} <= set(errors):
            yield Sentence(
                f"At a mean of {near['ratio'].iloc[0]:g} standard deviations a float16 variance in one pass over the "
                f"data is off by {errors['one-pass']:.0%}, in two by {errors['two-pass']:.2%}.",
                claims=(GROWTH.id,),
            )


@drawing.figure(
    "variance_errors", "One pass over the data loses a variance to its mean",
    "Relative error of a variance, and error of a layer norm's outputs, in unit roundoffs u of the format. Median of "
    "the seeds; dashed: the law, which is no fit.",
)  # fmt: skip
def draw_errors(variance_errors: pd.DataFrame) -> Any:
    """Errors by ratio, a panel a format, a line a formula."""
    axes = {"xscale": "log", "yscale": "log", "xlabel": "mean / std", "ylabel": "rms error, in u"}
    form: Callable[..., None] = drawing.profile
    band = "least to greatest of the seeds"
    return drawing.panels(variance_errors, "format", form, by="formula", x="ratio", band=band, axes=axes)


METHOD = """
**Variances.** Rows of Gaussian features in the format, every result of an operation rounded to it, sums pairwise. One
pass: mean of squares minus squared mean; two passes: mean of squared deviations; Welford: mean and sum of squared
deviations updated number by number. `torch.var` and `layer_norm` are the library's on this device. Errors are against
float64 on the same numbers. One pass subtracts two numbers 1 + (mean / std)² times as large as their difference (Chan,
Golub and LeVeque 1983). The law is `theory.variance_error`.
"""
PART = Part("variances", (GROWTH, LAW, WELFORD, LIBRARY), SIZES, grids, run, analyse, (draw_errors,), METHOD)
