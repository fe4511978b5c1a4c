"""Trained networks: each run's end, and each group's learning rate, chosen by runs that are not reported.

    digits = data.load("mnist5k").to(context.device)
    sgd = replicas.SGD([case.number("lr") for case in cases], momentum=0.9)
    recipe = training.Recipe(sgd, steps=300, batch=32, target=0.9)
    draw = training.Draw([case.random_seed("seed") for case in cases], initialize, {"scheme": [...]})
    yield from training.outcomes(cases, model, digits, recipe, draw)

and in the analysis

    runs = training.table(rows, "scheme", "depth", "lr", "seed")         # one row a case, one column a metric
    best = training.tuned(runs, by=["scheme", "depth"])                   # the reported runs at the chosen rates

Every learning rate is trained with every seed. Some seeds choose: those that a grid adds for it (`Grid.selection`,
negative), or, without such, the first three of eight. The rate that does best on their validation examples is the rate
of the group, fixed before a run of another seed is looked at; the others are reported, all at that rate. So the
reported runs are independent of the choice, and their statistics are those of any sample: an interval covers what it
says, however many rates were tried. The test examples have no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from depthgauge import data, replicas, stats
from depthgauge.frames import params_of
from depthgauge.replicas.engine import Strategy
from depthgauge.replicas.objective import Loss
from depthgauge.replicas.stack import Initialize
from depthgauge.study import Case, Grid, Rows

WINDOW = 20  # steps over which mini-batch accuracy is averaged before it is held against the target
HELD_OUT = 0.2  # share of the training examples that are for validation
DECIMALS = 12  # places of a mean score that count: the order of a sum decides no tie
METRICS = (
    "validation_accuracy", "test_accuracy", "train_accuracy", "train_loss", "steps_to_target", "reached", "diverged",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """The training of replicas, and the accuracy that counts as arrived.

    Attributes:
        optimizer: with one learning rate a case.
        steps: number of steps.
        batch: examples a step.
        target: mini-batch accuracy to be reached, a share.
        clip: largest global norm of a gradient; None for no limit.
        window: steps over which mini-batch accuracy is averaged.
        strategy: as in `replicas.train`.
        loss: as in `replicas.train`; classes are scored by accuracy whatever it is.
    """

    optimizer: replicas.SGD | replicas.Adam | replicas.AdamW
    steps: int
    batch: int
    target: float
    clip: float | None = None
    window: int = WINDOW
    strategy: Strategy | None = None
    loss: Loss = "cross_entropy"

    def train(self, stack: replicas.Stack, examples: data.Examples, watch: Collection[int] = ()) -> replicas.Run:
        """Train a stack on the examples; the stack handed in stays as it is."""
        return replicas.train(
            stack, examples.x, examples.y, self.optimizer,
            batch=self.batch, steps=self.steps, clip=self.clip, watch=watch, strategy=self.strategy, loss=self.loss,
        )  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """The draw of replicas.

    Attributes:
        seeds: one a case: of its weights, and of its order of the data.
        initialize: as in `replicas.stack`.
        columns: parameters of `initialize`: one value a case, by name.
    """

    seeds: Sequence[int]
    initialize: Initialize | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def replicas(self, template: nn.Module, device: str = "cpu") -> replicas.Stack:
        """Draw the replicas of a template."""
        return replicas.stack(template, self.seeds, self.initialize, device=device, **self.columns)


def outcomes(
    cases: Sequence[Case],
    template: nn.Module,
    dataset: data.Dataset,
    recipe: Recipe,
    draw: Draw,
    *,
    watch: Collection[int] = (),
    inspect: Callable[[replicas.Stack, data.Examples], Mapping[str, Sequence[float]]] | None = None,
    earlier: Sequence[int] = (),
) -> Iterator[Rows]:
    """Train one replica a case, and say how each ended.

    Rows of each case: `validation_accuracy` and `test_accuracy` at the end, in eval mode; `train_accuracy` and
    `train_loss`, means over the last `window` mini-batches before their updates; `steps_to_target` and `reached`, see
    `steps_to`; `diverged`, 1 where a loss or a weight was not finite. For each watched step and weight layer,
    `signal` (directions `forward` and `backward`): the second moment of pre-activations and of their gradients.

    Args:
        cases: one a replica.
        template: the architecture, in train mode where that matters; replicas are drawn over it.
        dataset: of classes; of its training examples the last fifth is for validation (`data.hold_out`).
        recipe: optimizer, steps, batch and target.
        draw: seeds and initialization of the replicas.
        watch: steps at which signals are measured.
        inspect: further figures of the trained replicas and the examples they were trained on, one value a case, by
            metric; stored under the last step.
        earlier: further steps at which to inspect; the training up to each is repeated.
    """
    fit, validation = data.hold_out(dataset.train, HELD_OUT)
    run = recipe.train(draw.replicas(template, str(fit.x.device)), fit, watch)
    run.stack.template.eval()
    taken, reached = steps_to(run.accuracy, recipe.target, recipe.window)
    ends = {
        "validation_accuracy": replicas.evaluate(run.stack, validation.x, validation.y).accuracy,
        "test_accuracy": replicas.evaluate(run.stack, dataset.test.x, dataset.test.y).accuracy,
        "train_accuracy": run.accuracy[-recipe.window :].mean(0),
        "train_loss": run.loss[-recipe.window :].mean(0),
        "diverged": run.diverged_at >= 0,
        "steps_to_target": taken,
        "reached": reached,
    }
    further = {} if inspect is None else inspect(run.stack, fit)
    for i, case in enumerate(cases):
        for metric, values in ends.items():
            yield case.rows(metric, float(values[i]))
        for metric, figures in further.items():
            yield case.rows(metric, float(figures[i]), step=recipe.steps)
        yield from _signals(case, i, run)
    if inspect is None or not further:
        return
    for step in earlier:
        # the order of the data does not depend on the number of steps
        early = replace(recipe, steps=step).train(draw.replicas(template, str(fit.x.device)), fit)
        for metric, figures in inspect(early.stack, fit).items():
            yield from (case.rows(metric, float(each), step=step) for case, each in zip(cases, figures, strict=True))


def _signals(case: Case, replica: int, run: replicas.Run) -> Iterator[Rows]:
    for step, signals in run.signals.items():
        for direction, moments in (("forward", signals.forward), ("backward", signals.backward)):
            yield case.rows(
                "signal", moments[:, replica].mean(-1), layer=list(signals.layers), direction=direction, step=step,
                layer_index=np.arange(1, len(moments) + 1),
            )  # fmt: skip


def steps_to(
    accuracy: NDArray[np.float64], target: float, window: int = WINDOW
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """First step after which the mean accuracy of the last `window` mini-batches is at least the target.

    Args:
        accuracy: (steps, R); NaN counts as not reached.
        target: a share.
        window: steps averaged; the earliest possible answer.

    Returns:
        Steps (R,), the whole budget where the target was never reached; and whether it was (R,): a run that did not
        reach it is censored, not slow (`stats.survival`).
    """
    steps = len(accuracy)
    if steps < window:
        return np.full(accuracy.shape[1], steps), np.zeros(accuracy.shape[1], dtype=bool)
    sums = np.concatenate([np.zeros((1, accuracy.shape[1])), np.cumsum(np.nan_to_num(accuracy, nan=-1e9), axis=0)])
    there = (sums[window:] - sums[:-window]) / window >= target - 1e-9  # sums of shares are not exact
    reached = there.any(0)
    return np.where(reached, there.argmax(0) + window, steps).astype(np.int64), reached


def table(rows: pd.DataFrame, *params: str, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """One row a case that was trained: its parameters, and one column a metric.

    Args:
        rows: the tidy frame; other rows in it do not matter.
        *params: the parameters wanted.
        metrics: metrics with one number a case.
    """
    ends = rows[(rows["status"] == "ok") & rows["metric"].isin(list(metrics))]
    wide = ends.pivot_table(index="case", columns="metric", values="value", sort=False, dropna=False)
    return params_of(ends, *params).join(wide.reindex(columns=list(metrics))).reset_index(drop=True)


def tuned(
    runs: pd.DataFrame, by: Sequence[str], *, rate: str = "lr", seed: str = "seed", score: str = "validation_accuracy"
) -> pd.DataFrame:
    """The reported runs of each group, all at the one learning rate that its other runs chose.

    Where the frame has negative seeds, these choose in every group and all others are reported. Without any, the first
    ceil(3 n / 8) of a group's n seeds in sorted order choose and the others are reported: of 8 seeds 3 and 5, of 16
    seeds 6 and 10. The choice is made from the scores of the seeds that choose alone, before a reported run is seen.

    The chosen rate has the highest mean score; a score that is NaN or absent counts as the lowest there is; among
    equals the smallest rate is taken.

    Args:
        runs: one row a (by, rate, seed).
        by: the columns whose values have a rate of their own.
        rate: the column that is tuned.
        seed: the column of repetitions.
        score: the column to be high.

    Returns:
        One row a (by, reported seed) that was run at the chosen rate: the columns of `runs`, and those that `choices`
        adds.

    Raises:
        ValueError: a group has no seed to choose by, or none to report (see `tunable`).
    """
    chosen = choices(runs, by, rate=rate, seed=seed, score=score)
    best = runs[~_choosing(runs, by, seed)].merge(chosen, on=[*by, rate])
    return best.iloc[np.lexsort((best[seed], _group(best, by)))].reset_index(drop=True)


def choices(
    runs: pd.DataFrame, by: Sequence[str], *, rate: str = "lr", seed: str = "seed", score: str = "validation_accuracy",
    reported: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """The learning rate that each group chooses, and whether a better one may lie outside what was tried.

    Arguments and errors are those of `tuned`; with `reported=False` a group may be without runs to report.

    Returns:
        One row a group: `by`, the rate, and
        `outward`: -1 where it is the smallest of at least two rates tried, 1 where it is the largest, else 0;
        `at_edge`: `outward` is not 0, so that the group might do better than measured, not worse;
        `edge_gain`: at an edge, the mean score there minus that at the next rate inward, over the runs that choose;
        NaN elsewhere. Where the score is concave in the logarithm of the rate, a further step as long gains no more.
    """
    choosing = _choosing(runs, by, seed)
    if reported and not (both := _group_has_both(runs, by, choosing)).all():
        lone = runs[~both].iloc[0]
        group = ", ".join(f"{name}={lone[name]}" for name in by)
        raise ValueError(f"tuning needs seeds that choose and seeds that are reported; {group} lacks one of the two")
    scores = _scores(runs[choosing], by, rate, seed, score)
    lines = scores.groupby(list(by), sort=False, dropna=False)
    first, last = lines.cumcount() == 0, lines.cumcount(ascending=False) == 0
    outward = np.where(first == last, 0, np.where(first, -1, 1))  # first and last at once: the only one
    inward = lines[score].shift(-1).where(first, lines[score].shift(1))
    with np.errstate(invalid="ignore"):
        gain = (scores[score] - inward).where(outward != 0)
    chosen = scores.assign(outward=outward, at_edge=outward != 0, edge_gain=gain).loc[lines[score].idxmax()]
    return chosen.drop(columns=score).reset_index(drop=True)


def extended(
    runs: pd.DataFrame,
    by: Sequence[str],
    *,
    rate: str = "lr",
    factor: float = 3.0,
    margin: float = 0.0,
    seed: str = "seed",
    score: str = "validation_accuracy",
) -> dict[tuple[Any, ...], float]:
    """One further learning rate for each group that may do better outside its grid (`open_ended`): group -> rate.

    A pure function of the rows, for a second stage. Arguments and errors beyond these are those of `tuned`.

    Args:
        runs: as in `tuned`.
        by: as in `tuned`; a group is the tuple of its values.
        rate: as in `tuned`.
        factor: between a rate and the next, at least 1.1; rates are rounded to three significant digits.
        margin: of the score; where the last step toward the end of the grid gained no more, none is added.
        seed: as in `tuned`.
        score: as in `tuned`.
    """
    if factor < 1.1:
        raise ValueError(f"learning rates are extended by a factor of at least 1.1; got {factor!r}")
    if runs.empty:
        return {}
    chosen = choices(runs, by, rate=rate, seed=seed, score=score)
    return {
        tuple(row[name] for name in by): float(f"{row[rate] * factor ** row['outward']:.3g}")
        for row in chosen[open_ended(chosen, margin)].to_dict("records")
    }


def further_rates(
    *by: str,
    margin: float,
    score: str = "validation_accuracy",
    together: tuple[str, ...] = ("lr", "seed"),
    chunk: int | Callable[[Case], int] = 1,
    architecture: tuple[str, ...] = (),
) -> Callable[..., Iterator[Grid]]:
    """A part's second stage (`Part.second`): one learning rate `lr` more for each group that `extended` names.

    Groups that get one rate, and differ in nothing but parameters in `together`, share a grid, and chunks.

    Args:
        *by: as in `tuned`.
        margin: as in `extended`.
        score: as in `tuned`.
        together: parameters that cases of one chunk may differ in.
        chunk: as in `Grid`.
        architecture: as in `Grid`, where a case has them and a `model`.
    """

    def second(rows: pd.DataFrame, **_: Any) -> Iterator[Grid]:
        runs = table(rows.assign(run=rows["case"]), "run", *by, "lr", "seed", metrics=(score,))
        runs = runs.assign(**{name: runs[name].astype(str) for name in by})  # None is a depth, too
        rates = extended(tunable(runs, by), by, margin=margin, score=score)
        grids: dict[tuple[Any, ...], list[tuple[Case, pd.Series[int]]]] = {}
        for group, own in runs.groupby(list(by)):  # sorted by spelling: the order of the rows decides nothing
            if group in rates:
                case = Case.read(own["run"].iloc[0])
                fixed = tuple(pair for pair in case.params if pair[0] not in together)
                grids.setdefault((rates[group], fixed), []).append((case, pd.to_numeric(own["seed"])))
        for (rate, fixed), members in grids.items():
            seeds = pd.concat([seeds for _, seeds in members])
            varied = {name: tuple(case[name] for case, _ in members) for name in by if name in together}
            handed = tuple(name for name in architecture if name in dict(fixed)) if "model" in dict(fixed) else ()
            yield Grid(
                {**varied, "lr": (rate,)}, dict(fixed), int(seeds.max()) + 1, together, chunk, handed,
                selection=max(0, -int(seeds.min())),
            )  # fmt: skip

    return second


def unsettled(comparison: stats.Comparison, at_edge: object, *, censored: object = False) -> stats.Comparison:
    """The comparison, concluding nothing where a better rate may lie outside what was tried.

    Args:
        comparison: of figures at chosen rates.
        at_edge: whether it does; a verdict then says that a wider grid would decide, and not more seeds.
        censored: whether runs that ended before what was to be measured leave it open, too.
    """
    if not (at_edge or censored):
        return comparison
    return replace(comparison, p=np.nan, p_equivalent=np.nan, p_beyond=np.nan, at_edge=bool(at_edge))


def one_sided(ratio: stats.Comparison, *, least: object, most: object) -> bool:
    """Tell whether a ratio that is known from one side alone decides nothing.

    Steps of a run that ended at its budget are the least that it takes, those at a rate at an end of its grid the most.

    Args:
        ratio: of figures of which some are such bounds.
        least: whether the true ratio may be larger than this one.
        most: whether it may be smaller.
    """
    return bool((least and not ratio.above) or (most and not ratio.below))


def open_ended(chosen: pd.DataFrame, margin: float) -> pd.Series[bool]:
    """Tell for each choice whether a rate outside the tried grid may score better by more than the margin.

    Where a score is concave in the logarithm of the rate, a further step gains no more than the last one did.

    Args:
        chosen: the result of `choices` or `tuned`.
        margin: margin of the score.
    """
    return chosen["at_edge"] & ~(chosen["edge_gain"] <= margin)


def tunable(runs: pd.DataFrame, by: Sequence[str], *, seed: str = "seed") -> pd.DataFrame:
    """The runs of those groups that `tuned` can tune, which in an unfinished run may not be all."""
    return runs[_group_has_both(runs, by, _choosing(runs, by, seed))]


def _group(runs: pd.DataFrame, by: Sequence[str]) -> pd.Series[int]:
    """The place of each row's group, in order of first appearance."""
    return runs.groupby(list(by), sort=False, dropna=False).ngroup()


