"""Divergence of two trainings that differ by one unit in the last place of one weight.

def make(seed):
    model, batches = ..., iter(...)             # the same for the same seed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    def step():
        x, y = next(batches)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, step

parted = precision.twins(make, seeds=range(8), steps=300)
print(parted.exponent())                        # ln of the distance a step, with its interval over pairs
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from depthgauge import stats
from depthgauge.formats.arguments import kind, whole
from depthgauge.precision.checks import check_function, check_module
from depthgauge.precision.randomness import RandomState, random_state, set_random_state
from depthgauge.restoring import random_states_kept
from depthgauge.seeding import Purpose, numpy_generator, seed_torch

Make = Callable[[int], tuple[nn.Module, Callable[[], object]]]
"""Seed -> a module, and a function that trains it by one step."""

SATURATED = 0.1
"""Share of its largest distance at which a pair no longer grows as at first ..."""

SMALL = 1e-3
"""... unless it is below this share of the weights, where what one twin sees is linear in the other's difference."""

TRANSIENT = 10
"""Steps at the beginning, in which the first rounding differences spread over all weights ..."""

SPREAD = 1 / 16
"""... which they have done when the distance is this share of the format's spacing at 1."""


@dataclass(frozen=True)
class Divergence:
    """Pairs of trainings that differ by one unit in the last place of one weight at the start.

    Attributes:
        distance: shape (n, steps + 1): norm of the difference of a pair's weights over the norm of the weights, before
            the first step and after each; NaN where a weight is not finite.
        least: distance from which on rounding differences are everywhere; pairs that never reach it have no exponent.
    """

    distance: NDArray[np.float64]
    least: float = 0.0

    @property
    def merged(self) -> int:
        """Pairs that end with equal weights: rounding has swallowed the difference."""
        return int((self.distance[:, -1] == 0).sum())

    @property
    def saturation(self) -> NDArray[np.int64]:
        """Shape (n,): the step at which each pair reaches a tenth of its largest distance, and 0.001; else the last."""
        level = np.maximum(SATURATED * np.nan_to_num(self.distance).max(axis=1, initial=0.0, keepdims=True), SMALL)
        reached = self.distance >= level
        last = self.distance.shape[1] - 1
        first: NDArray[np.int64] = np.where(reached.any(axis=1), np.argmax(reached, axis=1), last)
        return first

    def slopes(self) -> stats.Lines:
        """Least-squares lines of ln distance on the step, from the end of the transient to the saturation."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return stats.slopes(self._steps(), np.where(self._inside(), np.log(self.distance), math.nan))

    def _steps(self) -> NDArray[np.int64]:
        return np.arange(self.distance.shape[1])

    def _inside(self) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (
            (self._steps() >= TRANSIENT)
            & (self._steps() <= self.saturation[:, None])
            & (self.distance >= max(self.least, np.finfo(float).tiny))
        )
        return inside

    def proportional(self) -> stats.Lines:
        """The same lines of a distance that grows in proportion to the steps, as roundings do that only add up."""
        return stats.slopes(self._steps(), np.where(self._inside(), np.log(np.maximum(self._steps(), 1)), math.nan))

    def exponent(self, confidence: float = 0.95) -> stats.Estimate:
        """Mean growth of ln distance a step, over pairs that part and are seen to grow over three steps at least."""
        slope = self.slopes().slope
        return stats.mean(slope[np.isfinite(slope)], confidence, unit="ln a step")

    def to_frame(self) -> pd.DataFrame:
        """`pair`, `step`, `distance`."""
        pairs, steps = self.distance.shape
        return pd.DataFrame(
            {
                "pair": np.repeat(np.arange(pairs), steps),
                "step": np.tile(np.arange(steps), pairs),
                "distance": self.distance.ravel(),
            }
        )


def twins(make: Make, seeds: Iterable[int], steps: int, *, ulps: int = 1) -> Divergence:
    """Train pairs that differ by units in the last place of one weight, and measure how far apart they are.

    The twins of a pair take turns, each with its own state of PyTorch's generators, so that dropout draws the same for
    both. With `ulps=0` every distance is 0 where training is repeatable.

    Args:
        make: seed -> module and function for one step; called twice a seed.
        seeds: one a pair.
        steps: of each training.
        ulps: size of the difference.

    Raises:
        ValueError: a module without floating-point parameters; no seeds; `steps` or `ulps` that are no whole numbers
            from 0 on; a `make` that does not make the same module anew each time.
        TypeError: seeds that are no integers, or a `make` that does not return a module and a function.
    """
    steps, ulps = whole("steps", steps, 0), whole("ulps", ulps, 0)
    if isinstance(make, nn.Module):
        raise TypeError(f"make is {kind(make)}, where a function was expected: seed -> module, function for one step")
    check_function("make", make, "seed")
    if not isinstance(seeds, Iterable):
        raise TypeError(f"seeds is {kind(seeds)}, where several integers were expected, as in range(8)")
    found = [_distances(make, seed, steps, ulps) for seed in seeds]
    if not found:
        raise ValueError("seeds is empty, and there is no pair to train")
    least = SPREAD * max(epsilon for _, epsilon in found)
    return Divergence(np.array([distances for distances, _ in found]).reshape(-1, steps + 1), least)


def nudge(module: nn.Module, seed: int, ulps: int = 1) -> tuple[str, int]:
    """Move one weight, drawn from the seed, away from 0 by units in its last place; return its name and flat index.

    The weight is one of the last matrix or kernel, which every example passes (one of the first may only see a border
    that is always blank), of a vector where there is none, and not 0 where others are not.

    Raises:
        ValueError: a module without floating-point parameters (those in eight bits do not count), or without a finite
            one among those of the layer; `ulps` below 1.
        TypeError: what is no module, or a seed that is no integer.
    """
    check_module("module", module)
    ulps = whole("ulps", ulps)
    parameters = [(name, p) for name, p in module.named_parameters() if p.is_floating_point() and p.numel()]
    parameters = [(name, p) for name, p in parameters if p.element_size() > 1]  # torch has no neighbours in fewer bits
    chosen = [pair for pair in parameters if pair[1].dim() > 1] or parameters
    if not chosen:
        raise ValueError("the module has no floating-point parameters, so no weight can be moved")
    draw = numpy_generator(seed, Purpose.SAMPLE, "nudge")
    name, parameter = chosen[-1]
    values = parameter.detach().flatten()
    finite = values.isfinite()
    places = (finite & (values != 0)).nonzero().flatten().tolist() or finite.nonzero().flatten().tolist()
    if not places:
        raise ValueError(f"no value of {name!r} is finite, so no weight can be moved")
    place = int(places[draw.integers(len(places))])
    with torch.no_grad():
        at = np.unravel_index(place, tuple(parameter.shape))
        value = parameter[at]
        for _ in range(ulps):
            value = torch.nextafter(value, torch.copysign(value.new_tensor(math.inf), value))
        parameter[at] = value
    return name, place


@dataclass
class _Twin:
    module: nn.Module
    step: Callable[[], object]
    states: RandomState


def _distances(make: Make, seed: int, steps: int, ulps: int) -> tuple[list[float], float]:
    """Distances of a pair, and the spacing at 1 of the coarsest format among its weights."""
    with random_states_kept():
        seed_torch(seed, Purpose.DROPOUT)
        start = random_state()
        pair: list[_Twin] = []
        for moved in (0, ulps):
            set_random_state(start)
            module, step = _made(make, seed)
            if pair:
                _check_alike(pair[0].module, module, seed)
            if moved:
                nudge(module, seed, moved)
            pair.append(_Twin(module, step, random_state()))
        distances = [_distance(pair[0].module, pair[1].module)]
        for _ in range(steps):
            for twin in pair:
                set_random_state(twin.states)
                twin.step()
                twin.states = random_state()
            distances.append(_distance(pair[0].module, pair[1].module))
        dtypes = {each.dtype for each in pair[0].module.parameters() if each.is_floating_point()}
    return distances, max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _made(make: Make, seed: int) -> tuple[nn.Module, Callable[[], object]]:
    made: Any = make(seed)
    if not (isinstance(made, list | tuple) and len(made) == 2 and callable(made[1])):
        parts = ", ".join(map(kind, made)) if isinstance(made, list | tuple) else kind(made)
        raise TypeError(f"make returned {parts}, where a module and a function for one step were expected")
    check_module("the first that make returned", made[0])
    return made[0], made[1]


def _check_alike(a: nn.Module, b: nn.Module, seed: int) -> None:
    """Raise ValueError unless two modules have the same weights in memory of their own."""
    first, second = dict(a.named_parameters()), dict(b.named_parameters())
    if {id(each) for each in first.values()} & {id(each) for each in second.values()}:
        raise ValueError("make returned the same weights twice: it makes a new module each time that it is called")
    if first.keys() != second.keys() or not all(_equal(each, second[name]) for name, each in first.items()):
        raise ValueError(f"make({seed}) returned other weights the second time: it must draw them from the seed")


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | (x.isnan() & y.isnan())).all())


def _distance(a: nn.Module, b: nn.Module) -> float:
    first, second = (_vector(module) for module in (a, b))
    whole = float(first.norm())
    return float((first - second).norm()) / whole if whole else 0.0


def _vector(module: nn.Module) -> Tensor:
    """All weights in float64, on one device."""
    weights = [weight.detach().flatten() for weight in module.parameters()]
    return torch.cat([weight.to(weights[0].device, torch.float64) for weight in weights]) if weights else torch.zeros(0)
