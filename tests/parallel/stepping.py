"""What ranks do in `test_steps.py`: they find it by this file's path."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import Training
from depthgauge.parallel import Group, Layout, ParallelError, ddp_steps, time_steps
from depthgauge.parallel.split import Split, record, split

ROUNDS = 3
NAP = 0.1
LAYOUTS = (
    Layout(1, "none"), Layout(2, "none"), Layout(2, "overlapped"), Layout(2, "waited"),
    Layout(2, "overlapped", bucket_mib=0.001),
)  # fmt: skip


def weighted(rank: int) -> Training:
    """A loss w x with x = rank + 1: its gradient is x."""
    model = nn.Linear(1, 1, bias=False)
    return Training(model, [torch.full((1, 1), rank + 1.0)], lambda model, batch: model(batch).sum())


def napping(seconds: float, model: nn.Module, batch: Tensor) -> Tensor:
    time.sleep(seconds)
    return model(batch).sum()


def napped(group: Group, sleeper: int) -> Training:
    """A training that sleeps in one rank."""
    nap = NAP if group.rank == sleeper else 0.0
    return Training(nn.Linear(1, 1), [torch.ones(1, 1)], partial(napping, nap))


def refused(group: Group, asked: Any) -> str:
    try:
        ddp_steps(group, asked)
    except ParallelError as error:
        return str(error)
    return ""


def traced(group: Group) -> dict[str, tuple[Split, ...] | None]:
    """Splits of steps of three layers of 1 MiB each, of whose buckets the number is known."""
    layouts = {
        "three": Layout(2, bucket_mib=1), "two": Layout(2), "waited": Layout(2, "waited", 1), "none": Layout(1, "none"),
    }  # fmt: skip
    asked = []
    for layout in layouts.values():
        model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(3)))
        asked.append(
            (Training(model, [torch.randn(64, 512)], lambda model, batch: model(batch).square().mean()), layout)
        )
    steps = ddp_steps(group, asked)
    for step in steps:
        if step is not None:  # the first step of a DDP has buckets of its own
            step()
    return {
        name: None if step is None else split(record(step, group)) for name, step in zip(layouts, steps, strict=True)
    }


def measured(group: Group) -> dict[str, Any]:
    """Step in every layout, and time steps that only one of the ranks is slow in."""
    trainings = [weighted(group.rank) for _ in LAYOUTS]
    steps = ddp_steps(group, list(zip(trainings, LAYOUTS, strict=True)))
    seconds = time_steps(group, steps, ROUNDS, stretch=0.002)
    weights = [next(training.model.parameters()) for training in trainings]
    gradients = [None if weight.grad is None else weight.grad.item() for weight in weights]
    slow = [(napped(group, sleeper), Layout(ranks, "none")) for ranks, sleeper in ((1, 0), (1, 1), (2, 1))]
    naps = time_steps(group, ddp_steps(group, slow), 1, stretch=0.0)
    twice = weighted(0)
    errors = [
        refused(group, [(weighted(0), Layout(3))]),
        refused(group, [(twice, Layout(1)), (twice, Layout(2))]),
        refused(group, [(weighted(0), Layout(2, "sometimes"))]),  # type: ignore[arg-type]  # wrong on purpose
    ]
    return {"gradients": gradients, "seconds": seconds, "naps": naps, "errors": errors, "splits": traced(group)}
