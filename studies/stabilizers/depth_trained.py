"""The depth that each scheme trains: residual stacks on digits at tuned rates, with and without normalization."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import data, drawing, refinement, stats, training
from depthgauge.frames import groups
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, below, either, every
from depthgauge.studies.stabilizers import deep_stacks
from depthgauge.studies.stabilizers.deep_stacks import SCHEMES, Scheme
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

DEEP = Claim(
    "stabilizers/trains_deep", "each scheme that stabilizes residual networks trains them as deep as batch or layer "
    "normalization does",
)  # fmt: skip
KEYS = ["scheme", "depth"]
METRICS = ("steps", "reached", "score", "cut")
NORMALIZED = ("layer norm", "batch norm")
ASKED = ("1/sqrt(L)", "Fixup", "SkipInit/ReZero", "LayerScale", "DeepNorm")
CONTROL = "no blocks"
SELECTION = 3  # seeds that choose a rate
TARGET = 0.97  # share of the watched training examples right that counts as arrived
WATCHED = 300
BATCH = 32
RATES = tuple(2.0**k for k in range(-7, 3, 2))
COARSE = 4.0  # between a rate and the next
END = {-1: "lowest", 0: "", 1: "highest"}  # of the rates tried
SIZES = sizes(
    "depths seeds steps width rates", quick=((), 0, 0, 0, ()), standard=((8, 32, 128), 16, 150, 16, RATES),
    full=((8, 32, 128, 256), 24, 150, 16, RATES), tiny=((2,), 5, 3, 6, RATES[2:4]),
)  # fmt: skip


def grids(
    *, depths: tuple[int, ...], seeds: int, steps: int, width: int, rates: tuple[float, ...]
) -> Iterator[Grid]:  # fmt: skip
    """The seeds that choose, at coarse rates; at quick there are none."""
    del seeds
    for schemes, blocks in ((tuple(SCHEMES), depths), ((CONTROL,), (0,))) if depths else ():
        yield Grid(
            {"scheme": schemes, "depth": blocks, "lr": rates}, {"steps": steps, "width": width}, 0, ("lr", "seed"), 100,
            selection=SELECTION,
        )  # fmt: skip


def second(rows: pd.DataFrame, *, seeds: int, **_: Any) -> Iterator[Grid]:
    """Finer rates about the best, and the seeds that are reported."""
    runs = training.table(rows.assign(run=rows["case"]), "run", *KEYS, "lr", "seed", metrics=METRICS)
    yield from refinement.grids(runs, KEYS, seeds=seeds, score="score", factor=COARSE, chunk=100)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on 8 x 8 digits until TARGET of WATCHED are right; and the accuracy that is left without the branches."""
    del context  # small matrices, many steps: the processor
    shared, digits = cases[0], data.load("digits").train
    scheme, steps = SCHEMES.get(shared.text("scheme"), Scheme()), shared.integer("steps")
    seeds = [case.random_seed("seed", "width", "depth", "steps") for case in cases]  # of all schemes: paired
    drawn = deep_stacks.draw(
        scheme, seeds, blocks=shared.integer("depth"), width=shared.integer("width"), inputs=64, classes=10
    )
    found = deep_stacks.train(
        scheme, drawn, digits.x.flatten(1), digits.y, rates=[case.number("lr") for case in cases], seeds=seeds,
        steps=steps, batch=BATCH, watched=WATCHED, target=TARGET,
    )  # fmt: skip
    score = -np.where(found.reached, found.steps, 2 * steps) - (1 - found.accuracy)
    for i, case in enumerate(cases):
        for metric, values in zip(METRICS, (found.steps, found.reached, score, found.cut), strict=True):
            yield case.rows(metric, float(values[i]))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Share of runs that arrive at tuned rates, against a half; each scheme's answer where normalization trains."""
    runs = training.table(rows, *KEYS, "lr", "seed", metrics=METRICS).astype({"seed": int, "depth": int})
    runs = training.tunable(runs, KEYS)
    if runs.empty:  # those alone that choose a rate
        yield "trained", runs
        yield "trained_steps", runs
        return
    tuned = training.tuned(runs, KEYS, score="score")
    asked, further, lines = {}, {}, []
    for (scheme, depth), own in groups(tuned, KEYS):
        arrived = int(own["reached"].sum())
        share = stats.coverage(arrived, len(own), 0.5)
        steps = stats.band(own["steps"].where(own["reached"] > 0, np.inf).to_numpy()[:, None])
        told = {
            "lr": float(own["lr"].iloc[0]), "at_edge": bool(own["at_edge"].any()),
            "rate_tried": END[int(own["outward"].iloc[0])], "median_steps": steps["median"][0],
            "cut": float(own["cut"].mean()),
        }  # fmt: skip
        lines.append({
            "scheme": scheme, "depth": depth, "n": len(own), "arrived": arrived, "value": share.effect.value,
            "low_95": share.effect.low, "high_95": share.effect.high, **told,
        })  # fmt: skip
        if scheme != CONTROL:
            asked[scheme, depth] = share if above(share) else training.unsettled(share, told["at_edge"])
            further[scheme, depth] = told
    question = Question.of(
        "trained_shares", KEYS, asked, label="{scheme} with {depth} blocks", reference="half of the runs"
    )
    yield "trained", (trained := pd.DataFrame(_at_once(lines, question)))
    yield "trained_steps", tuned.assign(budget=rows["steps"].max())
    yield question.table(further)
    yield from answer(question, trained)


