"""The noise of batch statistics: the gap between test and training loss by the examples they are taken over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from depthgauge import data, drawing, replicas, stats, training
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
    """Gaps and test errors over those without noise, each number of examples at its own rate."""
    if rows.empty:
        return
    runs = training.table(rows, "ghost", "lr", "seed", metrics=METRICS).astype({"seed": int, "ghost": int})
    best = training.tuned(training.tunable(runs, ["ghost"]), ["ghost"])
    best = best.assign(gap=best["test_loss"] - best["train_loss"])
    ends = {ghost: own.set_index("seed") for ghost, own in groups(best, "ghost")}
    clean = ends.pop(ALL, best.iloc[:0])
    asked, further = {}, {}
    for ghost, own in ends.items():
        both = own.index.intersection(clean.index)
        for column, what in (("gap", "gap of the loss"), ("train_loss", "training loss"), ("test_error", "test error")):
            pair = own.loc[both, column], clean.loc[both, column]
            asked[what, ghost] = stats.paired(*pair, log=True, margin=SAME, test="t")
            further[what, ghost] = {"lr": own["lr"].iloc[0], "noiseless_lr": clean["lr"].iloc[0]} | {
                "mean": pair[0].mean(), "noiseless_mean": pair[1].mean(),
            }  # fmt: skip
    question = Question.of(
        "ghosts", ("of", "ghost"), asked, family=lambda of, **_: of, label="{of} with statistics of {ghost}",
        reference="no noise",
    )  # fmt: skip
    if not question:
        return
    yield question.table(further)
    yield from _verdicts(question)


def _verdicts(question: Question) -> Iterator[Answer]:
    gaps, errors = question.where(of="gap of the loss"), question.where(of="test error")
    words = {True: "smaller:", False: "not smaller:", None: "undecided:"}
    method = (
        f"statistics over a part of the {BATCH} examples of a gradient, against those of all training examples; losses "
        "at the end with the statistics of all training examples, log ratio by seed, paired t, less by more than "
        f"{SAME - 1:.0%}; rates chosen by validation accuracy of other seeds"
    )
    yield gaps.verdict(
        CAPACITY, below, unit="times that without noise", why=gaps.listed(below, words, 8),
        method=f"test loss minus training loss, {method}",
    )  # fmt: skip
    yield errors.verdict(
        LOWERS, below, unit="times that without noise", why=errors.listed(below, words, 8), method=method
    )
    smallest = min(ghost for _, ghost in gaps.members)
    gap, error = gaps.members["gap of the loss", smallest], errors.members["test error", smallest]
    if below(gap) and below(error) is not None:
        what = "lowers the test error too" if below(error) else "does not lower the test error"
        yield Sentence(
            f"Batch statistics of {smallest} examples in place of all shrink the gap between test and training loss to "
            f"{gap.effect.value:.2g} of its size; that {what} ({error.effect.value:.2g} times).",
            figure="ghosts", claims=(CAPACITY.id, LOWERS.id),
        )  # fmt: skip


@drawing.figure(
    "ghosts", "The noise of batch statistics: gap, training loss and test error by the examples they are taken over",
    lambda ghosts: f"Times the value with statistics of all training examples; geometric mean of {ghosts['n'].min()} "
    "seeds, intervals of 95 % at once. 100 digits to train; gradients of 32 examples.",
)  # fmt: skip
def draw_ghosts(ghosts: pd.DataFrame) -> Any:
    """Ratios over the number of examples, a panel a figure."""
    axes = {
        "xscale": "log",
        "yscale": "log",
        "xlabel": "examples of the statistics",
        "ylabel": "times that without noise",
    }
    return drawing.panels(ghosts, "of", drawing.estimates, at="ghost", axes=axes, shared="x")


METHOD = f"""**Ghost batches.** A gradient is taken over {BATCH} examples, and each layer's mean and deviation over a
few of them (ghost batches; Kosson et al. 2023), over all of them, or, without noise, over all training examples,
through which the gradient goes too. Networks of three normalized layers without gain and bias, 100 digits to train,
SGD without decay."""
PART = Part("ghosts", (CAPACITY, LOWERS), SIZES, grids, run, analyse, (draw_ghosts,), METHOD)
