"""A larger batch at a scaled learning rate: up to which factor does the loss curve stay the same per epoch?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.drawing.palette import FAINT
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, every
from depthgauge.studies.batch_size import curves, kept, perceptrons
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

LINEAR = Claim(
    "batch_size/linear_rule", "with SGD, a rate in proportion to the batch size keeps the loss curve per epoch"
)
ROOT = Claim(
    "batch_size/root_rule",
    "with Adam and AdamW, a rate by the square root of the batch size keeps the loss curve per epoch",
)
WARM = Claim("batch_size/rule_warmup", "with a warm-up, a larger batch at its scaled rate ends at a lower loss")

SAID = {"SGD": "in proportion to the batch", "Adam": "in proportion to its root"}
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
    quick=(("SGD",), "digits", 32, 4, 512, (2, 8, 32), (1.0, 0.25), 10),
    standard=(("SGD", "Adam", "AdamW"), "digits", 32, 4, 2048, (2, 4, 8, 16, 32, 64), (1.0, 0.25), 24),
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
        size: dict[str, Value] = {
            "data": dataset,
            "width": width,
            "depth": 2,
            "batch": base,
            "steps": steps,
            "optimizer": name,
        }
        plain: dict[str, Value] = {"rule": "none", "factor": 1, "share": 1.0, "warmup": "none"}
        yield Grid(
            {"lr": tuple(2.0**power for power in POWERS[name])}, {**perceptrons.MODEL, **size, **plain}, seeds,
            perceptrons.TOGETHER, perceptrons.most_replicas, selection=perceptrons.SELECTION,
        )  # fmt: skip


def second(rows: pd.DataFrame, *, factors: tuple[int, ...], shares: tuple[float, ...], **_: Any) -> Iterator[Grid]:
    """Larger batches at the rate that is best for the base batch, and at shares of it, scaled by every rule."""
    first = rows[rows["rule"] == "none"]
    runs = training.tunable(_runs(first), ["optimizer"])
    if runs.empty:
        return
    seeds = int(runs["seed"].max()) + 1
    chosen = training.choices(runs, ["optimizer"], score="score").sort_values("optimizer")
    for row in chosen.to_dict("records"):
        case = Case.read(first.loc[first["optimizer"] == row["optimizer"], "case"].iloc[0])
        kept = {name: value for name, value in case.params if name not in {"seed", "rule", "share", "warmup"}}
        for factor in factors:
            scaled = {"lr": float(row["lr"]), "factor": factor, "batch": case.integer("batch") * factor}
            scaled |= {"steps": case.integer("steps") // factor}
            varied = {"rule": RULES[row["optimizer"]], "share": shares, "warmup": ("none", "warm-up")}
            yield Grid(varied, {**kept, **scaled}, seeds, ("seed", *varied), perceptrons.most_replicas)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train replicas of one batch size and optimizer, and follow their loss over all examples."""
    yield from curves.train(perceptrons.task(cases[0], context), cases)


def _runs(rows: pd.DataFrame) -> pd.DataFrame:
    return perceptrons.runs_of(rows, *KEYS, "factor", "steps", metrics=("score", "rate"))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Loss curves of larger batches over that of the base batch, quarter by quarter; how far each rule goes."""
    runs = _runs(rows).sort_values("optimizer", key=lambda column: column.map(list(POWERS).index), kind="stable")
    by_quarter = curves.quarters(rows).reindex(runs["run"]).add_prefix("quarter_")
    runs = runs.assign(**{str(name): column.to_numpy() for name, column in by_quarter.items()})
    first = training.tunable(runs[runs["rule"] == "none"], ["optimizer"])
    if first.empty:
        return
    chosen = training.choices(first, ["optimizer"], score="score")
    yield "rule_bases", chosen
    larger, bases = runs[runs["rule"] != "none"], first[first["seed"] >= 0]
    question = Question.of(
        "rules", (*KEYS, "factor", "quarter"), dict(against_base(larger, bases)),
        label="quarter {quarter} of {optimizer} at {factor} times the batch ({rule} rule; {share:g} of the tuned rate; "
        "warm-up {warmup})",
        family=lambda **key: tuple(key[name] for name in KEYS), reference="the base batch",
    )  # fmt: skip
    if not question:  # the second stage is not there
        yield "rule_curves", pd.DataFrame()
        return
    yield question.table()
    reached = reach(question, larger)
    yield "rule_reach", reached
    yield "rule_curves", worst(question)
    yield from verdicts(question, reached)
    yield from warm_up(larger)


def against_base(larger: pd.DataFrame, bases: pd.DataFrame) -> Iterator[tuple[tuple[Any, ...], stats.Comparison]]:
    """(condition, factor, quarter), and the ratio of losses, seed by seed."""
    by_rate = {key: own.set_index("seed") for key, own in groups(bases, ["optimizer", "lr"])}
    for key, scaled in groups(larger, [*KEYS, "factor"]):
        base, own = by_rate.get((key[0], scaled["lr"].iloc[0] * float(key[3]))), scaled.set_index("seed")
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
        by_factor = sorted(_by_factor(question, key).items())
        answers = [(factor, every(map(agrees, cs))) for factor, cs in by_factor]
        kept = [factor for factor, _ in itertools.takewhile(lambda pair: pair[1], answers)]
        row = {**dict(zip(KEYS, key, strict=True)), "kept_to": max(kept, default=1), "broken_from": math.nan}
        for factor, cs in by_factor:
            if off := [c for c in cs if c.beyond]:
                loss = "higher" if off[0].above else "lower"
                row |= {"broken_from": factor, "rate_there": rates[(*key, factor)], "loss_there": loss}
                break
        found.append(row)
    return pd.DataFrame(found).reindex(columns=[*KEYS, "kept_to", "broken_from", "rate_there", "loss_there"])


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


def verdicts(question: Question, reached: pd.DataFrame) -> Iterator[Answer]:
    """The reach of each optimizer's own rule, from its tuned rate and from shares of it."""
    plain = reached[(reached["warmup"] == "none") & (reached["rule"] == reached["optimizer"].map(OWN))]
    method = (
        "training loss over the base batch's at as many examples, each of the last three quarters, geometric mean of "
        f"paired ratios, t by seed, margin {MARGIN:g}; without warm-up"
    )
    for claim, names in ((LINEAR, ("SGD",)), (ROOT, ("Adam", "AdamW"))):
        own = question.select(lambda optimizer, rule, names=names, **_: optimizer in names and rule == OWN[optimizer])
        if own := own.where(warmup="none"):
            keys = dict.fromkeys(key[:4] for key in own.members)
            reading = {(key, f): every(map(agrees, cs)) for key in keys for f, cs in _by_factor(own, key).items()}
            rows = plain[plain["optimizer"].isin(names)].to_dict("records")
            why, says = "; ".join(map(kept.sentence, rows)), "; ".join(map(kept.reach, rows))
            unit = "times the loss of the base batch"
            yield own.verdict(claim, reading, unit=unit, why=why, method=method, says=says)
    for row in plain[plain["share"] == 1].to_dict("records"):
        if row["optimizer"] in SAID:
            up_to = "at no larger batch" if row["kept_to"] == 1 else f"up to {row['kept_to']} times the base batch"
            lost = f", and not from {row['broken_from']:.0f} times on" * (not math.isnan(row["broken_from"]))
            yield Sentence(
                f"From its tuned rate {row['optimizer']} keeps its loss curve with a learning rate "
                f"{SAID[row['optimizer']]} {up_to}{lost}.",
                "rules", (LINEAR.id if row["optimizer"] == "SGD" else ROOT.id,),
            )  # fmt: skip


