"""The regret of the learning-rate range test: what a training at the suggested rate loses against the tuned one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats, training
from depthgauge.frames import groups, records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, below
from depthgauge.studies.learning_rate.compared import (
    BY,
    FIXED,
    NAMED,
    TOLERATED,
    coverages,
    draw_finders,
    one_rate,
    spanned,
    suggested_beside,
    tally,
)
from depthgauge.studies.learning_rate.finders import FINDERS
from depthgauge.studies.learning_rate.suggested import (
    OURS,
    RATES,
    REPETITIONS,
    VARIANTS,
    suggest,
    train,
)
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

AS_GOOD = Claim(
    "learning_rate/finders", "a training at the rate that a finder in use suggests ends as low as one at the tuned rate"
)
REPEATED = Claim(
    "learning_rate/repeated", "a training at the rate of a repeated range test ends as low as one at the tuned rate"
)
BETTER = Claim(
    "learning_rate/own_start",
    "a range test that holds each batch against its own loss at the start, and is repeated, loses less than a finder "
    "in use that looks at the losses of one sweep",
)
COVERED = Claim(
    "learning_rate/interval", "the interval of the repeated range test holds the tuned rate in 95 % of the trainings"
)

IN_USE = tuple(NAMED[name] for name in FINDERS)
REPEATED_TEST = NAMED[OURS]
APART = tuple(NAMED[name] for name in VARIANTS)  # in tables alone
MARGIN = 1.25  # factor of the loss: ends closer than this are called the same
LABEL = "{net} with {optimizer} at batch {batch:.0f} and {noise:.0%} of the labels drawn anew"
QUICK = (("ReLU 2", ("SGD",), (16,), (0.0, 0.3)),)
STANDARD = (
    *((net, ("SGD",), (32, 256), (0.0, 0.3)) for net in ("softmax", "ReLU 2", "tanh 6")),
    ("ReLU 2", ("momentum", "Adam"), (32,), (0.0, 0.3)), ("GELU 4", ("SGD", "Adam"), (32,), (0.0,)),
)  # fmt: skip
FULL = tuple(
    (net, ("SGD", "momentum", "Adam"), (32, 256), (0.0, 0.3))
    for net in ("softmax", "ReLU 2", "tanh 6", "GELU 4", "LeNet-5")
)
SIZES = sizes(
    "plan steps seeds selection", quick=(QUICK, 200, 8, 3), standard=(STANDARD, 200, 8, 3), full=(FULL, 1000, 16, 5),
    tiny=((("ReLU 2", ("SGD",), (128,), (0.0, 0.3)),), 20, 5, 1),
)  # fmt: skip
Plan = tuple[tuple[str, tuple[str, ...], tuple[int, ...], tuple[float, ...]], ...]


def grids(plan: Plan, steps: int, seeds: int, selection: int) -> Iterator[Grid]:
    """Trainings at every rate of a grid; and sweeps, with trainings at what they suggest."""
    for net, optimizers, batches, noises in plan:
        for optimizer in optimizers:
            varied: dict[str, tuple[Value, ...]] = {"batch": batches, "noise": noises}
            fixed: dict[str, Value] = {"net": net, "optimizer": optimizer, "steps": steps}
            yield Grid(
                {**varied, "lr": RATES[optimizer]}, {**fixed, "asked": "rate"}, seeds, ("lr", "seed"), 200,
                selection=selection,
            )  # fmt: skip
            yield Grid(varied, {**fixed, "asked": "suggestion"}, seeds, ("seed",), 200)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train at given rates, or sweep and train at what is suggested."""
    yield from (train if cases[0].text("asked") == "rate" else suggest)(cases, context)


