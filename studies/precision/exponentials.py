"""Softmax and cross-entropy, naive and stable: the scores at which they fail in each format, and how often they do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import log_ndtr
from torch import Tensor
from torch.nn.functional import cross_entropy

from depthgauge import data, drawing, formats, stats
from depthgauge.frames import groups, params_of, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, below, enumerated, judged
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.precision.thresholds import CLASSES, EXPONENTIALS, least, softmax
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

CARE = Claim("N29", "exponentials of extreme scores need care (softmax and cross-entropy)")
EXACT = Claim(
    "precision/exp_thresholds",
    "exp, softmax and log-softmax without a shift fail exactly at the scores that the format's range gives",
)
LOST = Claim(
    "precision/lost_scores", "the spread of Gaussian scores tells how many examples a softmax without a shift makes NaN"
)

FORMATS = ("float16", "bfloat16", "float32")
SCALES = (
    1,
    2,
    3,
    5,
    7,
    10,
    20,
    30,
    50,
    70,
    100,
)  # standard deviations of the scores; the last is the claim's "extreme"
FEW = 0.01  # share of examples that may be lost where no care is needed
MARGIN = 0.02  # of a share
SURE = 1e-3  # chances nearer to 0 or 1 are not asked about
FORMS = ("naive", "stable")
KEYS = ["form", "format", "scores", "scale"]
LABEL = "{form}, {scores} scores of standard deviation {scale} in {format}"
SIZES = sizes("examples seeds", quick=(4000, 8), standard=(4000, 20), full=(4000, 40), tiny=(50, 5))


def grids(examples: int, seeds: int) -> Iterator[Grid]:
    """The thresholds of every format; then Gaussian scores and those of a trained classifier."""
    yield Grid({"format": FORMATS}, {"measured": "thresholds"}, 0, ("format",), 8, claims=(EXACT.id,))
    varied = {"scores": ("gaussian", "digits"), "format": FORMATS}
    fixed: dict[str, str | int] = {"measured": "shares", "examples": examples}
    yield Grid(varied, fixed, seeds, ("format", "seed"), 3 * seeds, claims=(CARE.id, LOST.id))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Thresholds, found by bisection over the format's own values; or counts of lost examples by scale."""
    drawn: dict[int, tuple[Tensor, Tensor]] = {}
    for case in cases:
        dtype = getattr(torch, case.text("format"))
        if case.text("measured") == "thresholds":
            for name, (happens, _) in EXPONENTIALS.items():
                yield case.rows("threshold", least(dtype, context.device, happens), layer=name)
            continue
        seed = case.random_seed("scores", "seed")
        if seed not in drawn:
            drawn[seed] = scores(case.text("scores"), case.integer("examples"), seed)
        z, y = (value.to(context.device) for value in drawn[seed])
        lost = {form: [] for form in (*FORMS, "nan")}  # type: dict[str, list[float]]
        for scale in SCALES:
            x = (scale * z).to(dtype)
            p = softmax(x)
            losses = {"naive": -p[torch.arange(len(y)), y].log(), "stable": cross_entropy(x, y, reduction="none")}
            for form, loss in losses.items():
                lost[form].append(float((~loss.isfinite()).double().mean()))
            lost["nan"].append(float(p.isnan().any(1).double().mean()))
        for form, shares in lost.items():
            yield case.rows(form, shares, step=SCALES)
        yield case.rows("examples", len(y))


