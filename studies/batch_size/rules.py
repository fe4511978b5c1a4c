"""A larger batch at a scaled learning rate: up to which factor does the loss curve stay the same per epoch?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.drawing.palette import FAINT
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below, every
from depthgauge.studies.batch_size import curves, trained
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

LINEAR = Claim(
    "batch_size/linear_rule", "with SGD, a rate in proportion to the batch size keeps the loss curve per epoch"
)
ROOT = Claim(
    "batch_size/root_rule",
    "with Adam and AdamW, a rate by the square root of the batch size keeps the loss curve per epoch",
)
WARM = Claim("batch_size/rule_warmup", "with a warm-up, a larger batch at its scaled rate ends at a lower loss")

MARGIN = 1.25  # factor of the training loss: curves closer than this are called the same
QUARTERS = (2, 3, 4)  # of the examples seen; a warm-up lies in the first
OWN = {"SGD": "linear", "Adam": "square root", "AdamW": "square root"}  # the rule that is said of an optimizer
KEYS = ("optimizer", "rule", "warmup", "share")
POWERS = {"SGD": range(-9, 0), "Adam": range(-14, -4), "AdamW": range(-14, -4)}  # of 2: rates of the base batch
RULES = {
    name: ("linear", "square root") if name == "SGD" else ("linear", "square root", "root and betas") for name in POWERS
}
SIZES = sizes(
    "optimizers dataset width base steps factors shares seeds",
    quick=(("SGD",), "digits", 32, 4, 512, (2, 4, 8, 32), (1.0,), 12),
    standard=(("SGD", "Adam", "AdamW"), "digits", 32, 4, 2048, (2, 4, 8, 16, 32, 64), (1.0, 0.25), 16),
    full=(("SGD", "Adam", "AdamW"), "mnist5k", 64, 4, 8192, (2, 4, 8, 16, 32, 64, 128), (1.0, 0.25, 0.0625), 16),
    tiny=(("SGD", "Adam"), "digits", 8, 4, 64, (2, 4), (1.0,), 5),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    optimizers: tuple[str, ...], dataset: str, width: int, base: int, steps: int, factors: tuple[int, ...],
    shares: tuple[float, ...], seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """The base batch of each optimizer at all rates; `factors` and `shares` are for the second stage."""
    del factors, shares
    for name in optimizers:
        size = {"data": dataset, "width": width, "depth": 2, "batch": base, "steps": steps, "optimizer": name}
        plain = {"rule": "none", "factor": 1, "share": 1.0, "warmup": "none"}
        yield Grid(
            {"lr": tuple(2.0**power for power in POWERS[name])}, {**trained.MODEL, **size, **plain}, seeds,
            trained.TOGETHER, trained.most_replicas, selection=trained.SELECTION,
        )  # fmt: skip


def second(rows: pd.DataFrame, *, factors: tuple[int, ...], shares: tuple[float, ...], **_: Any) -> Iterator[Grid]:
    """Larger batches at the rate that is best for the base batch, and at shares of it, scaled by every rule."""
    first = rows[rows["rule"] == "none"]
    runs = training.tunable(_runs(first), ["optimizer"])
    if runs.empty:
        return
    seeds = int(runs["seed"].max()) + 1
    for row in training.choices(runs, ["optimizer"], score="score").to_dict("records"):
        case = Case.read(first.loc[first["optimizer"] == row["optimizer"], "case"].iloc[0])
        kept = {name: value for name, value in case.params if name not in {"seed", "rule", "share", "warmup"}}
        for factor in factors:
            scaled = {"lr": float(row["lr"]), "factor": factor, "batch": case.integer("batch") * factor}
            scaled |= {"steps": case.integer("steps") // factor}
            varied = {"rule": RULES[row["optimizer"]], "share": shares, "warmup": ("none", "warm-up")}
            yield Grid(varied, {**kept, **scaled}, seeds, ("seed", *varied), trained.most_replicas)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train replicas of one batch size and optimizer, and follow their loss over all examples."""
    yield from curves.train(trained.task(cases[0], context), cases)


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    return trained.runs_of(rows, *KEYS, "factor", "steps", metrics=("score", "rate"))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Loss curves of larger batches over that of the base batch, quarter by quarter; how far each rule goes."""
    runs = _runs(rows)
    by_quarter = quarters(rows).reindex(runs["run"])
    runs = runs.assign(**{f"quarter_{q}": by_quarter[q].to_numpy() for q in (1, *QUARTERS)})
    first = training.tunable(runs[runs["rule"] == "none"], ["optimizer"])
    if first.empty:
        return
    chosen = training.choices(first, ["optimizer"], score="score")
    yield "rule_bases", chosen
    larger, bases = runs[runs["rule"] != "none"], first[first["seed"] >= 0]
    question = Question.of(
        "rules", (*KEYS, "factor", "quarter"), dict(against_base(larger, bases)),
        label="{optimizer}, {rule} rule, {share:g} of the tuned rate, {warmup}, factor {factor}, quarter {quarter}",
        family=lambda factor, quarter, **key: tuple(key.values()), reference="base",
    )  # fmt: skip
    if not question:
        return
    yield question.table()
    reached = reach(question, larger)
    yield "rule_reach", reached
    yield "rule_curves", worst(question)
    yield from verdicts(question, reached, chosen)
    yield from warm_up(larger)


def quarters(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean ln loss of each quarter of the examples seen, a row a case."""
    loss = rows[rows["metric"] == "loss"].sort_values(["case", "step"], kind="stable")
    with np.errstate(divide="ignore"):
        loss = loss.assign(log=np.log(loss["value"]), quarter=loss.groupby("case").cumcount() * 4 // curves.POINTS + 1)
    return loss.pivot_table(index="case", columns="quarter", values="log", aggfunc="mean", dropna=False)


def against_base(larger: pd.DataFrame, bases: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], stats.Comparison]]:
    """(condition, factor, quarter), and the ratio of losses, seed by seed."""
    by_rate = {key: own.set_index("seed") for key, own in groups(bases, ["optimizer", "lr"])}
    for key, own in groups(larger, [*KEYS, "factor"]):
        base, own = by_rate.get((key[0], own["lr"].iloc[0] * float(key[3]))), own.set_index("seed")
        if base is None:
            continue
        both = own.index.intersection(base.index)
        for q in QUARTERS:
            losses = (np.exp(each.loc[both, f"quarter_{q}"]) for each in (own, base))
            yield (*key, q), stats.paired(*losses, log=True, margin=MARGIN, test="t")