second = training.further_rates(*BY, margin=0.05, score="score", chunk=200)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The regret of every finder under every condition, where intervals hold the tuned rate, and what was undecided."""
    every = training.table(rows, *BY, "lr", "seed", metrics=("score",)).astype({"seed": int})
    every = training.tunable(every, BY)
    if every.empty:
        return
    tuned = training.tuned(every, BY, score="score")
    table = suggested_beside(rows, tuned)
    if table.empty:
        return
    yield "range_tests", table
    question = _regret(pd.concat([table, one_rate(every, tuned)], ignore_index=True))
    if not question:
        return
    yield question.table()
    yield from _verdicts(question)
    yield from _better(table)
    yield from _coverage(table)
    yield from _rule(table)
    yield from _sentences(question)


def _regret(table: pd.DataFrame) -> Question:
    """Loss at the suggested rate over that at the tuned rate, by finder and condition, where a rate was suggested."""
    asked = {}
    for key, own in groups(table[table["end"].notna()], ["finder", *BY]):
        compared = stats.paired(np.exp(own["end"]), np.exp(own["tuned_end"]), log=True, margin=MARGIN, test="t")
        asked[key] = training.unsettled(compared, own["at_edge"].any())
    label = "{finder} on " + LABEL
    return Question.of(
        "regret", ("finder", *BY), asked, label=label, reference="tuned", counted="trainings",
        # nothing is claimed of a rate that takes no test; often it is the tuned one: equal runs, each by itself
        family=lambda finder, **at: (finder in IN_USE or finder, tuple(at.values()) if finder == FIXED else ()),
    )  # fmt: skip


def _verdicts(question: Question) -> Iterator[Answer]:
    """Do the finders in use, and does the repeated test, find a rate as good as the tuned one?"""
    method = f"paired t by seed on ln(loss), margin a factor of {MARGIN:g}; the rate is tuned on other seeds"
    for claim, names in ((AS_GOOD, IN_USE), (REPEATED, (REPEATED_TEST,))):
        if not (asked := question.where(finder=names)):
            continue
        counts = []
        for name in names:
            said = [agrees(c) for c in question.where(finder=name).members.values()]
            counts.append(f"{name} {said.count(True)} of {len(said)}, worse in {said.count(False)}")
        words = "tasks in which the loss ends as low as at the tuned rate (" + "; ".join(counts) + ")"
        yield asked.verdict(
            claim, agrees, unit="times the loss at the tuned rate", why=words, method=method, says=tally(asked, agrees)
        )


def _better(table: pd.DataFrame) -> Iterator[Answer]:
    """The repeated test against the best known of the finders in use, at the same weights."""
    asked = {}
    for key, own in groups(table, BY):
        ends = own.pivot_table(index="seed", columns="finder", values="end")
        for name in (name for name in IN_USE if {name, REPEATED_TEST} <= set(ends)):
            both = np.exp(ends[[REPEATED_TEST, name]].dropna())
            asked[name, *key] = stats.paired(both[REPEATED_TEST], both[name], log=True, margin=MARGIN, test="t")
    label = "against {finder} on " + LABEL
    question = Question.of(
        "against_finders", ("finder", *BY), asked, label=label, reference="same", counted="trainings"
    )
    if question:
        yield question.table()
        counts = []
        for name in dict.fromkeys(name for name, *_ in asked):
            said = [below(c) for c in question.where(finder=name).members.values()]
            counts.append(f"against {name} in {said.count(True)} of {len(said)}, not lower in {said.count(False)}")
        yield question.verdict(
            BETTER, below, unit="times the loss at the finder's rate", says=tally(question, below),
            why=f"tasks in which its loss is lower by more than the margin: {'; '.join(counts)}",
            method=f"paired t by seed on ln(loss), margin a factor of {MARGIN:g}, where both suggest a rate",
        )  # fmt: skip


def _coverage(table: pd.DataFrame) -> Iterator[Answer]:
    """Does the interval hold the tuned rate? Of each condition, which has one, the first training that is decided."""
    ours = table[(table["finder"] == REPEATED_TEST) & table["rate"].notna()]
    if ours.empty:
        return
    asked, further = coverages(ours)
    question = Question.of(
        "coverage", ("interval",), asked, label="the interval {interval}", reference="nominal", counted="conditions"
    )
    yield question.table(further)
    wide, narrow = (further[key] for key in [*question.members][:2])
    yield question.where(interval="of the answer").verdict(
        COVERED, agrees, unit="share of conditions",
        why=f"the interval, whose ends differ by a factor of {wide['median_factor']:.0f} in the median, holds the "
        f"tuned rate in {wide['held']} of the {wide['trainings']} decided trainings; that of the repetitions alone, a "
        f"factor of {narrow['median_factor']:.1f}, in {narrow['held']}",
        method="the first decided training of each condition, as all of one are held against one tuned rate; exact "
        f"binomial against 95 %, margin {TOLERATED:.0%}, so that {0.95 - TOLERATED:.0%} must be shown",
    )  # fmt: skip


def _rule(table: pd.DataFrame) -> Iterator[Answer]:
    """The tuned rate over the suggested one, by condition: a check of the finder's own fraction and spread."""
    ours = table[(table["finder"] == REPEATED_TEST) & table["rate"].notna()]
    means = ours.assign(ratio=np.log(ours["tuned"] / ours["rate"])).groupby(BY)["ratio"].mean()
    yield "rule", np.exp(means).rename("tuned_over_suggested").reset_index()


