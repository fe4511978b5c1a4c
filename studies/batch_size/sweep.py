"""Steps to a target for every batch size, the learning rate tuned anew for each: the sweep, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import arrival, refinement, timing, training
from depthgauge.frames import records
from depthgauge.parts import Answer, Part, sizes
from depthgauge.studies.batch_size import best_rates, comparisons, hyperbola, noise_scales, planned
from depthgauge.studies.batch_size.hyperbola import FLAT, GROUP, REFERENCE
from depthgauge.studies.batch_size.trained import BUDGET, HORIZON, NETS, POWERS, group, prepared, rates, step_of
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim

CLAIMS: tuple[Claim, ...] = (
    hyperbola.HYPERBOLA, noise_scales.PREDICTS, comparisons.LENGTHEN, comparisons.SMALL, comparisons.COMPUTATION,
    comparisons.STOPPED, best_rates.EXPONENTS, best_rates.SATURATES, planned.BATCHES, planned.COVERAGE, planned.MODEL,
)  # fmt: skip
LOOKED = 2**0.25  # between the steps at which the loss is measured, which takes longer than a step of a small batch
ENDS = ("steps_to_target", "reached", "diverged")
EVERY = ("sgd", "momentum", "adam", "adamw", "cosine")
FOURS = (1, 4, 16, 64, 256, 1024)
TWOS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1442)  # the last: the whole set
QUICK = (("softmax", ("sgd",), (8, 32, 64, 128, 512), 8, 5),)
STANDARD = (("softmax", EVERY, FOURS, 16, 5), ("mlp", EVERY, FOURS, 16, 5), ("lenet5", ("sgd",), (16, 64, 256), 5, 3))
FULL = (
    ("softmax", EVERY, TWOS, 16, 8), ("mlp", EVERY, TWOS, 16, 8),
    ("lenet5", ("sgd", "momentum", "adam"), (16, 32, 64, 128, 256, 512), 8, 5),
    ("resnet18", ("sgd", "momentum"), (16, 64, 256), 5, 3),
)  # fmt: skip
TINY = (("few", ("sgd", "adam"), (4, 16, 48, 96, 192), 5, 5),)
NOISED = (("softmax", (4, 64)), ("mlp", (4, 64)), ("lenet5", (64,)))
Plan = tuple[tuple[str, tuple[str, ...], tuple[int, ...], int, int], ...]  # network, optimizers, batches, both seeds
SIZES = sizes(
    "plan noised rounds", quick=(QUICK, (("softmax", (8,)),), 0), standard=(STANDARD, NOISED, 30),
    full=(FULL, NOISED, 50), tiny=(TINY, (("few", (16,)),), 2),
)  # fmt: skip


def grids(plan: Plan, noised: tuple[tuple[str, tuple[int, ...]], ...], rounds: int) -> Iterator[Grid]:
    """The coarse grid of every group, run by the seeds that choose; and the clock."""
    del noised
    for net, optimizers, batches, _, selection in plan:
        for optimizer in optimizers:
            for batch in batches:
                fixed = group(net, optimizer, batch)
                yield Grid({"lr": rates(net, optimizer, batch)}, fixed, 0, ("lr", "seed"), 500, selection=selection)
    for net, _, batches, *_ in plan if rounds else ():
        yield Grid({"batch": batches}, {"net": net, "rounds": rounds}, exclusive=True, together=("batch",), chunk=100)


def second(
    rows: pd.DataFrame, plan: Plan, noised: tuple[tuple[str, tuple[int, ...]], ...], rounds: int
) -> Iterator[Grid]:
    """Half steps about the best rate, the seeds that are reported, and the gradients of some at the best rate."""
    del rounds
    seeds, runs = {net: count for net, _, _, count, _ in plan}, runs_of(rows)
    for net, own in runs.groupby("net"):
        yield from refinement.grids(own, list(GROUP), seeds=seeds[str(net)], score="score")
    best = refinement.refined(runs, list(GROUP), score="score")
    for net, batches in noised:
        for batch in batches:
            if lrs := best.get((net, REFERENCE, batch)):
                fixed = {**group(net, REFERENCE, batch), "gradients": True}
                yield Grid({"lr": lrs[:1]}, fixed, seeds[net], ("seed",), 500)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train a chunk to its target, look at its gradients on the way, or time a step of each batch size."""
    first = cases[0]
    if first.get("rounds"):
        for case in cases:
            work = step_of(case.text("net"), case.integer("batch"), context.device)
            seconds = timing.measure(work, context.device, rounds=case.integer("rounds")).seconds
            yield case.rows("seconds", float(np.median(seconds)))
    elif first.get("gradients"):
        yield from noise_scales.measure(cases, context.device)
    else:
        made = prepared(cases, context.device)
        found = arrival.steps_to(
            made.stack, made.fit, made.optimizer, target=made.target, on=made.on,
            at=arrival.checkpoints(made.settings["steps"], LOOKED), **made.settings,
        )  # fmt: skip
        for i, case in enumerate(cases):
            for metric, values in zip(ENDS, (found.steps, found.reached, found.diverged), strict=True):
                yield case.rows(metric, float(values[i]))


