"""Sweeps of the rate, the rates that finders suggest from them, and where a training at each ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from depthgauge import data, learning_rate, models, replicas, seeding
from depthgauge.learning_rate import Found
from depthgauge.seeding import Purpose
from depthgauge.studies.learning_rate.finders import FINDERS, STEPS
from depthgauge.study import Case, Context, Rows

Floats = NDArray[np.float64]

OURS = "repeated"  # name of the finder of depthgauge.learning_rate
VARIANTS = {"repeated_steepest": ("steepest", 1 / 2), "repeated_risen": ("risen", 1 / 6)}  # other marks of its curves
REPETITIONS = 5
NETS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "softmax": ("mlp", {"depth": 1}),
    "ReLU 2": ("mlp", {"depth": 2, "activation": "relu"}),
    "tanh 6": ("mlp", {"depth": 6, "activation": "tanh"}),
    "GELU 4": ("mlp", {"depth": 4, "activation": "gelu"}),
    "LeNet-5": ("lenet5", {}),
}
DATA = {"GELU 4": "fashion5k", "LeNet-5": "mnist5k"}
WIDTH = 32
OPTIMIZERS: Mapping[str, Callable[[Sequence[float]], replicas.SGD | replicas.Adam]] = {
    "SGD": replicas.SGD,
    "momentum": partial(replicas.SGD, momentum=0.9),
    "Adam": replicas.Adam,
}
RATES = {
    name: tuple(float(f"{first * 10 ** (k / 4):.3g}") for k in range(10))
    for name, first in (("SGD", 0.01), ("momentum", 0.001), ("Adam", 0.000316))
}


@cache
def examples(name: str, noise: float, device: str) -> data.Examples:
    """Training examples, a share of their labels drawn anew, the same ones in every case."""
    train = data.load(name).train
    generator = seeding.generator(0, Purpose.LABELS)
    drawn = torch.rand(len(train), generator=generator) < noise
    other = torch.randint(10, train.y.shape, generator=generator)
    return data.Examples(train.x, torch.where(drawn, other, train.y)).to(device)


def model(net: str, shape: tuple[int, ...]) -> nn.Module:
    """The net, for ten classes."""
    kind, settings = NETS[net]
    sized = {"width": WIDTH, **settings} if kind == "mlp" else settings
    return models.build(kind, input_shape=shape, classes=10, **sized)


def train(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Train a case at each rate of the grid: ln of the loss of all examples at the end, not above that of the start."""
    fit, stack = _prepared(cases, context)
    ends = _ends(cases, stack, fit, [case.number("lr") for case in cases])
    for case, end in zip(cases, ends, strict=True):
        yield case.rows("score", -end)


def suggest(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Ask every finder of the same weights, and train at what each suggests."""
    fit, stack = _prepared(cases, context)
    every = _in_use(cases, stack, fit)
    found = _found(cases, context)
    every[OURS] = [each.value for each in found]
    for name, (mark, fraction) in VARIANTS.items():
        every[name] = [fraction * _mark(each, mark) for each in found]
    for name, rates in every.items():
        some = [rate if np.isfinite(rate) else 0.0 for rate in rates]
        for case, rate, end in zip(cases, rates, _ends(cases, stack, fit, some), strict=True):
            yield case.rows("rate", rate, layer=name)
            yield case.rows("end", end if np.isfinite(rate) else np.nan, layer=name)
    for case, each in zip(cases, found, strict=True):
        yield case.rows("low", each.low, layer=OURS)
        yield case.rows("high", each.high, layer=OURS)
        yield case.rows("undecided", float(bool(each.undecided)), layer=OURS)
        yield case.rows("repetition", each.suggestions, layer=OURS, step=range(REPETITIONS))


def _prepared(cases: Sequence[Case], context: Context, copies: int = 1) -> tuple[data.Examples, replicas.Stack]:
    """The examples of a chunk, and replicas of each case: weights and order of the data are the seed's."""
    net = cases[0].text("net")
    fit = examples(DATA.get(net, "digits"), cases[0].number("noise"), context.device)
    seeds = [case.random_seed("seed") for case in cases for _ in range(copies)]
    return fit, replicas.stack(model(net, tuple(fit.x.shape[1:])), seeds, device=context.device)


def _ends(cases: Sequence[Case], stack: replicas.Stack, fit: data.Examples, rates: Sequence[float]) -> Floats:
    """Logarithm of the loss after training at these rates; that of the start where it is higher or not finite."""
    optimizer = OPTIMIZERS[cases[0].text("optimizer")](rates)
    run = replicas.train(
        stack, fit.x, fit.y, optimizer, batch=cases[0].integer("batch"), steps=cases[0].integer("steps")
    )
    start, end = (replicas.evaluate(each, fit.x, fit.y).loss for each in (stack, run.stack))
    return np.log(np.fmin(end, start))


def _losses(
    cases: Sequence[Case], stack: replicas.Stack, fit: data.Examples, rates: Floats, orders: Sequence[int] | None
) -> Floats:
    """Losses (steps, R) before the step at each rate."""
    factors = rates / rates[0]
    run = replicas.train(
        stack, fit.x, fit.y, OPTIMIZERS[cases[0].text("optimizer")]([float(rates[0])] * len(stack)),
        batch=cases[0].integer("batch"), steps=len(rates), schedule=lambda step: float(factors[step]),
        order_seeds=orders,
    )  # fmt: skip
    return run.loss


def _in_use(cases: Sequence[Case], stack: replicas.Stack, fit: data.Examples) -> dict[str, list[float]]:
    """The rates that the finders in use suggest for each case; those of one range look at one sweep."""
    sweeps = {
        rates: _losses(cases, stack, fit, np.geomspace(*rates, STEPS), None)
        for rates in dict.fromkeys((finder.low, finder.high) for finder in FINDERS.values())
    }
    return {
        name: [finder.suggest(finder.rates, losses) for losses in sweeps[finder.low, finder.high].T]
        for name, finder in FINDERS.items()
    }


def _mark(found: Found, name: str) -> float:
    """Geometric mean over the repetitions of a mark of their curves, NaN where nothing is decided."""
    if found.undecided:
        return math.nan
    curves = [learning_rate.marks(found.rates, change, found.start) for change in found.change]
    return float(np.exp(np.mean(np.log([getattr(curve, name) for curve in curves]))))


def _found(cases: Sequence[Case], context: Context) -> list[Found]:
    """The range test of depthgauge.learning_rate on each case's weights, over as many orders as it repeats."""
    fit, stack = _prepared(cases, context, REPETITIONS)
    rates, batches = learning_rate.rates_between(1e-6, 100.0), len(fit) // cases[0].integer("batch")
    orders = [seeding.number(seed, Purpose.ORDER, place % REPETITIONS) for place, seed in enumerate(stack.seeds)]
    start = _losses(cases, stack, fit, np.full(len(rates), 1e-30), orders)  # which moves no weight
    losses = _losses(cases, stack, fit, rates, orders)
    found = []
    for first in range(0, len(stack), REPETITIONS):
        own = slice(first, first + REPETITIONS)
        gone = np.maximum.accumulate(learning_rate.far(losses[:, own], start[:, own]), axis=0)
        change = np.where(gone, np.nan, losses[:, own] - start[:, own]).T
        found.append(learning_rate.judged(rates, change, float(start[:, own].mean()), batches))
    return found
