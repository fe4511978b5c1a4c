"""Rounding error of sums and inner products by their length, format, order and rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from depthgauge import drawing, formats, stats, summation
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below, listed, side
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.theory import summation as laws
from depthgauge.verdict import Claim, Sentence

ROOT = Claim(
    "precision/root_n", "the rounding error of a sum grows as the square root of its length, and not as the length"
)
LAW = Claim(
    "precision/sum_law",
    "format, order, and the summands' mean and spread tell the size of a sum's rounding error in advance",
)
BOUND = Claim(
    "precision/sum_bound",
    "whole sums stay within the probabilistic bound lambda sqrt(n) u as often as it announces for a single summand",
)
ORDER = Claim(
    "precision/sum_order", "pairwise and compensated sums have an error that grows more slowly than the square root"
)
STOCHASTIC = Claim(
    "precision/stochastic_sum",
    "with stochastic rounding the error of a sum never grows faster than the square root of its length",
)

STD = 0.15  # of the summands; twice that is the mean of those that have one, so that no sum here overflows
DATA: Mapping[str, float] = {"zero mean": 0.0, "nonzero mean": 2 * STD, "products": 0.0, "equal": 2 * STD}
FORMATS = ("float16", "bfloat16", "float32")
LIBRARY = "torch.matmul"
ORDERS = (*summation.METHODS, LIBRARY)
ALONE = {"stochastic", LIBRARY}  # orders whose sums depend on those beside them: of a generator, of a kernel
FIRST = 16  # shortest sum
BATCH = 32  # columns of a matrix product
MARGIN = 0.125  # of the exponent of the growth: a quarter of the way from 1/2 to 0 or 1
FACTOR = 1.25  # errors within this factor of the law are the law's
ANNOUNCED = 0.95  # chance that the probabilistic bound announces, for the roundings that one summand passes
KEYS = ["data", "format", "summation"]
LABEL = "{summation}, {data} in {format}"
SIZES = sizes("longest rows seeds", quick=(2048, 96, 8), standard=(2**14, 128, 16), full=(2**16, 128, 20),
              tiny=(64, 32, 5))  # fmt: skip


def grids(longest: int, rows: int, seeds: int) -> Iterator[Grid]:
    """Every format and order of summation; those of one format and seed add the same numbers."""
    together = len(ORDERS) * max(1, 2**24 // (longest * rows * len(DATA)))
    varied, wide = {"format": FORMATS, "summation": ORDERS}, Case.of({"format": "float32", "summation": "stochastic"})
    yield Grid(varied, {"longest": longest, "rows": rows}, seeds, ("summation", "seed"), together, without=(wide,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Errors of many sums of each kind of data against float64, root mean square by length."""
    fmt, longest, rows = cases[0].text("format"), cases[0].integer("longest"), cases[0].integer("rows")
    lengths = [2**k for k in range(int(math.log2(FIRST)), int(math.log2(longest)) + 1)]
    bound = laws.probabilistic_bound(fmt, longest - 1, confidence=ANNOUNCED)
    draws = {seed: drawn(fmt, (longest, rows), seed) for seed in {case.random_seed("format", "seed") for case in cases}}
    for order, batch in batches(cases):
        data = list(DATA)[: 4 if order == "naive" else 3]
        operands = [draws[case.random_seed("format", "seed")] for case in batch]
        a, b = (torch.cat([pairs[name][side] for pairs in operands for name in data], 1) for side in (0, 1))
        if order == LIBRARY:
            found = matmul(a, b, fmt, lengths, context.device)
        else:
            rng = generator(batch[0].random_seed("format", "seed"), Purpose.ROUNDING)
            found = summation.partial_sums(a * b, fmt, order, lengths=lengths, generator=rng).double()
        errors, reach = found - summation.exact_sums(a * b, lengths), bound * (a * b).abs().sum(0, dtype=torch.float64)
        for i, (case, name) in enumerate(itertools.product(batch, data)):
            own = errors[:, i * rows : (i + 1) * rows]
            yield case.rows("rms", own.square().mean(1).sqrt().numpy(), layer=name, step=lengths)
            yield case.rows("inside", int((own[-1].abs() <= reach[i * rows : (i + 1) * rows]).sum()), layer=name)


def batches(cases: Sequence[Case]) -> Iterator[tuple[Any, list[Case]]]:
    """Cases that are added together, by order of summation."""
    for order in dict.fromkeys(case.text("summation") for case in cases):
        own = [case for case in cases if case.text("summation") == order]
        yield from ((order, batch) for batch in ([[case] for case in own] if order in ALONE else [own]))