def reach(question: Question, larger: pd.DataFrame) -> pd.DataFrame:
    """One row a condition: the largest factor up to which every curve is kept, and the first at which one is not."""
    rates = larger.groupby([*KEYS, "factor"], sort=False)["rate"].first()
    found = []
    for key in dict.fromkeys(key[:4] for key in question.members):
        some = {f: every(map(agrees, cs)) for f, cs in _by_factor(question, key).items()}
        kept, broken = 1, math.nan
        for factor, answer in sorted(some.items()):
            if answer is True and kept == max([1, *(f for f in some if f < factor)]):
                kept = factor
            if answer is False and math.isnan(broken):
                broken = factor
        rate = math.nan if math.isnan(broken) else rates[(*key, broken)]
        found.append({**dict(zip(KEYS, key, strict=True)), "kept_to": kept, "broken_from": broken, "rate_there": rate})
    return pd.DataFrame(found)


def _by_factor(question: Question, key: tuple[Any, ...]) -> dict[int, list[stats.Comparison]]:
    found: dict[int, list[stats.Comparison]] = {}
    for (*condition, factor, _), comparison in question.members.items():
        if tuple(condition) == key:
            found.setdefault(factor, []).append(comparison)
    return found


def worst(question: Question) -> pd.DataFrame:
    """The quarter of each curve that is furthest from the base's."""
    _, table = question.table()
    deviation = table["value"].map(lambda value: abs(math.log(value)) if value > 0 else math.inf)
    table = table.assign(deviation=deviation.fillna(math.inf))
    return table.sort_values("deviation", ascending=False).drop_duplicates([*KEYS, "factor"]).sort_index()


def verdicts(question: Question, reached: pd.DataFrame, chosen: pd.DataFrame) -> Iterator[Answer]:
    """How far each optimizer's own rule goes from its tuned rate; and one sentence for each further condition."""
    method = f"training loss over the base batch's at equal examples seen, each of the last three quarters, {MARGIN:g}"
    method = f"geometric mean of paired ratios of the {method} as margin, t by seed"
    said = {tuple(row[name] for name in KEYS): _sentence(row) for row in reached.to_dict("records")}
    for claim, names in ((LINEAR, ("SGD",)), (ROOT, ("Adam", "AdamW"))):
        own = question.select(lambda optimizer, rule, names=names, **_: optimizer in names and rule == OWN[optimizer])
        if own := own.where(warmup="none", share=1.0):
            conditions = dict.fromkeys(key[:4] for key in own.members)
            reading = {
                (key, f): every(map(agrees, cs)) for key in conditions for f, cs in _by_factor(own, key).items()
            }
            why = "; ".join(said[key] for key in conditions)
            yield own.verdict(claim, reading, unit="times the loss of the base batch", why=why, method=method)
    yield from (f"{sentence[0].upper()}{sentence[1:]}." for sentence in said.values())
    rates = ", ".join(f"{row['optimizer']} {row['lr']:g}" for row in chosen.to_dict("records"))
    yield f"The rules start from the rates that other seeds chose for the base batch: {rates}."


