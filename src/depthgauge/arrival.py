"""Steps until replicas reach a target that does not depend on the size of their mini-batches.

    found = arrival.steps_to(stack, fit, replicas.SGD(rates), target=0.2, batch=64, steps=4000)
    found.steps, found.reached, found.diverged                # (R,) each

The target is a loss or an accuracy over fixed examples, measured at checkpoints whose distance grows with the steps
done, so that a run of a thousand steps costs few evaluations more than one of a hundred. Between checkpoints the curve
is a straight line over the logarithm of the steps. Replicas that were trained together end when all have arrived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import data, replicas, stats
from depthgauge.frames import groups
from depthgauge.theory.arguments import finite

RATIO = 2 ** (1 / 8)  # between a checkpoint and the next: a step count is known to a fraction of 9 %

Measure = Literal["loss", "accuracy"]


@dataclass(frozen=True)
class Arrival:
    """First arrival of every replica at its target.

    Attributes:
        steps: (R,) updates done, interpolated between checkpoints; the budget where the target was not reached.
        reached: (R,) whether it was; a run that did not reach it is censored, not slow (`stats.survival`).
        diverged: (R,) whether what is measured was not finite before.
        checkpoints: (k,) numbers of updates at which replicas were measured.
        curve: (k, R) what was measured there; NaN after the replica arrived or diverged.
    """

    steps: NDArray[np.float64]
    reached: NDArray[np.bool_]
    diverged: NDArray[np.bool_]
    checkpoints: NDArray[np.int64]
    curve: NDArray[np.float64]


def checkpoints(steps: int, ratio: float = RATIO) -> tuple[int, ...]:
    """Numbers of updates from 0 to `steps`, each the next integer or `ratio` times the last, whichever is more."""
    if ratio <= 1 or steps < 0:
        raise ValueError(f"checkpoints are by a ratio above 1, of steps >= 0; got {ratio!r} and {steps!r}")
    places = [0]
    while places[-1] < steps:
        places.append(min(steps, max(places[-1] + 1, round(places[-1] * ratio))))
    return tuple(places)


def steps_to(
    stack: replicas.Stack,
    fit: data.Examples,
    optimizer: replicas.SGD | replicas.Adam,
    *,
    target: float,
    measured: Measure = "loss",
    on: data.Examples | None = None,
    at: Sequence[int] | None = None,
    **settings: Any,
) -> Arrival:
    """Train every replica until it reaches the target, or its steps are spent.

    Args:
        stack: the replicas; it stays as it is.
        fit: what they are trained on.
        optimizer: with one learning rate a replica.
        target: a loss to be at or below, or an accuracy to be at or above.
        measured: which of the two.
        on: examples over which it is measured, in the template's own mode; None: those of the training.
        at: numbers of updates at which to measure; None: `checkpoints`.
        **settings: as in `replicas.train`: `batch`, `steps`, `loss`, `schedule`, ...

    Raises:
        ValueError: as `replicas.train`; another measure, or a target that is not finite.
    """
    if measured not in get_args(Measure):
        raise ValueError(f"measured is {measured!r}, where loss or accuracy was expected")
    target = finite("target", target)
    loop = replicas.Loop(**settings)
    places = np.array(checkpoints(loop.steps) if at is None else sorted({0, *at, loop.steps}))
    examples = fit if on is None else on
    curve = np.full((len(places), len(stack)), np.nan)
    sign = 1.0 if measured == "loss" else -1.0

    def inspect(step: int, rows: slice, part: replicas.Stack) -> bool:
        found = replicas.evaluate(part, examples.x, examples.y, loss=loop.loss, strategy=loop.strategy)
        here = found.loss if measured == "loss" else np.where(np.isfinite(found.loss), found.accuracy, np.nan)
        k = int(np.searchsorted(places, step))
        curve[k, rows] = here
        past = curve[: k + 1, rows]
        return bool(((sign * past <= sign * target).any(0) | ~np.isfinite(here)).all())

    # a replica of a stack goes on until its neighbours have arrived: what it does then is no result
    replicas.train(stack, fit.x, fit.y, optimizer, loop, checkpoints=tuple(places.tolist()), inspect=inspect)
    over = (sign * curve <= sign * target) | ~np.isfinite(curve)
    ended = np.where(over.any(0), over.argmax(0), len(places) - 1)
    curve[np.arange(len(places))[:, None] > ended] = np.nan
    steps, reached = first_crossing(places, sign * curve, sign * target)
    diverged = ~reached & ~np.isfinite(curve[ended, np.arange(len(stack))])
    return Arrival(np.where(reached, steps, loop.steps), reached, diverged, places, curve)


def passed(
    stack: replicas.Stack,
    fit: data.Examples,
    optimizer: replicas.SGD | replicas.Adam,
    *,
    target: float,
    on: data.Examples,
    at: Sequence[int],
    **settings: Any,
) -> tuple[replicas.Stack, NDArray[np.float64], NDArray[np.bool_]]:
    """Train for the whole budget, and say when an accuracy was passed; `steps_to` ends where all have arrived.

    Args:
        stack: the replicas; it stays as it is.
        fit: what they are trained on.
        optimizer: with one learning rate a replica.
        target: an accuracy to be at or above.
        on: examples over which it is measured; a replica whose loss is not finite has 0 right.
        at: numbers of updates at which to measure, ascending.
        **settings: as in `replicas.train`.

    Returns:
        The trained replicas; steps (R,), the budget where the target was not reached; and whether it was (R,).
    """
    places = np.array(at)
    curve = np.full((len(places), len(stack)), np.nan)

    def inspect(step: int, rows: slice, part: replicas.Stack) -> None:
        found = replicas.evaluate(part, on.x, on.y)
        curve[np.searchsorted(places, step), rows] = np.where(np.isfinite(found.loss), found.accuracy, 0.0)

    loop = replicas.Loop(**settings, checkpoints=tuple(places.tolist()), inspect=inspect)
    trained = replicas.train(stack, fit.x, fit.y, optimizer, loop).stack
    steps, reached = first_crossing(places, -curve, -target)
    return trained, np.where(reached, steps, loop.steps), reached


def paces(runs: pd.DataFrame, by: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One row a group: n, how many arrived, and median and middle 90 % of their steps, infinite without arrival.

    Args:
        runs: one row a run, with `steps_to_target` and `reached`.
        by: columns.
    """
    for key, own in groups(runs, list(by)):
        steps = own["steps_to_target"].where(own["reached"] > 0, np.inf).to_numpy()
        at = {**dict(zip(by, key, strict=True)), "n": len(own), "arrived": int(own["reached"].sum())}
        yield {**at, **{name: float(value[0]) for name, value in stats.band(steps[:, None]).items()}}