def _choosing(runs: pd.DataFrame, by: Sequence[str], seed: str) -> pd.Series[bool]:
    """Mask the runs whose seeds choose the rate; the others are reported."""
    seeds = pd.to_numeric(runs[seed])
    if (seeds < 0).any():
        return seeds < 0
    groups = seeds.groupby(_group(runs, by))
    return groups.rank("dense").le(np.ceil(groups.transform("nunique") * 3 / 8))


def _group_has_both(runs: pd.DataFrame, by: Sequence[str], choosing: pd.Series[bool]) -> pd.Series[bool]:
    """Mask the runs whose group has both runs that choose and runs that are reported."""
    return choosing.groupby(_group(runs, by)).transform("nunique") == 2


def _scores(runs: pd.DataFrame, by: Sequence[str], rate: str, seed: str, score: str) -> pd.DataFrame:
    """The mean score of each group at each rate, rates ascending; the lowest where not every seed has a score."""
    seeds = runs.groupby(_group(runs, by))[seed].transform("nunique")
    lines = runs.assign(_seeds=seeds).groupby([*by, rate], sort=False, dropna=False)
    scores = lines.agg(**{score: (score, "mean"), "_scored": (score, "count"), "_seeds": ("_seeds", "max")})
    means = scores[score].round(DECIMALS).where(scores["_scored"] >= scores["_seeds"], -np.inf)
    scores = means.fillna(-np.inf).reset_index()
    return scores.iloc[np.lexsort((scores[rate], _group(scores, by)))].reset_index(drop=True)


