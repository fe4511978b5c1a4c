"""The work of a rank: every way of one training, what it sends, where it goes, and its seconds in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from depthgauge import parallel, timing
from depthgauge.studies.data_parallel.allocation import STEPS
from depthgauge.studies.data_parallel.trainers import ONE, Task, Trainer, trainer


@dataclass(frozen=True)
class Measured:
    """One way, as one rank saw it.

    Attributes:
        seconds: of each round.
        sent: bytes that a rank sends in a step.
        calls: collectives and messages of a step.
        apart: squared distance of its weights from those of one process, after `STEPS`.
        gone: squared distance that one process has gone, in the same weights.
    """

    seconds: NDArray[np.float64]
    sent: float
    calls: int
    apart: float
    gone: float


def measured(group: parallel.Group, task: Task, ways: Sequence[str], rounds: int) -> dict[str, Measured]:
    """Measure every way of a training in this rank; the others do the same at the same time."""
    start = {name: each.detach() for name, each in task.network().named_parameters()}
    alone = trainer(ONE, task, parallel.Group(0, 1, torch.device("cpu")))
    for _ in range(STEPS):
        alone.step()
    goal = alone.weights()
    made: dict[str, Trainer] = {}
    found: dict[str, tuple[float, int, float, float]] = {}
    for way in ways:
        made[way] = trainer(way, task, group)
        for _ in range(STEPS):
            made[way].step()
        apart, gone = _distances(made[way].weights(), goal, start)
        seen = parallel.traffic(made[way].step)
        found[way] = seen.sent, sum(each.count for each in seen.collectives), apart, gone
    seconds = in_turns(group, [each.step for each in made.values()], rounds)
    return {way: Measured(own, *found[way]) for way, own in zip(made, seconds.T, strict=True)}


def in_turns(group: parallel.Group, steps: Sequence[Callable[[], object]], rounds: int) -> NDArray[np.float64]:
    """Seconds of a step in this rank, (rounds, steps): up in one round and down in the next, begun together."""
    clock = timing.clock(str(group.device))
    seconds = np.empty((rounds, len(steps)))
    for place in range(rounds):
        for index in range(len(steps))[:: -1 if place % 2 else 1]:
            distributed.all_reduce(torch.zeros(()))  # by gloo: a barrier of NCCL would work on the devices of others
            seconds[place, index] = clock.time(steps[index])
    return seconds


def _distances(
    weights: Mapping[str, Tensor], goal: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> tuple[float, float]:
    """Squared distances of the weights, and of where they began, from the goal."""

    def squared(of: Mapping[str, Tensor]) -> float:
        return sum(float((of[name].cpu().double() - goal[name].double()).square().sum()) for name in weights)

    return squared(weights), squared(start)