def usual(steps: NDArray[np.float64], reached: NDArray[np.bool_]) -> stats.Estimate:
    """Return the geometric mean of runs' steps to the target, or their median where not all of them arrived.

    Args:
        steps: (n,) the budget of a run that did not arrive.
        reached: (n,) whether it did; without that its steps are infinite.
    """
    return stats.mean(steps, log=True) if reached.all() else stats.median(np.where(reached, steps, np.inf))


def first_crossing(
    places: NDArray[np.int64], curve: NDArray[np.float64], target: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """First place at which each column is at or below the target, on straight lines over ln(1 + place).

    Args:
        places: (k,), ascending.
        curve: (k, R); NaN is not below.
        target: of every column.

    Returns:
        Places (R,), NaN where there is none; and whether there is one (R,).
    """
    below = curve <= target
    reached: NDArray[np.bool_] = np.any(below, axis=0)
    first = below.argmax(0)
    before = np.maximum(first - 1, 0)
    columns = np.arange(curve.shape[1])
    high, low = curve[before, columns], curve[first, columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(first == before, 1.0, (high - target) / (high - low))
    share = np.where(np.isfinite(share), share, 1.0)
    logs = np.log1p(places)
    found = np.expm1(logs[before] + share * (logs[first] - logs[before]))
    return np.where(reached, found, np.nan), reached
