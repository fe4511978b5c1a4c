"""Steps of a training in float64, and weights in a number format that take them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from depthgauge import data, formats, theory
from depthgauge.replicas.order import orders
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context

REMEDIES = ("none", "stochastic", "kahan", "master")
PIXELS, CLASSES = 64, 10  # of the 8 x 8 digits
SMALLEST = 2.0**-45  # of the updates that are looked up


@dataclass(frozen=True)
class Held:
    """Weights of several replicas in a format, stored in float64, and what a remedy keeps beside them.

    Attributes:
        weights: (replicas, parameters), each a value of the format.
        beside: Kahan's compensation in the format, or master weights in float32.
        fmt: name of the format.
        remedy: one of `REMEDIES`.
        draws: a generator a replica, for stochastic rounding.
    """

    weights: Tensor
    beside: Tensor
    fmt: str
    remedy: str
    draws: tuple[torch.Generator, ...]

    @staticmethod
    def of(weights: Tensor, fmt: str, remedy: str, seeds: Sequence[int]) -> Held:
        """The start: weights rounded to the format, nothing compensated yet."""
        beside = formats.round(weights, "float32") if remedy == "master" else torch.zeros_like(weights)
        draws = tuple(generator(seed, Purpose.ROUNDING, fmt) for seed in seeds)
        return Held(formats.round(weights, fmt), beside, fmt, remedy, draws)

    @property
    def kept(self) -> Tensor:
        """The weights as the optimizer knows them."""
        return self.beside if self.remedy == "master" else self.weights + self.beside

    def plus(self, update: Tensor) -> Held:
        """The weights after a step; every sum is exact and rounded once."""
        w, beside = self.weights, self.beside
        if self.remedy == "none":
            w = formats.round(w + update, self.fmt)
        elif self.remedy == "stochastic":
            sums = zip(w + update, self.draws, strict=True)
            w = torch.stack([formats.round(one, self.fmt, stochastic=draw) for one, draw in sums])
        elif self.remedy == "kahan":
            beside = formats.round(beside + update, self.fmt)
            w = formats.round(w + beside, self.fmt)
            beside = formats.round(beside - (w - self.weights), self.fmt)
        else:
            beside = formats.round(beside + update, "float32")
            w = formats.round(beside, self.fmt)
        return replace(self, weights=w, beside=beside)


def training(case: Case, seeds: Sequence[int], context: Context) -> Iterator[tuple[Tensor, Tensor]]:
    """(weights, update) of every step, (seeds, parameters) in float64: one hidden layer of ReLUs on 8 x 8 digits."""
    digits, steps, batch = data.load("digits").train, case.integer("steps"), case.integer("batch")
    draws = [generator(seed, Purpose.WEIGHTS) for seed in seeds]
    parameters = [
        torch.stack([torch.randn(shape, generator=draw, dtype=torch.float64) for draw in draws]).mul(std)
        for shape, std in layers(case.integer("width"))
    ]
    first, last = (parameter.to(context.device).requires_grad_() for parameter in parameters)
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[case.text("optimizer")]
    optimizer = make([first, last], lr=case.number("lr"))
    x, y = digits.x.flatten(1).double(), digits.y
    for chosen in orders(seeds, len(y), batch, steps).unbind(0):
        outputs = (x[chosen].to(context.device) @ first).relu() @ last
        loss = nn.functional.cross_entropy(outputs.flatten(0, 1), y[chosen].flatten().to(context.device))
        optimizer.zero_grad()
        (loss * len(seeds)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        before = flat(first, last)
        optimizer.step()
        yield before, flat(first, last) - before


def layers(width: int) -> tuple[tuple[tuple[int, int], float], ...]:
    """Shape and initial standard deviation (He et al. 2015) of each layer's weights."""
    return tuple(((inputs, outputs), (2 / inputs) ** 0.5) for inputs, outputs in ((PIXELS, width), (width, CLASSES)))


def flat(*parameters: Tensor) -> Tensor:
    """A row a seed."""
    return torch.cat([parameter.detach().flatten(1) for parameter in parameters], 1).cpu()


def expected(fmt: str, update: Tensor, width: int) -> Tensor:
    """The chance that each update leaves its weight unchanged, by its size and its layer's initial spread."""
    size = update.abs().clamp(min=SMALLEST).log2().numpy()
    parts = np.split(size, [PIXELS * width], axis=1)
    chances = [np.interp(part, *staircase(fmt, std)) for part, (_, std) in zip(parts, layers(width), strict=True)]
    return torch.from_numpy(np.concatenate(chances, 1))


@cache
def staircase(fmt: str, std: float) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the size of an update, and the share of weights that it leaves unchanged."""
    places = np.arange(math.log2(SMALLEST), 2, 0.25)
    return places, np.array([theory.lost_update_fraction(fmt, std, 2.0**place) for place in places])
