"""The noise of batch statistics: the gap between test and training loss by the examples they are taken over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import data, drawing, replicas, stats, training
from depthgauge.drawing.palette import INK
from depthgauge.frames import groups
from depthgauge.initialization import scheme
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, below
from depthgauge.studies.regularization import decays
from depthgauge.studies.regularization.invariant import Invariant
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

CAPACITY = Claim("N47", "batch normalization controls capacity by the noise of small batches")
LOWERS = Claim(
    "regularization/ghost", "batch statistics over fewer examples lower the test error, not only its gap to training"
)
OF = {"gap": "gap of the loss", "train_loss": "training loss", "test_error": "test error"}
METRICS = ("validation_accuracy", "train_loss", "test_loss", "test_error")
BATCH = 32  # examples of a gradient, whatever statistics are taken over
ALL = -1  # statistics of all training examples: no noise
SAME = 1.1  # gaps and errors within 10 % are the same
RATES = tuple(4.0**k for k in range(-3, 2))
SIZES = sizes(
    "ghosts rates steps width seeds", quick=((), (), 0, 0, 0), standard=((4, 8, 32, ALL), RATES, 400, 32, 16),
    full=((2, 4, 8, 16, 32, ALL), RATES, 2000, 64, 30), tiny=((4, ALL), RATES[::2], 4, 6, 5),
)  # fmt: skip


def grids(ghosts: tuple[int, ...], rates: tuple[float, ...], steps: int, width: int, seeds: int) -> Iterator[Grid]:
    """Every number of examples at every rate; at quick there are none."""
    if ghosts:
        yield Grid(
            {"ghost": ghosts, "lr": rates}, {"steps": steps, "width": width, "batch": BATCH}, seeds, ("lr", "seed"),
            1000, selection=3,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD without decay; losses and errors by the statistics of all training examples, however it was trained."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    fit, validation = data.hold_out(digits.train, training.HELD_OUT)
    given, width = decays.examples(fit, "few"), shared.integer("width")
    template = Invariant((64, width, width, 10), shared.integer("ghost"), given.x.flatten(1))
    seeds = [case.random_seed("seed", "width") for case in cases]  # of all ghosts and rates: paired
    stack = replicas.stack(template, seeds, scheme("he"), device=context.device)
    loop = replicas.Loop(batch=shared.integer("batch"), steps=shared.integer("steps"))
    sgd = replicas.SGD([case.number("lr") for case in cases])
    trained = replicas.train(stack, given.x, given.y, sgd, loop).stack
    trained.template.eval()
    on_train, on_test = (replicas.evaluate(trained, held.x, held.y) for held in (given, digits.test))
    on_validation = replicas.evaluate(trained, validation.x, validation.y)
    ends = (on_validation.accuracy, on_train.loss, on_test.loss, 1 - on_test.accuracy)
    for metric, values in zip(METRICS, ends, strict=True):
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, values, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Gaps, losses and test errors over those without noise at the same rate; the rate that other seeds choose."""
    if rows.empty:
        return
    runs = training.table(rows, "ghost", "lr", "seed", metrics=METRICS)
    runs = runs.astype({"seed": int, "ghost": int, "lr": float}).assign(gap=runs["test_loss"] - runs["train_loss"])
    told = runs[runs["seed"] >= 0]
    own = {ghost: dict(list(groups(each.set_index("seed"), "lr"))) for ghost, each in groups(told, "ghost")}
    clean = own.pop(ALL, {})
    asked, further = {}, {}
    for ghost, lr in ((ghost, lr) for ghost, rates in own.items() for lr in sorted({*rates} & {*clean})):
        both = own[ghost][lr].index.intersection(clean[lr].index)
        for column, what in OF.items():
            pair = [each.loc[both, column].to_numpy() for each in (own[ghost][lr], clean[lr])]
            further[what, ghost, lr] = {"mean": pair[0].mean(), "noiseless_mean": pair[1].mean()}
            ratios = (np.where(each >= 0, each, np.nan) for each in pair)  # a gap below 0 has none
            asked[what, ghost, lr] = stats.paired(*ratios, log=True, margin=SAME, test="t")
    if not asked:
        return
    chosen = training.choices(training.tunable(runs, ["ghost"]), ["ghost"])
    chosen = chosen.assign(open_ended=training.open_ended(chosen, 0.0))
    yield "ghost_rates", chosen
    rates = chosen.set_index("ghost")["lr"]
    judged = {key for key in asked if key[2] in {rates.get(ALL), rates.get(key[1])}}
    question = Question.of(
        "ghosts", ("of", "ghost", "lr"), asked, family=lambda **key: (key["of"], tuple(key.values()) in judged),
        label="{of} with statistics of {ghost} at rate {lr:g}", reference="no noise",
    )  # fmt: skip
    yield question.table({key: {**more, "judged": key in judged} for key, more in further.items()})
    asks = question.select(lambda **key: tuple(key.values()) in judged)
    if asks:
        yield from _verdicts(asks, chosen)
    yield from _sentence(question)


