"""An oracle that trains a training to tell whether it trains; it knows nothing of the checks."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from depthgauge import Training

STEPS = 200
HELD = 4  # batches on which it is judged


@dataclass(frozen=True)
class Trained:
    """The outcome of some steps of a training.

    Attributes:
        before: mean loss of the first batches.
        after: of the same ones, after the steps.
        idle: names of parameters in the optimizer that never got a gradient other than 0.
        seconds: of a step.
    """

    before: float
    after: float
    idle: tuple[str, ...]
    seconds: float


def train(training: Training, steps: int = STEPS) -> Trained:
    """Train for so many steps, for good."""
    assert training.optimizer is not None
    held = {id(each) for group in training.optimizer.param_groups for each in group["params"]}
    idle = {name: each for name, each in training.model.named_parameters() if id(each) in held and each.requires_grad}
    before = _mean_loss(training)
    stream = training.stream()
    start = time.perf_counter()
    for _ in range(steps):
        training.optimizer.zero_grad()
        training.value(next(stream)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        idle = {name: each for name, each in idle.items() if each.grad is None or not each.grad.to_dense().any()}
        training.optimizer.step()
    seconds = (time.perf_counter() - start) / steps
    stream.close()
    return Trained(before, _mean_loss(training), tuple(idle), seconds)


def _mean_loss(training: Training) -> float:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        losses = [float(training.value(batch)) for batch in training.first(HELD)]
    return math.fsum(losses) / len(losses)
