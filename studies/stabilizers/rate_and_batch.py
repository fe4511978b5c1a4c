"""Batch normalization at several batch sizes: is it the larger learning rate that makes training faster?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import arrival, data, drawing, models, replicas, stats, training
from depthgauge.initialization import scheme
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, below, every, side
from depthgauge.stats import Comparison
from depthgauge.studies.stabilizers.normed import BEST, GAIN, KEYS, NEAR, OWN, PAIRS, VARIANTS, Compared, comparisons
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

FASTER = Claim("N24", "batch normalization speeds up convergence by allowing a larger learning rate")
ALONE = Claim(
    "stabilizers/large_batches",
    "batch normalization's larger learning rate saves steps at large batches alone, not at small ones",
)
GROWS = Claim(
    "stabilizers/rate_gain", "the larger learning rate of batch normalization saves more, the larger the batch"
)
Further = dict[tuple[str, str, int], dict[str, Any]]
METRICS = ("steps_to_target", "reached", "accuracy")
PACE = 1.1  # steps to the target: up to 10 % more are none
TWICE = 2.0  # best rates within this factor, a step of the grid, are the same
TARGET = 0.9  # share of training examples right that counts as arrived
WATCHED = 300  # training examples over which it is measured
RATES = tuple(2.0**k for k in range(-7, 4))
SIZES = sizes(
    "batches seeds steps width depth rates", quick=((), 0, 0, 0, 0, ()), standard=((8, 32, 256), 12, 600, 32, 5, RATES),
    full=((4, 8, 32, 128, 512), 16, 1500, 64, 8, RATES), tiny=((8, 32), 5, 4, 8, 2, RATES[3::4]),
)  # fmt: skip


def grids(  # noqa: PLR0917 - a size names them all
    batches: tuple[int, ...], seeds: int, steps: int, width: int, depth: int, rates: tuple[float, ...]
) -> Iterator[Grid]:  # fmt: skip
    """Every variant at every batch size and rate, the steps fewer at larger batches; at quick there are none."""
    for batch in batches:
        budget = max(round(steps * math.sqrt(min(batches) / batch)), 1)
        yield Grid(
            {"variant": tuple(VARIANTS), "lr": rates},
            {"batch": batch, "width": width, "depth": depth, "steps": budget}, seeds, ("lr", "seed"), 1000, selection=3,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on 8 x 8 digits: steps until TARGET of WATCHED are right, and the share of test examples right at the end."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    variant, steps = VARIANTS[shared.text("variant")], shared.integer("steps")
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    template = models.build(
        "mlp", input_shape=digits.input_shape, classes=digits.classes, norm=variant.norm, residual=variant.residual,
        order=variant.order, depth=shared.integer("depth"), width=shared.integer("width"),
    )  # fmt: skip
    seeds = [case.random_seed("seed", "width", "depth") for case in cases]  # of all variants and batches: paired
    stack = replicas.stack(template, seeds, scheme(variant.scheme), device=context.device)
    watched = data.Examples(fit.x[:WATCHED], fit.y[:WATCHED])
    sgd = replicas.SGD([case.number("lr") for case in cases])
    trained, taken, reached = arrival.passed(
        stack, fit, sgd, target=TARGET, on=watched, at=arrival.checkpoints(steps, 1.1),
        batch=shared.integer("batch"), steps=steps,
    )  # fmt: skip
    accuracy = replicas.evaluate(trained, digits.test.x, digits.test.y).accuracy
    for metric, values in zip(METRICS, (taken, reached, accuracy), strict=True):
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, values, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Best rates with and without batch normalization, and what the larger one saves, at every batch size."""
    runs = training.table(rows, *KEYS, "lr", "seed", metrics=METRICS).assign(score=lambda t: -t["steps_to_target"])
    runs = runs.astype({"seed": int, "batch": int}).assign(variant=runs["variant"].str.replace("_", " "))
    runs = training.tunable(runs, KEYS)
    if runs.empty:
        return
    reported = runs[runs["seed"] >= 0]
    yield "rate_pace", pd.DataFrame(arrival.paces(reported, [*KEYS, "lr"]))
    pairs = list(comparisons(reported, training.tuned(runs, KEYS, score="score")))
    if not pairs:
        return
    asked: dict[tuple[str, str, int], Comparison] = {}
    further: Further = {}
    for each in pairs:
        name, margin = ("best", TWICE) if each.what == BEST else ("steps_to_target", PACE)
        seen = TWICE if each.what == BEST else None
        found = stats.paired(each.runs[name], each.others[name], log=True, margin=margin, resolution=seen, test="t")
        key = each.what, each.pair, each.batch
        asked[key] = training.unsettled(found, each.at_edge)
        further[key] = _ends(each.runs, "") | _ends(each.others, "other_")
    by = ("what", "pair", "batch")
    question = Question.of(
        "rate_and_batch", by, asked, label="{what} {pair} at batch {batch}", reference="the same",
        family=lambda what, **_: what,
    )  # fmt: skip
    yield question.table(further)
    yield from faster(question, further)
    yield from _alone(question, further)
    yield from grows(pairs)


