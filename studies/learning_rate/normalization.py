"""Normalization and skips: whether they raise the largest learning rate, and whether that speeds training up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import arrival, data, drawing, models, replicas, stats, training
from depthgauge.frames import groups
from depthgauge.initialization import scheme
from depthgauge.models.slots import Norm, batch_statistics
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, below, every, spelled
from depthgauge.studies.learning_rate import windows
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

FASTER = Claim("N24", "batch normalization speeds up convergence by allowing a larger learning rate")
RAISED = Claim(
    "learning_rate/raised", "normalization and skips each raise the largest learning rate at which a network learns"
)
KEYS = ["variant", "depth"]
METRICS = ("loss", "steps_to_target", "reached")
TWICE = 2.0  # largest rates within this factor, a step of the grid, are the same
PACE = 1.1  # steps to the target: up to 10 % more are none
TARGET = 0.9  # share of training examples right that counts as arrived
WATCHED = 300  # training examples over which it is measured
RATES = tuple(2.0**k for k in range(-8, 7))
SIZES = sizes(
    "depths seeds steps width rates", quick=((), 0, 0, 0, ()), standard=((3, 7), 8, 200, 32, RATES),
    full=((3, 7, 16), 16, 600, 64, RATES), tiny=((2,), 5, 4, 8, RATES[3::4]),
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A network's normalization and shortcuts, and how it is drawn."""

    norm: Norm = "none"
    residual: bool = False
    scheme: str = "he"


VARIANTS = {
    "plain": Variant(), "batch_norm": Variant(batch_statistics), "layer_norm": Variant("layer"),
    "skips": Variant(residual=True), "scaled_skips": Variant(residual=True, scheme="depth_scaled"),
}  # fmt: skip