def runs_of(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a run to the target; its score is high where it is early, and the worst where it never arrived."""
    runs = training.table(rows.assign(run=rows["case"]), "run", *GROUP, "steps", "lr", "seed", metrics=ENDS)
    runs = runs.astype({"batch": int, "steps": int, "seed": int, "lr": float, "net": str, "optimizer": str})
    with np.errstate(divide="ignore"):
        scores = np.where(runs["reached"] > 0, -np.log(runs["steps_to_target"]), -np.inf)
    return runs.assign(score=scores)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Rates tried, steps at the tuned ones, their hyperbola, noise scales, best rates, the planner's score."""
    clock = rows[rows["metric"] == "seconds"]
    seconds = {(row.net, int(row.batch)): row.value for row in records(clock)}
    runs = runs_of(rows)
    if runs.empty:
        return
    yield "tried_rates", tried(runs)
    both = training.tunable(runs, list(GROUP))
    best = training.tuned(both, list(GROUP), score="score") if len(both) else both.assign(at_edge=False, edge_gain=0.0)
    best = best.assign(open_ended=training.open_ended(best, FLAT))
    yield "tuned_runs", best.drop(columns=["run", "score"])
    found = hyperbola.curves(best)
    yield from hyperbola.answers(best, seconds, found)
    yield from comparisons.answers(found)
    track = noise_scales.tracks(rows)
    predicted = noise_scales.predictions(track)
    yield from noise_scales.answers(track, predicted, found)
    yield from best_rates.answers(runs, predicted, found)
    yield from planned.answers(found, predicted)


def tried(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a group and rate: how many runs chose or are reported, arrived and diverged, and their steps."""
    columns: Mapping[str, Any] = {
        "choosing": ("seed", lambda seeds: int((seeds < 0).sum())),
        "reported": ("seed", lambda seeds: int((seeds >= 0).sum())),
        "arrived": ("reached", "sum"), "diverged": ("diverged", "sum"), "median_steps": ("until", "median"),
        "budget": ("steps", "first"),
    }  # fmt: skip
    until = runs["steps_to_target"].where(runs["reached"] > 0, np.inf)  # a run that did not arrive takes longer
    table: pd.DataFrame = runs.assign(until=until).groupby([*GROUP, "lr"], sort=True).agg(**columns).reset_index()
    return table.astype({"arrived": int, "diverged": int})


TARGETS = ", ".join(f"{net.target:g} for {name}" for name, net in NETS.items() if name != "few")
METHOD = f"""**Sweep.** Steps until the mean loss over fixed training examples is at the target ({TARGETS}): a
measure without noise of its own that depends on the batch. For every network, optimizer and batch size the learning
rate is tuned anew: a grid of {len(POWERS)} rates, each twice the last, about a centre that follows a rule laid down
before (from a pilot of other seeds), then half steps around its best, and two further steps where that is at an edge.
Seeds that choose are not reported; the score is the mean of ln steps, and a rate at which a run did not arrive is out.
A run is given {BUDGET:g} times the steps that were expected; `cosine` is SGD whose rate falls to 0 over {HORIZON:g}
times these. Runs of one seed begin alike in every group. The curve is fitted on logarithms; its intervals are by
jackknife over seeds, given the rates. Gradients are those of the training examples themselves, at the best rate of the
coarse grid: mean noise over mean signal of the seeds, not the mean of ratios. Held out of the planner's fits, before
anything was measured: the smallest and the largest batch size of every curve, and {planned.HELD}, of which it sees one
batch size. Seconds are steps times the time of one plain step of SGD, whatever the optimizer."""
PART = Part(
    "sweep", CLAIMS, SIZES, grids, run, analyse,
    (hyperbola.draw_steps, noise_scales.draw_track, best_rates.draw_rates, planned.draw_planned), METHOD, second,
    shown=("steps_by_batch", "critical_batches", "planned"),
)  # fmt: skip