def _at_once(lines: list[dict[str, Any]], question: Question) -> Iterator[dict[str, Any]]:
    """The lines with the intervals that answer, which hold for all at once: a bar above a half is one that is told."""
    for line in lines:
        found = question.members.get((line["scheme"], line["depth"]))
        yield line if found is None else {**line, "low_95": found.effect.low, "high_95": found.effect.high}


def answer(question: Question, trained: pd.DataFrame) -> Iterator[Answer]:
    """Each scheme's answer: whether it trains wherever normalization does."""
    trains = {key: _majority(comparison) for key, comparison in question.members.items()}
    depths = sorted({depth for _, depth in trains})
    normal = {depth: either(trains.get((name, depth)) for name in NORMALIZED) for depth in depths}
    beyond = {depth: None if answer is None else not answer for depth, answer in normal.items()}  # where it does not
    answers = {
        name: every(either([beyond[d], trains[name, d]]) for d in depths if (name, d) in trains)
        if True in normal.values() else None
        for name in ASKED
        if any((name, depth) in trains for depth in depths)
    }  # fmt: skip
    if not answers:
        return
    deepest = {name: max((d for d in depths if trains.get((name, d))), default=0) for name, _ in trains}
    listed = ", ".join(f"{name} {depth or 'none'}" for name, depth in deepest.items())
    yield question.where(scheme=ASKED).verdict(
        DEEP, answers, unit="share of the runs",
        why=f"the most blocks with which it is shown that more than half of the runs arrive: {listed}",
        method=f"trains: more than half of the runs have {TARGET:.0%} of {WATCHED} training examples right within the "
        f"budget, at a rate chosen by other seeds; as deep: wherever layer or batch normalization trains, "
        "undecided where it may train and the scheme is not seen to; exact "
        "binomial over seeds",
    )  # fmt: skip
    yield from _sentences(trained, {name: answer for (name, depth), answer in trains.items() if depth == depths[-1]})


def _majority(share: stats.Comparison) -> bool | None:
    return True if above(share) else False if below(share) else None


def _sentences(trained: pd.DataFrame, trains: dict[str, bool | None]) -> Iterator[Sentence]:
    last = trained["depth"].max()
    rows = trained.set_index(KEYS)
    groups_of = {
        answer: [f"{name} ({_arrived(rows.loc[(name, last)])})" for name, own in trains.items() if own is answer]
        for answer in (True, None, False)
    }
    words = {True: "most learn with", None: "undecided with", False: "most do not with"}
    told = "; ".join(f"{word} {', '.join(groups_of[answer])}" for answer, word in words.items() if groups_of[answer])
    yield Sentence(
        f"Of {rows['n'].min()} residual stacks of {last} blocks on digits, at tuned rates, within the budget: {told}.",
        figure="trained", claims=(DEEP.id,),
    )  # fmt: skip
    able = [name for name, answer in trains.items() if answer]
    control = trained.loc[trained["scheme"] == CONTROL, "median_steps"]
    if able and len(control):
        steps = rows["median_steps"]
        told = ", ".join(f"{name} {steps[name, last]:.0f}" for name in sorted(able, key=lambda name: steps[name, last]))
        left = ", ".join(f"{name} {rows.loc[(name, last), 'cut']:.0%}" for name in able)
        yield Sentence(
            f"Median steps to {TARGET:.0%} of the training digits with {last} blocks: {told}; without any block "
            f"{control.iloc[0]:.0f}. When every branch is cut at the end, so much is still right: {left}.",
            figure="trained_steps", claims=(DEEP.id,),
        )  # fmt: skip


def _arrived(row: pd.Series[Any]) -> str:
    """How many arrived, and that the rate is an end of those tried, beyond which a better one may lie."""
    return f"{row['arrived']}" + (f", at the {row['rate_tried']} rate tried" if row["rate_tried"] else "")


@drawing.figure(
    "trained", "Which residual stacks learn, by scheme and depth",
    lambda trained: f"Share of {trained['n'].min()} runs that reach {TARGET:.0%} of the training examples within the "
    "budget, at tuned rates; exact intervals of 95 % at once.",
)  # fmt: skip
def draw_trained(trained: pd.DataFrame) -> Any:
    """Shares by scheme, a panel a depth."""
    axes = {"xlabel": "share of runs", "xlim": (-0.02, 1.02)}
    shown = trained[trained["depth"] > 0]
    return drawing.panels(shown.assign(blocks=shown["depth"].map("{} blocks".format)), "blocks", drawing.estimates,
                          at="scheme", axes=axes, shared="both")  # fmt: skip


@drawing.figure(
    "trained_steps", "Steps to the target by scheme and depth",
    "A dot a run at its scheme's tuned rate; hollow: runs that did not arrive within the budget.",
)  # fmt: skip
def draw_steps(trained_steps: pd.DataFrame) -> Any:
    """Steps by scheme, a panel a depth."""
    shown = trained_steps[trained_steps["scheme"] != CONTROL]
    shown = shown.assign(
        steps_to_target=shown["steps"], steps=shown["budget"], blocks=shown["depth"].map("{} blocks".format)
    )
    return drawing.panels(shown, "blocks", drawing.ladder, at="scheme")


METHOD = f"""**How deep they train.** The stacks of the depth laws, on 8 x 8 digits, plain SGD with batches of
{BATCH}: steps until {TARGET:.0%} of {WATCHED} training examples are right. Learning rates are tuned in two stages by
{SELECTION} seeds that are not reported. A network without blocks is a linear model and shows what the target asks. At
the end every branch is cut and the accuracy taken again: where it stays, the depth trained but was not used. Target,
budget and rates were set with trial runs in view."""
PART = Part(
    "depth_trained", (DEEP,), SIZES, grids, run, analyse, (draw_trained, draw_steps), METHOD, second=second
)  # fmt: skip
