"""What came of a training: rows that every trained study shares, and learning rates tuned without fooling oneself.

    digits = data.load("mnist5k").to(context.device)
    yield from training.outcomes(
        cases, model, digits, seeds=[...], optimizer=replicas.SGD([case.number("lr") for case in cases], momentum=0.9),
        steps=300, batch=32, target=0.9, initialize=draw, columns={"scheme": [...]},
    )

and in the analysis

    runs = training.table(rows, "scheme", "depth", "lr", "seed")         # one row a case, one column a metric
    best = training.tuned(runs, by=["scheme", "depth"])                   # one row a seed, at a rate the others chose

Every learning rate is trained with every seed. A seed's result is taken at the rate that did best on the validation
examples of the *other* seeds, so that no run has a say in its own selection, and the test examples have none at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from depthgauge import data, replicas
from depthgauge.frames import groups, params_of
from depthgauge.replicas.engine import Strategy
from depthgauge.replicas.stack import Initialize
from depthgauge.study import Case, Rows

WINDOW = 20  # steps over which mini-batch accuracy is averaged before it is held against the target
HELD_OUT = 0.2  # share of the training examples that are for validation
METRICS = (
    "validation_accuracy", "test_accuracy", "train_accuracy", "train_loss", "steps_to_target", "reached", "diverged",
)  # fmt: skip


def outcomes(
    cases: Sequence[Case],
    template: nn.Module,
    dataset: data.Dataset,
    *,
    seeds: Sequence[int],
    optimizer: replicas.SGD | replicas.Adam | replicas.AdamW,
    steps: int,
    batch: int,
    target: float,
    initialize: Initialize | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    order_seeds: Sequence[int] | None = None,
    clip: float | None = None,
    watch: Collection[int] = (),
    window: int = WINDOW,
    strategy: Strategy | None = None,
    inspect: Callable[[replicas.Stack], Mapping[str, Sequence[float]]] | None = None,
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
        seeds: one a case: of its weights, and of its order of the data unless `order_seeds` is given.
        optimizer: with one learning rate a case.
        steps: how many.
        batch: examples a step.
        target: mini-batch accuracy to be reached.
        initialize: as in `replicas.stack`.
        columns: parameters of `initialize`: one value a case, by name.
        order_seeds: one a case.
        clip: largest global norm of a gradient.
        watch: steps at which signals are measured.
        window: steps over which mini-batch accuracy is averaged.
        strategy: as in `replicas.train`.
        inspect: further figures of the trained replicas, one value a case, by metric; stored under step `steps`.
    """
    fit, validation = data.hold_out(dataset.train, HELD_OUT)
    device = str(fit.x.device)
    stack = replicas.stack(template, seeds, initialize, device=device, **(columns or {}))
    run = replicas.train(
        stack, fit.x, fit.y, optimizer,
        batch=batch, steps=steps, order_seeds=order_seeds, clip=clip, watch=watch, strategy=strategy,
    )  # fmt: skip
    run.stack.template.eval()
    ends = {
        "validation_accuracy": replicas.evaluate(run.stack, validation.x, validation.y).accuracy,
        "test_accuracy": replicas.evaluate(run.stack, dataset.test.x, dataset.test.y).accuracy,
        "train_accuracy": run.accuracy[-window:].mean(0),
        "train_loss": run.loss[-window:].mean(0),
        "diverged": (run.diverged_at >= 0).astype(float),
    }
    taken, reached = steps_to(run.accuracy, target, window)
    ends |= {"steps_to_target": taken.astype(float), "reached": reached.astype(float)}
    further = {} if inspect is None else inspect(run.stack)
    for i, case in enumerate(cases):
        for metric, values in ends.items():
            yield case.rows(metric, float(values[i]))
        for metric, figures in further.items():
            yield case.rows(metric, float(figures[i]), step=steps)
        for step, seen in run.signals.items():
            for direction, moments in (("forward", seen.forward), ("backward", seen.backward)):
                yield case.rows(
                    "signal", moments[:, i].mean(-1), layer=list(seen.layers), direction=direction, step=step,
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
        metrics: of which there is one number a case.
    """
    own = rows[(rows["status"] == "ok") & rows["metric"].isin(list(metrics))]
    wide = own.pivot_table(index="case", columns="metric", values="value", sort=False, dropna=False)
    return params_of(own, *params).join(wide.reindex(columns=list(metrics))).reset_index(drop=True)


def tuned(
    runs: pd.DataFrame, by: Sequence[str], *, rate: str = "lr", seed: str = "seed", score: str = "validation_accuracy"
) -> pd.DataFrame:
    """Each seed's run at the learning rate that does best for the other seeds (leave one out).

    The best rate has the highest mean score; a score of NaN counts as the lowest there is; among equals the smallest
    rate is taken. Choosing by the seeds that are then reported would favour whatever was tried at more rates.

    Args:
        runs: one row a (by, rate, seed).
        by: what has a rate of its own.
        rate: the column that is tuned.
        seed: the column of repetitions.
        score: the column to be high.

    Returns:
        One row a (by, seed): the columns of `runs`, with the chosen rate, and `at_edge`: whether it is the smallest or
        the largest of at least two that were tried, so that a better one may lie outside.

    Raises:
        ValueError: a group has fewer than two seeds.
    """
    chosen = []
    for key, group in groups(runs, list(by)):
        scores = group.pivot_table(index=seed, columns=rate, values=score, dropna=False)
        if len(scores) < 2:
            raise ValueError(f"tuning needs two seeds or more, so that one can choose for the other; {key} has one")
        ranked = scores.fillna(-np.inf)
        for own in scores.index:
            best = ranked.drop(index=own).mean().idxmax()
            at = group[(group[seed] == own) & (group[rate] == best)]
            edge = len(scores.columns) > 1 and best in {scores.columns[0], scores.columns[-1]}
            chosen.append(at.assign(at_edge=edge))
    return pd.concat(chosen, ignore_index=True) if chosen else runs.assign(at_edge=False)


@dataclass(frozen=True)
class Tolerance:
    """How much the learning rate may miss its best.

    Attributes:
        best: the rate of the highest mean score.
        low: smallest rate, next to the best without a gap, whose mean score is within the margin.
        high: largest such rate.
    """

    best: float
    low: float
    high: float

    @property
    def factor(self) -> float:
        """Ratio of the largest to the smallest rate that will do; 1 where no neighbour does."""
        return self.high / self.low


def tolerance(runs: pd.DataFrame, margin: float, *, rate: str = "lr", score: str = "validation_accuracy") -> Tolerance:
    """The range of learning rates around the best whose mean score lies within `margin` of it.

    Args:
        runs: one row a (rate, seed) of one group.
        margin: in units of the score.
        rate: the column of rates.
        score: the column to be high; NaN counts as the lowest there is.
    """
    means = runs.assign(**{score: runs[score].fillna(-np.inf)}).groupby(rate)[score].mean()
    rates, values = means.index.to_numpy(float), means.to_numpy(float)
    best = low = high = int(values.argmax())
    enough = values[best] - margin
    while low > 0 and values[low - 1] >= enough:
        low -= 1
    while high < len(rates) - 1 and values[high + 1] >= enough:
        high += 1
    return Tolerance(float(rates[best]), float(rates[low]), float(rates[high]))