def _sentence(row: dict[Any, Any]) -> str:
    share = "its tuned rate" if row["share"] == 1 else f"{row['share']:g} of its tuned rate"
    warm = ", with warm-up" if row["warmup"] != "none" else ""
    kept = "at no factor tried" if row["kept_to"] == 1 else f"up to a factor of {row['kept_to']}"
    broken = "at none tried" if math.isnan(row["broken_from"]) else f"from {row['broken_from']:.0f} on"
    at = "" if math.isnan(row["broken_from"]) else f", where the rate is {row['rate_there']:.3g}"
    return f"with {row['optimizer']} from {share}{warm} the {row['rule']} rule keeps the curve {kept} and breaks it {broken}{at}"


def warm_up(larger: pd.DataFrame) -> Iterator[Answer]:
    """Does a warm-up lower the loss of the last quarter, at each optimizer's own rule and tuned rate?"""
    asked = {}
    own = larger[(larger["rule"] == larger["optimizer"].map(OWN)) & (larger["share"] == 1)]
    for key, runs in groups(own, ["optimizer", "factor"]):
        wide = np.exp(runs.pivot_table(index="seed", columns="warmup", values="quarter_4", dropna=False))
        if {"none", "warm-up"} <= set(wide):
            wide = wide.dropna()
            asked[key] = stats.paired(wide["warm-up"], wide["none"], log=True, margin=MARGIN, test="t")
    question = Question.of(
        "rule_warmup", ("optimizer", "factor"), asked, label="{optimizer}, factor {factor}", reference="without"
    )
    if question:
        yield question.table()
        words = {True: "lower for", False: "no lower for", None: "undecided for"}
        yield question.verdict(
            WARM, below, unit="times the loss without warm-up", why=question.listed(below, words, 20),
            method=f"last quarter's training loss with warm-up over that without, paired by seed, t, margin {MARGIN:g}",
        )  # fmt: skip


def _ratios(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    axis.axhspan(1 / MARGIN, MARGIN, color=FAINT, zorder=0, lw=0, label=f"margin, a factor of {MARGIN:g}")
    drawing.estimates(axis, rows, joined=True, **options)


@drawing.figure(
    "rules", "How far each rule of the learning rate keeps the loss curve of a small batch",
    lambda rule_curves: f"Training loss over the base batch's at as many examples seen, in the one of the last three "
    f"quarters that is furthest off; mean of {rule_curves['n'].min()} seeds, intervals that hold at once. From the tuned "
    "rate.",
)  # fmt: skip
def draw_rules(rule_curves: pd.DataFrame) -> Any:
    """Ratios by factor, a panel an optimizer and warm-up."""
    shown = rule_curves[rule_curves["share"] == 1]
    names = shown["optimizer"] + shown["warmup"].map({"none": "", "warm-up": ", with warm-up"})
    axes = {"xscale": "log", "yscale": "log", "xlabel": "times the base batch", "ylabel": "loss over the base batch's"}
    return drawing.panels(shown.assign(panel=names), "panel", _ratios, at="factor", by="rule", axes=axes)


METHOD = f"""**Rules.** From a small base batch at its tuned rate (lowest loss of validation, other seeds), and at shares of
that rate, to larger batches at as many examples. Linear: the rate in proportion to the batch; square root: by its root;
root and betas: Adam's 1 - beta in proportion besides (Malladi et al. 2022, arXiv:2205.10287). Warm-up: the rate rises
over the first eighth of the updates. A curve is the loss over all training examples; it is kept where each of the last
three quarters, in the mean of four places, is within a factor of {MARGIN:g} of the base's, and a rule keeps it up to the
largest factor with no doubtful one below. The base batch has no warm-up. AdamW decays by {curves.DECAY:g} of the rate."""
PART = Part(
    "rules", (LINEAR, ROOT, WARM), SIZES, grids, run, analyse, (draw_rules,), METHOD, second, shown=("rule_reach",)
)