@dataclass(frozen=True)
class Tolerance:
    """The tolerance of a setting to a learning rate that misses its best.

    Attributes:
        best: the rate that is chosen, as in `tuned`.
        low: smallest rate, next to the best without a gap, whose mean score is within the margin.
        high: largest such rate.
    """

    best: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """Ratio of the largest to the smallest rate that will do; 1 where no neighbour does.

        NaN where no run at the best rate was reported.
        """
        return self.high / self.low


def tolerance(
    runs: pd.DataFrame, margin: float, *, rate: str = "lr", seed: str = "seed", score: str = "validation_accuracy"
) -> Tolerance:
    """The range of learning rates around the best whose mean score lies within `margin` of it.

    The best is chosen as in `tuned`; the means are those of the reported runs, so that its own is not flattered.

    Args:
        runs: one row a (rate, seed) of one group.
        margin: in units of the score.
        rate: the column of rates.
        seed: the column of repetitions.
        score: the column to be high; NaN counts as the lowest there is.

    Raises:
        ValueError: there is no seed to choose by, or none to report.
    """
    group = runs.assign(_group=0)
    chosen = float(choices(group, ["_group"], rate=rate, seed=seed, score=score)[rate].iloc[0])
    means = _scores(group[~_choosing(group, ["_group"], seed)], ["_group"], rate, seed, score)
    rates, values = means[rate].to_numpy(float), means[score].to_numpy(float)
    if chosen not in rates:
        return Tolerance(chosen, np.nan, np.nan)
    best = low = high = int((rates == chosen).argmax())
    enough = values[best] - margin
    while low > 0 and values[low - 1] >= enough:
        low -= 1
    while high < len(rates) - 1 and values[high + 1] >= enough:
        high += 1
    return Tolerance(chosen, float(rates[low]), float(rates[high]))
