"""Loss curves of large batches at scaled learning rates: how they are perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthgauge import replicas
from depthgauge.replicas.optimizers import Optimizer
from depthgauge.studies.batch_size import perceptrons
from depthgauge.study import Case, Rows

POINTS = 16  # places of a curve, evenly over the examples seen: four a quarter
RAMP = 8  # a warm-up takes one part in so many of the updates: half of the first quarter
SCALES: dict[str, Callable[[float], float]] = {
    "none": lambda _: 1.0, "linear": lambda factor: factor, "square root": math.sqrt, "root and betas": math.sqrt,
}  # fmt: skip
BETAS = (0.9, 0.999)
DECAY = 0.1  # AdamW's weight decay


def optimizer(name: str, rates: Sequence[float], factor: float = 1.0) -> Optimizer:
    """An optimizer; a factor scales the distance of Adam's betas from 1, down to betas of 0.

    With the rate by the square root this is the rule of Malladi et al. (2022, arXiv:2205.10287), epsilon apart.
    """
    if name == "SGD":
        return replicas.SGD(rates)
    betas = tuple(max(0.0, 1 - factor * (1 - beta)) for beta in BETAS)
    made = {"Adam": replicas.Adam, "AdamW": replicas.AdamW}[name]
    return made(rates, betas=(betas[0], betas[1]), weight_decay=DECAY if name == "AdamW" else 0.0)


def ramp(steps: int) -> Callable[[int], float]:
    """A warm-up: the rate rises in equal steps to its full size, over the first part of the updates."""
    rising = max(1, steps // RAMP)
    return lambda step: min(1.0, (step + 1) / rising)


def train(task: perceptrons.Task, cases: Sequence[Case]) -> Iterator[Rows]:
    """Curves of one batch size: loss over all examples at `POINTS` places, and that of validation at the end."""
    for warm in (False, True):
        for betas in (False, True):
            some = [c for c in cases if (c.text("warmup") == "warm-up") == warm]
            some = [c for c in some if (c.text("rule") == "root and betas") == betas]
            if some:
                yield from _together(task, some, warm=warm, betas=betas)


def _together(task: perceptrons.Task, cases: Sequence[Case], *, warm: bool, betas: bool) -> Iterator[Rows]:
    """Curves of cases that share all but seed, rate and the size of its scale."""
    shared, steps = cases[0], cases[0].integer("steps")
    factor = shared.number("factor")
    rates = [case.number("lr") * case.number("share") * SCALES[case.text("rule")](factor) for case in cases]
    places = np.array([round(steps * k / POINTS) for k in range(1, POINTS + 1)])
    curves = np.full((POINTS, len(cases)), np.nan)

    def inspect(updates: int, rows: slice, part: replicas.Stack) -> None:
        loss = replicas.evaluate(part, task.fit.x, task.fit.y).loss
        curves[places == updates, rows] = np.where(np.isfinite(loss), loss, np.inf)

    run = replicas.train(
        task.drawn(cases), task.fit.x, task.fit.y, optimizer(shared.text("optimizer"), rates, factor if betas else 1.0),
        batch=shared.integer("batch"), steps=steps, schedule=ramp(steps) if warm else None,
        checkpoints=places.tolist(), inspect=inspect,
    )  # fmt: skip
    validation: NDArray[np.float64] = replicas.evaluate(run.stack, task.validation.x, task.validation.y).loss
    for i, case in enumerate(cases):
        yield case.rows("loss", curves[:, i], step=places)
        yield case.rows("score", -float(validation[i]))
        yield case.rows("rate", rates[i])


def quarters(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean ln loss of each quarter of the examples seen, a row a case."""
    loss = rows[rows["metric"] == "loss"].sort_values(["case", "step"], kind="stable")
    with np.errstate(divide="ignore"):
        loss = loss.assign(log=np.log(loss["value"]), quarter=loss.groupby("case").cumcount() * 4 // POINTS + 1)
    return loss.pivot_table(index="case", columns="quarter", values="log", aggfunc="mean", dropna=False)