def grids(
    *, depths: tuple[int, ...], seeds: int, steps: int, width: int, rates: tuple[float, ...]
) -> Iterator[Grid]:  # fmt: skip
    """Every variant at every depth and rate; at quick there are none."""
    if depths:
        yield Grid(
            {"variant": tuple(VARIANTS), "depth": depths, "lr": rates},
            {"width": width, "steps": steps, "batch": 32}, seeds, ("lr", "seed"), 1000, selection=3,
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on 8 x 8 digits: loss of the training examples at the end, and steps until TARGET of WATCHED are right."""
    shared, digits = cases[0], data.load("digits").to(context.device)
    variant, steps = VARIANTS[shared.text("variant")], shared.integer("steps")
    fit, _ = data.hold_out(digits.train, training.HELD_OUT)
    template = models.build(
        "mlp", input_shape=digits.input_shape, classes=digits.classes, norm=variant.norm, residual=variant.residual,
        depth=shared.integer("depth"), width=shared.integer("width"),
    )  # fmt: skip
    seeds = [case.random_seed("seed", "width", "depth", "steps") for case in cases]  # of all variants: paired
    stack = replicas.stack(template, seeds, scheme(variant.scheme), device=context.device)
    watched = data.Examples(fit.x[:WATCHED], fit.y[:WATCHED])
    sgd = replicas.SGD([case.number("lr") for case in cases])
    trained, taken, reached = arrival.passed(
        stack, fit, sgd, target=TARGET, on=watched, at=arrival.checkpoints(steps, 1.1),
        batch=shared.integer("batch"), steps=steps,
    )  # fmt: skip
    loss = replicas.evaluate(trained, fit.x, fit.y).loss
    for metric, values in zip(METRICS, (loss, taken, reached), strict=True):
        yield from (case.rows(metric, float(value)) for case, value in zip(cases, values, strict=True))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Largest rates against the plain network's, and steps to the target at each variant's own and at its rate."""
    runs = training.table(rows, *KEYS, "lr", "seed", metrics=METRICS).assign(score=lambda t: -t["steps_to_target"])
    runs = runs.astype({"seed": int, "depth": int}).assign(variant=runs["variant"].str.replace("_", " "))
    runs = training.tunable(runs, KEYS)
    if runs.empty:
        return
    reported = runs[runs["seed"] >= 0]
    yield "pace", pd.DataFrame(arrival.paces(reported, [*KEYS, "lr"]))
    found = windows.windows(reported, [*KEYS, "seed"])
    yield "largest_rates", pd.DataFrame(_largest(found))
    larger = yield from raised(found)
    yield from faster(reported, training.tuned(runs, KEYS, score="score"), larger)


def _largest(found: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for key, own in groups(found, KEYS):
        value = stats.mean(own["largest"].to_numpy(), log=True)
        ends = {"none_learns": int(own["largest"].isna().sum()), "censored": int(own["censored"].sum())}
        yield {**dict(zip(KEYS, key, strict=True)), "n": len(own), **spelled("largest", value), **ends}


def raised(found: pd.DataFrame) -> Any:
    """Largest rate of each variant over that of the plain network, seed by seed; returns the question."""
    asked = {}
    for depth, lines in groups(found, "depth"):
        by_variant = {name: own.set_index("seed") for name, own in groups(lines, "variant")}
        plain = by_variant.pop("plain", lines.iloc[:0])
        for name, own in by_variant.items():
            both = own.index.intersection(plain.index)
            pair = own["largest"][both], plain["largest"][both]
            ratio = stats.paired(*pair, log=True, margin=TWICE, resolution=TWICE, test="t")
            asked[name, depth] = training.unsettled(ratio, plain["censored"].any())
    question = Question.of("raised", KEYS, asked, label="{variant} at depth {depth}", reference="the plain network")
    if question:
        yield question.table()
        words = {True: "the largest rate is more than twice as large with", False: "not with", None: "undecided:"}
        yield question.verdict(
            RAISED, above, unit="times the plain network's largest rate", why=question.listed(above, words, 8),
            method=f"{windows.METHOD}; log ratio to the plain network's, paired t by seed, margin and resolution a "
            f"step of the grid, {TWICE:g}; where a variant learns at the last rate, its largest is a bound",
        )  # fmt: skip
    return question


OWN, SAME, GAIN = "both at their own rate", "both at the plain one's rate", "its own rate over the plain one's"


def _comparisons(reported: pd.DataFrame, tuned: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame, pd.DataFrame]]:
    """(what is compared, depth, runs, other runs), by seed: networks with batch normalization against plain ones."""
    for depth, lines in groups(tuned, "depth"):
        by_variant = {name: own.set_index("seed") for name, own in groups(lines, "variant")}
        if not {"plain", "batch norm"} <= set(by_variant):
            continue
        plain, normed = by_variant["plain"], by_variant["batch norm"]
        here = reported[(reported["depth"] == depth) & (reported["variant"] == "batch norm")]
        same = here[here["lr"] == plain["lr"].iloc[0]].set_index("seed").assign(at_edge=False)
        both = plain.index.intersection(normed.index).intersection(same.index)
        for name, one, other in ((OWN, normed, plain), (SAME, same, plain), (GAIN, normed, same)) if len(both) else ():
            yield name, depth, one.loc[both], other.loc[both]


def faster(reported: pd.DataFrame, tuned: pd.DataFrame, larger: Question) -> Iterator[Answer]:
    """N24: steps with and without batch normalization, at its own rate and at the plain network's."""
    asked, further = {}, {}
    for name, depth, one, other in _comparisons(reported, tuned):
        steps = stats.paired(one["steps_to_target"], other["steps_to_target"], log=True, margin=PACE, test="t")
        late, later = ((runs["reached"] < 1).any() for runs in (one, other))
        edge, bound = one["at_edge"].any() or other["at_edge"].any(), training.one_sided(steps, least=late, most=later)
        asked[name, depth] = training.unsettled(steps, edge, censored=bound)
        further[name, depth] = {
            f"{whose}{what}": value
            for whose, runs in (("", one), ("other_", other))
            for what, value in (
                ("steps", runs["steps_to_target"].where(runs["reached"] > 0, np.inf).median()),
                ("lr", runs["lr"].iloc[0]), ("arrived", int(runs["reached"].sum())),
            )
        }  # fmt: skip
    question = Question.of("batch_norm", ["what", "depth"], asked, label="{what} at depth {depth}", reference="as fast")
    if not question:
        return
    yield question.table(further)
    answers, told = {}, []
    for depth in dict.fromkeys(depth for _, depth in asked):
        own, gain = question.members[OWN, depth], question.members[GAIN, depth]
        answers[f"depth {depth}"] = every([below(own), below(gain), above(larger.members["batch norm", depth])])
        row, same = further[OWN, depth], further[SAME, depth]["steps"]
        told.append(
            f"at depth {depth} {row['steps']:.0f} steps at a rate of {row['lr']:.2g}, without it "
            f"{row['other_steps']:.0f} at {row['other_lr']:.2g}, and with it at that rate {same:.0f}"
        )
    deepest = max(depth for _, depth in asked)
    row = further[OWN, deepest]
    undecided = "" if question.members[OWN, deepest].beyond else "; no difference is shown"
    yield Sentence(
        f"Batch normalization takes {row['steps']:.0f} steps to the target in place of {row['other_steps']:.0f}, at "
        f"{row['lr'] / row['other_lr']:.3g} times the learning rate (depth {deepest}, medians){undecided}.",
        claims=(FASTER.id,),
    )
    yield question.verdict(
        FASTER, answers, unit="times the steps", why=f"with batch normalization {'; '.join(told)} (medians)",
        method=f"holds where it needs fewer steps at its own rate than the plain network at its own, fewer than at the "
        f"plain network's rate, and learns at more than twice the largest rate; steps until {TARGET:.0%} of {WATCHED} "
        f"training examples are right; a run that never has them counts with its budget, so that the ratio is a bound "
        f"and decides to one side alone; log ratio, paired t by seed, margin {PACE:g}; rates chosen by other seeds",
    )  # fmt: skip


@drawing.figure(
    "largest_rates", "The largest learning rate at which a network learns, by normalization and skips",
    lambda largest_rates: f"Geometric mean of {largest_rates['n'].min()} seeds, 95 % intervals; ReLU, He's draws. "
    "Scaled skips: branches start divided by the square root of their number.",
)  # fmt: skip
def draw_largest(largest_rates: pd.DataFrame) -> Any:
    """Largest rates, a row a variant, a panel a depth."""
    axes = {"xscale": "log", "xlabel": "largest learning rate"}
    shown = largest_rates.rename(columns={"largest": "rate"}).rename(
        columns=lambda name: name.replace("largest", "rate")
    )
    return drawing.panels(shown, "depth", drawing.estimates, at="variant", value="rate", axes=axes, shared="both")


@drawing.figure(
    "pace", "Steps to the target against the learning rate, by normalization and skips",
    lambda pace: f"Median of {pace['n'].min()} seeds and their middle 90 %, where they arrive; {TARGET:.0%} of the "
    "training examples right. A line ends where half of the runs do not arrive within the budget.",
)  # fmt: skip
def draw_pace(pace: pd.DataFrame) -> Any:
    """Steps by rate, a panel a depth."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "steps to target"}
    shown = pace[np.isfinite(pace["median"])]
    most = shown["median"].max()
    return drawing.panels(
        shown.assign(high=shown["high"].clip(upper=most)),
        "depth",
        drawing.profile,
        by="variant",
        x="lr",
        axes=axes,
        shared="both",
    )


METHOD = f"""**Normalization and skips.** ReLU networks of He's draws on 8 x 8 digits, SGD, at every rate of a grid in
factors of {TWICE:g}: plain, with batch or layer normalization before each activation, with identity skips, and with
skips whose branches start divided by the square root of their number. Batch normalization takes the statistics of the
examples at hand, in evaluation too. A rate is tuned by the steps to the target of seeds that are not reported. Depths
and steps were chosen, so that plain networks arrive, after a trial run with other seeds."""
PART = Part(
    "normalization", (FASTER, RAISED), SIZES, grids, run, analyse, (draw_largest, draw_pace), METHOD,
)  # fmt: skip