def _ends(runs: pd.DataFrame, whose: str) -> dict[str, Any]:
    """Medians of some runs at their one rate."""
    steps, batch = runs["steps_to_target"].median(), int(runs["batch"].iloc[0])
    ends = {"steps": steps, "examples": steps * batch, "lr": runs["lr"].iloc[0], "arrived": int(runs["reached"].sum()),
            "test_accuracy": runs["accuracy"].median()}  # fmt: skip
    return {f"{whose}{name}": value for name, value in ends.items()}


def faster(question: Question, further: Further) -> Iterator[Answer]:
    """N24: fewer steps than without it, fewer than at the other's rate, and a best rate that is larger."""
    answers, told = {}, []
    for what, pair, batch in question.members:
        if what != OWN:
            continue
        fewer = below(question.members[OWN, pair, batch])
        answers[f"{pair} at batch {batch}"] = every([fewer, *_gains(question, further, pair, batch)])
        row, same = further[OWN, pair, batch], further[GAIN, pair, batch]["other_steps"]
        told.append(
            f"{pair} at batch {batch} {row['steps']:.0f} steps at a rate of {row['lr']:.2g} in place of "
            f"{row['other_steps']:.0f} at {row['other_lr']:.2g}, and {same:.0f} with it at that rate"
        )
    yield question.where(what=OWN).verdict(
        FASTER, answers, unit="times the steps", why=f"with batch normalization {'; '.join(told)} (medians)",
        method=f"holds where it needs fewer steps at its own rate than the network without it at its own, fewer than "
        f"at that network's rate, and has a best rate more than {TWICE:g} times as large; steps until {TARGET:.0%} of "
        f"{WATCHED} training examples are right, the budget where they never are; log ratio, paired t by seed, margin "
        f"{PACE:g}; rates chosen by other seeds",
    )  # fmt: skip


def _gains(question: Question, further: Further, pair: str, batch: int) -> tuple[bool | None, bool | None]:
    """Answers: its best rate is larger, and its own rate saves steps, which one and the same rate does not."""
    same = further[OWN, pair, batch]["lr"] == further[OWN, pair, batch]["other_lr"]
    return above(question.members[BEST, pair, batch]), False if same else below(question.members[GAIN, pair, batch])


def _alone(question: Question, further: Further) -> Iterator[Answer]:
    """At the largest batch the larger rate is better and saves steps, at the smallest it is not or does not."""
    batches = [batch for *_, batch in question.members]
    first, last = min(batches), max(batches)
    answers = {}
    for pair in dict.fromkeys(pair for _, pair, _ in question.members):
        saves = {
            batch: every(_gains(question, further, pair, batch))
            for _, own, batch in question.members if own == pair
        }  # fmt: skip
        if first < last and {first, last} <= set(saves):
            small = saves[first]
            answers[pair] = every([saves[last], None if small is None else not small])
    if answers:
        gains = question.where(what=GAIN)
        listed = ", ".join(f"{c.effect.value:.2g} {key[1]} at batch {key[2]}" for key, c in gains.members.items())
        yield gains.verdict(
            ALONE, answers, unit="times the steps", why=f"at its own rate batch normalization takes {listed} of the "
            "steps that it takes at the rate of the network without it (De and Smith 2020 report a gain at large "
            "batches alone)",
            method=f"true where its best rate is more than {TWICE:g} times as large and saves steps at batch {last}, "
            f"and not both at batch {first}; paired t by seed",
        )  # fmt: skip