def _verdicts(question: Question, chosen: pd.DataFrame) -> Iterator[Answer]:
    gaps, errors = question.where(of="gap of the loss"), question.where(of="test error")
    words = {True: "smaller:", False: "not smaller:", None: "undecided:"}
    method = (
        f"statistics over a part of the {BATCH} examples of a gradient, against those of all training examples at the "
        "same learning rate: at that which other seeds' validation accuracy chooses without noise, and at that which "
        "it chooses with it; losses at the end with the statistics of all training examples, log ratio by seed, paired "
        f"t, less by more than {SAME - 1:.0%}; a run that diverges, or whose gap is below 0, has no ratio and leaves "
        "its condition undecided"
    )
    tuned = "; ".join(
        f"{row['lr']:g} {'without noise' if row['ghost'] == ALL else 'with ' + str(row['ghost'])}"
        + (" (at the end of the grid: one beyond may do better)" if row["open_ended"] else "")
        for row in chosen.to_dict("records")
    )
    for some, claim, what in ((gaps, CAPACITY, "test loss minus training loss, "), (errors, LOWERS, "")):
        yield some.verdict(
            claim, below, unit="times that without noise", method=what + method,
            why=f"{some.listed(below, words, 8)}; chosen rates: {tuned}",
        )  # fmt: skip


def _sentence(question: Question) -> Iterator[Answer]:
    gaps, errors = question.where(of="gap of the loss"), question.where(of="test error")
    smallest = min(ghost for _, ghost, _ in gaps.members)
    some = [{key[2]: c for key, c in each.where(ghost=smallest).members.items()} for each in (gaps, errors)]
    rates = [lr for lr in some[0] if all(c.effect.has_interval for c in (some[0][lr], some[1][lr]))]
    gap, error = ([each[lr] for lr in rates] for each in some)
    if any(map(below, gap)):
        yield Sentence(
            f"Batch statistics of {smallest} examples in place of all leave {_range(gap)} of the gap between test and "
            f"training loss, and {_range(error)} of the test error, at equal learning rates of {min(rates):.2g} to "
            f"{max(rates):.2g}.",
            figure="ghosts", claims=(CAPACITY.id, LOWERS.id),
        )  # fmt: skip


def _range(comparisons: Iterable[stats.Comparison]) -> str:
    values = [each.effect.value for each in comparisons]
    return f"{min(values):.2f} to {max(values):.2f}"


@drawing.figure(
    "ghosts", "The noise of batch statistics: gap, training loss and test error against no noise at the same rate",
    lambda ghosts: f"Times the value with statistics of all training examples at the same learning rate; geometric "
    f"mean of {ghosts['n'].min()} seeds, intervals of 95 % at once. 100 digits; gradients of {BATCH} examples.",
)  # fmt: skip
def draw_ghosts(ghosts: pd.DataFrame) -> Any:
    """Ratios over the rate, a colour the number of examples, a panel a figure."""
    rates = sorted(ghosts["lr"].unique())
    axes = {
        "xscale": "log", "yscale": "log", "xlabel": "learning rate", "ylabel": "times that without noise",
        "xticks": rates, "xticklabels": [f"{rate:.2g}" for rate in rates],
    }  # fmt: skip
    named = ghosts.rename(columns={"ghost": "examples of the statistics"})
    return drawing.panels(named, "of", _ratios, at="lr", by="examples of the statistics", axes=axes, shared="x")


def _ratios(axis: Any, rows: pd.DataFrame, **options: Any) -> None:
    axis.axhline(1, color=INK, lw=0.8, zorder=0, label="as without noise")
    drawing.estimates(axis, rows, joined=True, **options)
    axis.tick_params(which="minor", axis="x", bottom=False, labelbottom=False)


METHOD = f"""**Ghost batches.** A gradient is taken over {BATCH} examples, and each layer's mean and deviation over a
few of them (ghost batches; Kosson et al. 2023), over all of them, or, without noise, over all training examples,
through which the gradient goes too. Networks of three normalized layers without gain and bias, 100 digits to train,
SGD without decay. A higher rate closes the gap as well, so that networks are compared at equal rates."""
PART = Part("ghosts", (CAPACITY, LOWERS), SIZES, grids, run, analyse, (draw_ghosts,), METHOD)