def warm_up(larger: pd.DataFrame) -> Iterator[Answer]:
    """Does a warm-up lower the loss of the last quarter, at each optimizer's own rule and tuned rate?"""
    asked = {}
    own = larger[(larger["rule"] == larger["optimizer"].map(OWN)) & (larger["share"] == 1)]
    for key, runs in groups(own, ["optimizer", "factor"]):
        wide = runs.pivot_table(index="seed", columns="warmup", values="quarter_4", dropna=False)
        if {"none", "warm-up"} <= set(wide):
            without, warm = (np.exp(wide.dropna()[name]) for name in ("none", "warm-up"))
            asked[key] = stats.paired(without, warm, log=True, margin=MARGIN, test="t")
    question = Question.of(
        "rule_warmup", ("optimizer", "factor"), asked, reference="with warm-up",
        label="{optimizer} at {factor} times the base batch",
    )  # fmt: skip
    if question:
        yield question.table()
        words = {
            True: "with a warm-up the loss ends lower for",
            False: "with a warm-up the loss ends no lower for",
            None: "undecided for",
        }
        yield question.verdict(
            WARM, above, unit="times the loss with warm-up", why=question.listed(above, words, 20),
            method="last quarter's training loss without warm-up over that with, each optimizer by its own rule from "
            f"its tuned rate; paired by seed, t, margin {MARGIN:g}",
        )  # fmt: skip


def _ratios(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    axis.axhspan(1 / MARGIN, MARGIN, color=FAINT, zorder=0, lw=0, label=f"margin, a factor of {MARGIN:g}")
    drawing.estimates(axis, rows, joined=True, **options)


@drawing.figure(
    "rules", "How far each rule of the learning rate keeps the loss curve of a small batch",
    lambda rule_curves: f"Training loss over the base batch's at as many examples seen, in that of the last three "
    f"quarters that is furthest off; from the tuned rate, mean of {rule_curves['n'].min()} seeds, intervals that "
    "hold at once.",
)  # fmt: skip
def draw_rules(rule_curves: pd.DataFrame) -> Any:
    """Ratios by factor, a panel an optimizer and warm-up."""
    shown = rule_curves[rule_curves["share"] == 1]
    names = shown["optimizer"] + shown["warmup"].map({"none": "", "warm-up": ", with warm-up"})
    axes = {"xscale": "log", "yscale": "log", "xlabel": "times the base batch", "ylabel": "loss over the base batch's"}
    return drawing.panels(shown.assign(panel=names), "panel", _ratios, at="factor", by="rule", axes=axes)


METHOD = f"""**Rules.** From a small base batch at its tuned rate (lowest validation loss of other seeds), and at shares
of that rate, to larger batches at as many examples. Linear: the rate in proportion to the batch; square root: by its
root; root and betas: Adam's 1 - beta in proportion besides (Malladi et al. 2022, arXiv:2205.10287). Warm-up: the rate
rises over the first eighth of the updates; the base batch has none. A curve is the loss over all training examples. It
is kept where each of the last three quarters, in the mean of four places, is within a factor of {MARGIN:g} of the
base's, and broken where one is beyond; a rule keeps it up to the largest factor below which none is undecided. AdamW's
weight decay is {curves.DECAY:g}."""
CLAIMS = (LINEAR, ROOT, WARM)
PART = Part("rules", CLAIMS, SIZES, grids, run, analyse, (draw_rules,), METHOD, second, shown=("rule_reach",))