def scores(kind: str, examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Scores of ten classes with standard deviation 1, and the right classes."""
    if kind == "gaussian":
        draws = generator(seed, Purpose.INPUTS)
        return torch.randn(examples, CLASSES, generator=draws), torch.randint(CLASSES, (examples,), generator=draws)
    digits = data.load("mnist5k")
    chosen = torch.randperm(len(digits.train), generator=generator(seed, Purpose.SAMPLE))[: min(examples, 1000)]
    x, y = digits.train[chosen]
    w = torch.zeros(x[0].numel(), CLASSES)
    for _ in range(50):  # softmax regression: gradient descent on the cross-entropy
        w -= 0.05 * x.flatten(1).T @ (torch.softmax(x.flatten(1) @ w, 1) - torch.eye(CLASSES)[y]) / len(x)
    z = digits.test.x[:examples].flatten(1) @ w
    return z / z.std(), digits.test.y[:examples]


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Thresholds beside their definition; shares that are lost, and those that theory gives."""
    if len(own := rows[rows["measured"] == "thresholds"]):
        yield from thresholds(own)
    if len(own := rows[rows["measured"] == "shares"]):
        yield from shares(own)


def thresholds(rows: pd.DataFrame) -> Iterator[Answer]:
    """Are the measured scores those of the definition, to the last bit?"""
    table = rows.rename(columns={"layer": "failure"})[["format", "failure", "value"]].reset_index(drop=True)
    table["predicted"] = [EXPONENTIALS[row.failure][1](formats.get(row.format)) for row in records(table)]
    table["answer"] = np.where(table["value"] == table["predicted"], "equal", "other")
    yield "exp_thresholds", table
    other = table[table["answer"] == "other"]
    shown = (other if len(other) else table).iloc[0]
    named = enumerated(f"{row.failure} in {row.format} from {row.value:.8g}" for row in records(other))
    yield judged(
        EXACT, [not len(other)], f"{len(table) - len(other)} of {len(table)} thresholds are the format's to the last "
        "bit" + f"; others: {named}" * bool(len(other)),
        observed=float(shown["value"]), predicted=float(shown["predicted"]), n=1, counted="devices", unit="score",
        table="exp_thresholds", answer=str(shown["answer"]), condition=f"{shown['failure']} in {shown['format']}",
        method="bisection over all values of the format, with the device's own operations; equality of numbers",
    )  # fmt: skip
    found = table[table["failure"] == list(EXPONENTIALS)[1]].set_index("format")["value"]
    told = [f"{found[fmt]:.3g} in {fmt}" for fmt in ("float16", "bfloat16", "float32") if fmt in found]
    yield Sentence(
        f"A softmax that does not subtract the largest score is NaN from a score of {enumerated(told)} on.",
        claims=(EXACT.id, CARE.id),
    )


def shares(rows: pd.DataFrame) -> Iterator[Answer]:
    """Ask who loses more than a few examples, and compare NaN with the chance of Gaussian scores."""
    params = params_of(rows, "format", "scores", "seed")
    params["examples"] = rows[rows["metric"] == "examples"].set_index("case")["value"]
    lost, nan = {}, {}
    for form in (*FORMS, "nan"):
        found = rows[rows["metric"] == form].pivot_table("value", "case", "step", sort=False).join(params)
        for (fmt, kind), own in groups(found, ["format", "scores"]):
            one = np.eye(1, len(own))[0] / own["examples"].iloc[0]  # an example, counted on the other side
            for scale in SCALES:
                share, chance = own[scale].to_numpy(), overflowing(fmt, scale)
                if form != "nan":
                    lost[form, fmt, kind, scale] = stats.against(share + np.where(share < 0.5, one, -one), FEW)
                elif kind == "gaussian" and SURE < chance < 1 - SURE:
                    count, total = (round(float(value.sum())) for value in (share * own["examples"], own["examples"]))
                    nan["naive", fmt, kind, scale] = stats.coverage(count, total, chance, margin=MARGIN)
    question = Question.of("lost", KEYS, lost, label=LABEL, reference="a few")
    yield question.table()
    law = Question.of("nan_shares", KEYS, nan, label=LABEL, counted="examples")
    yield law.table()
    if law:
        yield law.prediction(LOST, "shares of NaN", within=f"{MARGIN:g}", unit="share of examples")
    yield from care(question)


def overflowing(fmt: str, scale: float) -> float:
    """Chance that one of ten Gaussian scores is rounded to one at which exp overflows."""
    threshold = formats.get(fmt).exp_overflows_from()
    edge = threshold - formats.get(fmt).spacing(math.nextafter(threshold, 0)) / 2
    return float(-np.expm1(CLASSES * log_ndtr(edge / scale)))


def care(lost: Question) -> Iterator[Answer]:
    """At extreme scores, does the naive form lose examples and the stable one none?"""
    extreme = lost.where(scale=SCALES[-1])
    answers = {}
    for (form, fmt, kind, _), comparison in extreme.members.items():
        answers[form, fmt, kind] = above(comparison) if form == "naive" else below(comparison)
    needs: dict[str, int] = {}
    for (_, fmt, kind, scale), comparison in lost.where(form="naive").members.items():
        if comparison.above:
            needs.setdefault(f"{fmt} ({kind})", scale)
    told = ", ".join(f"{name} from {scale}" for name, scale in needs.items())
    kept = all(comparison.below for comparison in lost.where(form="stable").members.values())
    yield extreme.verdict(
        CARE, answers, unit="share of examples", shown=next(iter(extreme.members)),
        why=f"without a shift more than {FEW:.0%} of the examples have no finite loss at a standard deviation of the "
        f"scores of: {told or 'none that was tried'}; torch's cross_entropy loses "
        f"{'none at any' if kept else 'some, too'}",
        method=f"share of losses that are infinite or NaN at a standard deviation of {SCALES[-1]}, one example "
        f"counted on the other side, against {FEW:.0%}: above it without a shift, below it with one",
    )  # fmt: skip


@drawing.figure(
    "lost", "A softmax without a shift loses examples once scores spread over the range of exp",
    "Share of examples whose cross-entropy is infinite or NaN, by standard deviation of the scores of ten classes; "
    "digits: a softmax regression on real digits, its scores rescaled. Intervals hold at once.",
)  # fmt: skip
def draw_lost(lost: pd.DataFrame) -> Any:
    """Lost examples by scale, a panel a kind of scores."""
    naive, kept = (lost[lost["form"] == form] for form in FORMS)
    axes = {
        "xscale": "log",
        "ylim": (-0.03, 1.03),
        "ylabel": "share lost",
        "xlabel": "standard deviation of the scores",
    }
    return drawing.panels(naive, "scores", _beside, by="format", kept=kept, axes=axes)


def _beside(axis: Any, rows: pd.DataFrame, kept: pd.DataFrame, **options: Any) -> None:
    drawing.estimates(axis, rows, "scale", joined=True, **options)
    worst = kept.groupby("scale")["value"].max()
    axis.plot(worst.index, worst, color="0.5", lw=2.5, ls=":", label="cross_entropy, the worst format")


def _marks(axis: Any, rows: pd.DataFrame, by: str, looks: Any) -> None:
    names = list(EXPONENTIALS)
    rows = rows.assign(place=rows["failure"].map(names.index) + 0.2 * (rows[by].map(FORMATS.index) - 1))
    axis.plot(rows["predicted"], rows["place"], "|", ms=12, color="0.2", label="definition")
    for name, part in rows.groupby(by, sort=False):
        axis.plot(part["value"], part["place"], looks[name].marker, ms=5, color=looks[name].colour, label=name)
    axis.set(xlim=(0, None), ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names)


@drawing.figure(
    "exp_thresholds", "Scores at which softmax without a shift fails",
    "Found by bisection over all values of the format with this device's own exp, sum, division and logarithm.",
)  # fmt: skip
def draw_thresholds(exp_thresholds: pd.DataFrame) -> Any:
    """Thresholds by failure and format."""
    axes = {"xlabel": "score x", "ylabel": ""}
    return drawing.panels(exp_thresholds, "", _marks, by="format", axes=axes, size=(5.6, 2.4))


METHOD = """
**Exponentials.** Naive: exp(x) over its sum, then the logarithm, each operation the device's own in the format; stable:
torch's `cross_entropy`, which subtracts the largest score. Thresholds follow from the format's range; the chance that a
Gaussian example is NaN is that one of its ten scores is beyond the first of them.
"""
PART = Part("exponentials", (CARE, EXACT, LOST), SIZES, grids, run, analyse, (draw_thresholds, draw_lost), METHOD)