def grows(pairs: Sequence[Compared]) -> Iterator[Answer]:
    """The saving by the larger rate at the largest batch, over that at the smallest."""
    gains = {
        (each.pair, each.batch): (each.runs["steps_to_target"] / each.others["steps_to_target"], each.at_edge)
        for each in pairs if each.what == GAIN
    }  # fmt: skip
    first, last = min(batch for _, batch in gains), max(batch for _, batch in gains)
    asked, shares = {}, {}
    for pair in dict.fromkeys(pair for pair, _ in gains):
        if first < last and {(pair, first), (pair, last)} <= set(gains):
            (small, one), (large, other) = gains[pair, first], gains[pair, last]
            both = small.index.intersection(large.index)
            found = stats.paired(large[both], small[both], log=True, margin=PACE, test="t")
            asked[(pair,)] = training.unsettled(found, one or other)
            shares[pair] = [stats.mean(each[both].to_numpy(), log=True).value for each in (large, small)]
    question = Question.of("rate_gain", ("pair",), asked, label="{pair}", reference="the same gain")
    if not question:
        return
    yield question.table()
    yield question.verdict(
        GROWS, below, unit=f"times the share of the steps that remains at batch {first}",
        why=f"the share of its steps that batch normalization takes at its own rate, at batch {last} over that at "
        f"batch {first}, is " + ", ".join(f"{c.effect.value:.2g} {pair}" for (pair,), c in question.members.items()),
        method=f"steps at its own rate over steps at the rate of the network without it; log ratio of the two batch "
        f"sizes, paired t by seed, margin {PACE:g}; a run that does not arrive counts with the budget",
    )  # fmt: skip
    words = {-1: "saves more {} than", 0: "saves as much {} as", 1: "saves less {} than"}
    for (pair,), found in question.members.items():
        if (where := side(found)) is not None:
            yield Sentence(
                f"In networks {pair}, batch normalization's larger learning rate "
                f"{words[where].format(f'at batch {last}')} at batch {first}: of the steps that it takes at the other "
                f"network's rate it takes {shares[pair][0]:.2g} at batch {last} and {shares[pair][1]:.2g} at batch "
                f"{first}.",
                figure="rate_gains", claims=(GROWS.id,),
            )  # fmt: skip


@drawing.figure(
    "rate_pace_by_batch", "Steps to the target against the learning rate, with and without batch normalization",
    lambda rate_pace: f"Median of {rate_pace['n'].min()} seeds and their middle 90 %, where they arrive; {TARGET:.0%} "
    "of the training examples right. A line ends where half of the runs do not arrive within the budget.",
)  # fmt: skip
def draw_pace(rate_pace: pd.DataFrame) -> Any:
    """Steps by rate, a panel a batch size."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "steps to target"}
    drawn = rate_pace[np.isfinite(rate_pace["median"])]
    drawn = drawn.assign(high=drawn["high"].clip(upper=drawn["median"].max()))
    return drawing.panels(drawn, "batch", drawing.profile, by="variant", x="lr", axes=axes, shared="both")


@drawing.figure(
    "rate_gains", "What batch normalization's larger learning rate is worth, by batch size",
    "Best rates with it over those without it; steps with it at its own rate over those without it, and over those "
    "with it at the other's rate. Geometric means of seeds, with intervals that hold for all of a panel at once.",
)  # fmt: skip
def draw_gains(rate_and_batch: pd.DataFrame) -> Any:
    """Ratios by batch size, a panel each."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "ratio"}
    drawn = rate_and_batch.assign(variant=rate_and_batch["pair"].map(lambda pair: PAIRS[pair][0]))
    return drawing.panels(drawn, "what", drawing.estimates, at="batch", by="variant", joined=True, axes=axes)


METHOD = f"""**Rate and batch size.** ReLU networks on 8 x 8 digits, SGD, at every rate of a grid in factors of
{TWICE:g}: plain and with batch normalization before each activation, and residual networks of pre-activation blocks
with batch normalization in each branch or, in its place, branches that start divided by the square root of their
number, which is what batch normalization does to them (De and Smith 2020, arXiv:2002.10444; they report that it allows
larger rates at any batch size, and that these help at large ones alone). Statistics are those of the examples at hand,
in evaluation too. A network's best rate is the middle of those that take at most {NEAR:g} times its least steps. Rates
at which steps are compared are tuned by seeds that are not reported."""
PART = Part(
    "rate_and_batch", (FASTER, ALONE, GROWS), SIZES, grids, run, analyse, (draw_pace, draw_gains), METHOD,
)  # fmt: skip