def _sentences(question: Question) -> Iterator[Sentence]:
    costs: dict[str, list[float]] = {}
    trainings: dict[str, int] = {}
    for (finder, *_), comparison in question.members.items():
        costs.setdefault(finder, []).append(comparison.effect.value)
        trainings[finder] = trainings.get(finder, 0) + comparison.effect.n
    means = {finder: float(np.exp(np.mean(np.log(values)))) for finder, values in costs.items()}
    without, used = means.pop(FIXED, 0.0), {name: mean for name, mean in means.items() if name in IN_USE}
    if not used:
        return
    best, worst = min(means, key=means.__getitem__), max(used, key=used.__getitem__)
    if without:
        decided = f", in the {trainings[best]} of {max(trainings.values())} trainings in which it suggests one"
        yield Sentence(
            f"A learning rate that suits other tasks ends at {without:.2g} times the tuned one's loss, the "
            f"best of {len(means)} range tests ({best}) at {means[best]:.2g} times"
            + decided * (trainings[best] < max(trainings.values())) + ".",
            "finders", (AS_GOOD.id, REPEATED.id),
        )  # fmt: skip
    yield Sentence(
        f"The learning rate that {worst} suggests ends at {used[worst]:.2g} times the tuned one's loss, and at "
        f"{max(costs[worst]):.3g} times in the worst of {len(costs[worst])} tasks.",
        "finders", (AS_GOOD.id,),
    )  # fmt: skip


@drawing.figure(
    "regret", "What a training at a suggested rate loses against one at the tuned rate",
    lambda regret: f"ln of the loss after the training at the suggested rate over that at the tuned rate, mean of "
    f"{spanned(regret['n'])} seeds, intervals that hold at once; linear within the margin, a factor of {MARGIN:g}. "
    f"{FIXED}: the rate that suits the optimizer's other conditions; its intervals hold one by one.",
)  # fmt: skip
def draw_regret(regret: pd.DataFrame) -> Any:
    """Regret by condition, one mark a finder; other marks of the repeated test's curves are in the table alone."""
    regret = regret[~regret["finder"].isin(APART)]
    with np.errstate(divide="ignore"):  # an interval may be the whole line
        logs = {name: np.log(regret[name]) for name in ("value", *drawing.interval(regret))}
    names = [f"{r.net}, {r.optimizer}, batch {r.batch:.0f}, {r.noise:.0%} noise" for r in records(regret)]
    shown = regret.assign(condition=names, **logs)
    axes = {"xscale": "symlog", "xlabel": "ln of the loss over that at the tuned rate"}
    size = (9.0, 1.8 + 0.42 * shown["condition"].nunique())
    margin = round(float(np.log(MARGIN)), 3)
    return drawing.panels(shown, "", drawing.forest, at="condition", by="finder", margin=margin, axes=axes, size=size)


METHOD = f"""**The range test.** Every finder sees the same weights. The finders in use are Lightning's (steepest
descent of a running mean, by step before its version 2.5.3 and by rate since), fastai's `valley` and `minimum`, each
with its own range and stopping. The repeated test is `depthgauge.learning_rate` with {REPETITIONS} orders of the data.
A training of the same weights and a fixed number of steps at the suggested rate is held against one at the tuned rate:
loss over all training examples, noisy labels included, never counted above that of the start. Rates are tuned on other
seeds, on a grid of 10^(1/4) that is extended where its best is at an edge. "{FIXED}" is the rate of the grid that is
best, in the mean, under the other conditions of the optimizer: what a user knows without any test. Label noise draws a
share of the labels anew."""
PART = Part(
    "range_test", (AS_GOOD, REPEATED, BETTER, COVERED), SIZES, grids, run, analyse, (draw_finders, draw_regret), METHOD,
    second, shown=("coverage",),
)  # fmt: skip
