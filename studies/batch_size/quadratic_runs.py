"""Measurements of SGD on quadratics, by case: risks, limits of stability, steps to a target."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from depthgauge import theory
from depthgauge.seeding import Purpose, numpy_generator
from depthgauge.studies.batch_size.descents import (
    Array,
    Draws,
    additive,
    descend,
    growth,
    largest_stable,
    loss,
    regression,
)
from depthgauge.studies.batch_size.tuned_quadratic import Quadratic, Tuned, tuned
from depthgauge.study import Case, Context, Rows

QUADRATIC, REGRESSION = PROBLEMS = ("noisy quadratic", "linear regression")
INDEPENDENT, GROWING = NOISES = ("independent", "growing")  # of the error: the quadratic's, regression's
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "SGD": {}, "momentum": {"momentum": 0.9}, "averaging": {"averaging": 0.9},
}  # fmt: skip
FRACTION = 0.25  # of the largest stable rate: where the risk is measured
LABELS = 0.5  # variance of the labels' noise, and of the quadratic's over its curvature
AROUND = 0.05  # of the predicted limit: so far below and above it growth is measured
TRIED = np.arange(0.9, 1.1, 0.005)  # times the predicted limit: rates tried where the noise is independent
TASK = Quadratic(dimensions=12, noise=0.03, target=0.003)
SMOOTH = 0.03  # of the predicted steps: half the window over which a measured loss is averaged
MOST = 10_000  # steps in which a tuned training must arrive by theory
SPARE = 2  # times the predicted steps: the budget of a measured training

Measured = Iterator[tuple[str, int | None, Array]]
"""Metric, step, and a value a seed."""


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """Measure one condition, all seeds at once; what a seed draws is its own."""
    draws = [numpy_generator(case.random_seed(), Purpose.SAMPLE) for case in cases]
    kinds = {"problem": risks, "noise": limits, "tuned": steps_to_goal}
    (measure,) = (measure for name, measure in kinds.items() if cases[0].get(name) is not None)
    for metric, step, values in measure(cases[0], draws):
        for case, value in zip(cases, values, strict=True):
            yield case.rows(metric, float(value), step=step)


def spectrum(dimensions: int) -> Array:
    """Curvatures 1, 1/2, 1/3, ..."""
    return np.asarray(1.0 / np.arange(1, dimensions + 1))


def rate_of(problem: str, optimizer: str, batch: int, dimensions: int) -> float:
    """Learning rate at which the risk is measured."""
    momentum = OPTIMIZERS[optimizer].get("momentum", 0.0)
    return FRACTION * limit_of(INDEPENDENT if problem == QUADRATIC else GROWING, momentum, batch, dimensions)


def limit_of(noise: str, momentum: float, batch: int, dimensions: int) -> float:
    """Largest stable learning rate, predicted."""
    of = None if noise == INDEPENDENT else batch
    return theory.stable_learning_rate(spectrum(dimensions), of, momentum)


def risk_of(problem: str, optimizer: str, batch: int, dimensions: int, steps: Any) -> Array:
    """Predicted risk over the least, at these steps."""
    h, rate = spectrum(dimensions), rate_of(problem, optimizer, batch, dimensions)
    if problem == QUADRATIC:
        found = theory.noisy_quadratic(h, rate, batch, steps, noise=LABELS * h, **OPTIMIZERS[optimizer])
    else:
        full = theory.regression_risk(h, rate, batch, steps, label_noise=LABELS, **OPTIMIZERS[optimizer])
        found = full - LABELS / 2
    return np.asarray(found)


def checkpoints(steps: int) -> list[int]:
    """Steps at which the risk is held against theory."""
    return sorted({round(float(place)) for place in np.geomspace(1, steps, 4)})


def risks(case: Case, draws: Draws) -> Measured:
    """Mean loss of many runs at some steps."""
    h, batch, problem = spectrum(case.integer("dimensions")), case.integer("batch"), case.text("problem")
    rate = rate_of(problem, case.text("optimizer"), batch, len(h))
    gradient = (additive if problem == QUADRATIC else regression)(h, LABELS, batch)
    theta, wanted = np.ones((len(draws), case.integer("runs"), len(h))), checkpoints(case.integer("steps"))
    weights = descend(gradient, theta, draws, rate, **OPTIMIZERS[case.text("optimizer")])
    for step, now in enumerate(islice(weights, wanted[-1] + 1)):
        if step in wanted:
            yield "risk", step, loss(h, now).mean(1)


def limits(case: Case, draws: Draws) -> Measured:
    """Largest stable rate over the predicted one; where noise grows with the error, growth of a typical run too."""
    h, batch, momentum = spectrum(case.integer("dimensions")), case.integer("batch"), case.number("momentum")
    limit = limit_of(case.text("noise"), momentum, batch, len(h))
    if case.text("noise") == INDEPENDENT:
        gradient = additive(h, LABELS, batch, shared=True)
        found = largest_stable(h, gradient, draws, limit * TRIED, momentum=momentum, steps=2000)
        yield "limit", None, found / limit
        return
    gradient = regression(h, 0.0, batch)
    options: dict[str, Any] = {"momentum": momentum, "walkers": case.integer("walkers"), "steps": case.integer("steps")}
    below, above = (growth(h, gradient, draws, limit * (1 + way * AROUND), **options) for way in (-1, 1))
    yield "limit", None, 1 - AROUND + 2 * AROUND * -below / (above - below)  # where growth is 0, on a straight line
    yield "typical", None, growth(h, gradient, draws, limit * (1 + AROUND), **options, typical=True)


def best(optimizer: str, batch: int) -> Tuned:
    """The fewest steps to the goal, by theory, and the rate and decay that take them."""
    found = tuned(TASK, optimizer, batch, MOST)
    assert found is not None, f"{optimizer} at batch {batch} does not arrive in {MOST} steps"
    return found


def steps_to_goal(case: Case, draws: Draws) -> Measured:
    """First step around which the mean loss of the runs is at the goal or below; infinity within the budget.

    The loss is averaged over a window centred on the step: the first dip of a noisy curve would come too early.
    """
    h, chosen = TASK.curvature, best(case.text("tuned"), case.integer("batch"))
    theta = np.ones((len(draws), case.integer("runs"), len(h)))
    gradient, half = additive(h, TASK.noise, case.integer("batch")), int(SMOOTH * chosen.steps)
    found, window = np.full(len(draws), math.inf), deque[Array](maxlen=2 * half + 1)
    weights = descend(gradient, theta, draws, chosen.rate, **dict([chosen.decay]))
    for step, now in enumerate(islice(weights, SPARE * chosen.steps + 1)):
        window.append(loss(h, now).mean(1))
        if len(window) == window.maxlen:
            found[np.isinf(found) & (np.mean(window, axis=0) <= TASK.goal)] = step - half
        if np.isfinite(found).all():
            break
    yield "steps", None, found