def drawn(fmt: str, shape: tuple[int, int], seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Two factors in the format whose products are summed, by kind of data; the second is 1 but for products."""
    operands = {}
    for data, mean in DATA.items():
        draws = generator(seed, Purpose.OPERANDS, data)
        x = torch.randn((1, shape[1]) if data == "equal" else shape, generator=draws)
        w = torch.randn(shape, generator=draws) if data == "products" else torch.ones(shape)
        operands[data] = formats.round(mean + STD * x, fmt).expand(shape), formats.round(w, fmt)
    return operands


def matmul(a: Tensor, b: Tensor, fmt: str, lengths: Sequence[int], device: str) -> Tensor:
    """The same sums by the library on the device, as the diagonals of matrix products, one for each length."""
    wide = (a.T.reshape(-1, BATCH, len(a)), b.T.reshape(-1, BATCH, len(b)))
    left, right = (value.to(device, getattr(torch, fmt)) for value in wide)
    products = (torch.matmul(left[..., :n], right[..., :n].mT).diagonal(dim1=-2, dim2=-1) for n in lengths)
    return torch.stack([product.flatten() for product in products]).double().cpu()


def predicted(data: str, fmt: str, order: str, lengths: Sequence[int]) -> np.ndarray:
    """The law's root mean square error by length; NaN where there is none."""
    if data == "equal":
        x = formats.round(DATA[data] + STD * laws.normal_points(1000), fmt)
        return np.array([math.sqrt(np.square(laws.equal_sum_errors(fmt, x, n)).mean()) for n in lengths])
    if order == LIBRARY:
        return np.full(len(lengths), math.nan)
    products = data == "products" and fmt != "float32"
    errors = laws.sum_errors(fmt, DATA[data], STD, lengths, cast("laws.Method", order), products=products)
    return np.array([error.rms for error in errors])


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Exponents of the growth with the length, errors against their law, and shares within the bound."""
    params = params_of(rows, "format", "summation", "rows")
    found, inside = (
        rows[rows["metric"] == metric].pivot_table("value", ["layer", "case"], columns, sort=False)
        for metric, columns in (("rms", "step"), ("inside", "metric"))
    )
    n = found.columns.to_numpy(float)
    found = found.join(inside).reset_index("layer", names="data").join(params)
    growth, size, share, further, curves = {}, {}, {}, {}, []
    for key, own in groups(found, KEYS):
        data, fmt, order = key
        u, mean = laws.unit_roundoff(fmt), DATA[data]
        scale = u * np.sqrt(n * n * mean**2 + (n * n if data == "equal" else n) * STD**2)
        lines, law = own[n].to_numpy() / scale, predicted(data, fmt, order, n.astype(int).tolist()) / scale
        growth[key] = stats.against(stats.slopes(np.log(n), np.log(lines)).slope, 0.5, margin=MARGIN)
        slope = float(stats.slopes(np.log(n), np.log(law)).slope)
        error, backward = float(np.median(lines[:, -1]) * u), growth[key].effect.value - 0.5 * (mean == 0)
        further[key] = {"law": slope, "backward": backward, "error": error, "summands": int(n[-1])}
        if np.isfinite(law[-1]):
            size[key] = stats.against(np.exp(np.log(lines / law).mean(1)), 1.0, log=True, margin=FACTOR)
        bound = laws.probabilistic_bound(fmt, int(n[-1]) - 1, confidence=ANNOUNCED)
        if order in {"naive", "stochastic"} and bound < 1:
            share[key] = stats.coverage(int(own["inside"].sum()), int(own["rows"].sum()), ANNOUNCED)
        ends = {"predicted": law, "worst": n - 1, "root": np.sqrt(n - 1), "all": 1 / u}
        curves.append(
            pd.DataFrame({**dict(zip(KEYS, key, strict=True)), "length": n, **stats.band(lines, 1.0), **ends})
        )
    question = Question.of("sum_growth", KEYS, growth, label=LABEL, reference="square root")
    yield question.table(further)
    yield "sum_errors", pd.concat(curves, ignore_index=True)
    yield from grown(question)
    known = Question.of("sum_law", KEYS, size, label=LABEL, reference="the law")
    yield known.table()
    yield known.prediction(LAW, "errors averaged over lengths", within=f"a factor {FACTOR:g}", unit="times the law")
    yield from bounded(Question.of("sum_bound", KEYS, share, label=LABEL, reference="announced", counted="sums"), n[-1])
    yield from sentences(further)


def grown(growth: Question) -> Iterator[Answer]:
    """Three claims about the exponent, each from the orders of summation that it is about."""
    words = {1: "faster for", 0: "as the square root for", -1: "more slowly for", None: "undecided for"}
    asked = {
        ROOT: (("naive",), agrees), ORDER: (("pairwise", "compensated"), below),
        STOCHASTIC: (("stochastic",), lambda c: None if above(c) is None else not above(c)),
    }  # fmt: skip
    for claim, (methods, reading) in asked.items():
        if own := growth.where(summation=methods):
            yield own.verdict(
                claim, reading, unit="power of the length",
                why=f"the error, relative to the sum's own size, grows {listed(merged(own, side), words, 9)}",
                method=f"slope of ln error on ln length by seed, from {FIRST} summands on, against 1/2 +- {MARGIN:g}",
            )  # fmt: skip


def merged(question: Question, reading: Callable[[stats.Comparison], Any]) -> dict[str, Any]:
    """Answers by condition, in words; formats of one answer are told together."""
    found: dict[tuple[str, str, Any], list[str]] = {}
    for (data, fmt, order), comparison in question.members.items():
        found.setdefault((data, order, reading(comparison)), []).append(fmt)
    return {f"{data} ({order}, {' and '.join(among)})": answer for (data, order, answer), among in found.items()}


def bounded(share: Question, n: float) -> Iterator[Answer]:
    """Are as many whole sums inside the probabilistic bound as it says of one summand's roundings?"""
    if not share:
        return
    yield share.table()
    words = {True: "for", False: "fewer for", None: "undecided for"}
    yield share.verdict(
        BOUND, above, unit="share of sums",
        why=f"of sums of {n:.0f} numbers {ANNOUNCED:.0%} or more are inside {listed(merged(share, above), words, 9)}",
        method=f"bound of Higham and Mary (2019) at {ANNOUNCED:.0%} for each summand, against the sum of magnitudes",
    )  # fmt: skip


def sentences(further: Mapping[tuple[Any, ...], Mapping[str, Any]]) -> Iterator[Sentence]:
    """Errors added in turn and pairwise, as a share of the sum."""
    naive, pairwise = (further.get(("nonzero mean", "float16", order)) for order in ("naive", "pairwise"))
    if naive and pairwise:
        yield Sentence(
            f"A float16 sum of {naive['summands']:,} numbers, their mean twice their spread, is off by "
            f"{naive['error']:.0%} added in turn, and by {pairwise['error']:.2%} added pairwise.",
            "sums", (LAW.id, ORDER.id),
        )  # fmt: skip


def _with_laws(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    drawing.profile(axis, rows, x="length", band="least to greatest of the seeds", **options)
    first = rows.drop_duplicates("length")
    axis.plot("length", "worst", data=first, color="0.2", lw=1, ls=":", label="n u, the worst case")
    axis.plot("length", "root", data=first, color="0.2", lw=1, ls="-.", label=r"$\sqrt{n}$ u")
    if rows["all"].min() == rows["all"].max() and rows["median"].max() > 0.01 * rows["all"].min():
        axis.axhline(rows["all"].min(), color="0.6", lw=0.8, label="as large as the sum")


AXES = {"xscale": "log", "yscale": "log", "xlabel": "summands", "ylabel": "rms error / rms sum, in u"}


@drawing.figure(
    "sums", "The order of summation decides how rounding errors add up",
    "Error of sums of numbers with a mean of two standard deviations, relative to the sum, in unit roundoffs u. Median "
    "of the seeds; dashed: the law, which is no fit. torch.matmul in 16 bits lies on the compensated sum.",
)  # fmt: skip
def draw_methods(sum_errors: pd.DataFrame) -> Any:
    """Error by length, a panel a format, a line an order."""
    own = sum_errors[sum_errors["data"] == "nonzero mean"]
    return drawing.panels(own, "format", _with_laws, by="summation", axes=AXES)


@drawing.figure(
    "sum_data", "What is added decides it too: equal numbers err alike, and a long sum stands still",
    "Error of sums from left to right, relative to the sum, in unit roundoffs u of the format. Median of the seeds; "
    "dashed: the law, which is no fit.",
)  # fmt: skip
def draw_data(sum_errors: pd.DataFrame) -> Any:
    """Error by length, a panel a kind of data, a line a format."""
    own = sum_errors[sum_errors["summation"] == "naive"]
    return drawing.panels(own, "data", _with_laws, by="format", axes=AXES)


METHOD = f"""
**Sums.** Columns of Gaussian numbers (standard deviation {STD:g}, mean 0 or twice that), of products of two of them, or
of one number over and over. Every addition is exact, then rounded once to the format; products are rounded in float32,
in 16 bits they are added unrounded. `torch.matmul` is the library's own on this device. The error is against the sum of
the same numbers in float64; u is half the distance from 1 to the next. Worst case: Higham (2002), section 4.2; bound:
Higham and Mary (2019), for stochastic rounding Connolly, Higham and Mary (2021). Its chance of {ANNOUNCED:.0%} is that
of the roundings of one summand; of many summands together it promises nothing, so that the share of whole sums inside
it is a measurement. The law: `theory.sum_errors`.
"""
PART = Part(
    "sums", (ROOT, LAW, BOUND, ORDER, STOCHASTIC), SIZES, grids, run, analyse, (draw_methods, draw_data), METHOD
)
