"""Seconds of a training step on several ranks: one training in many layouts, timed in turns.

    def work(group):                                           # in every rank, by `parallel.launch(work, ranks=2)`
        asked = [(make(32), Layout(ranks=1, reduction="none")), (make(32), Layout(ranks=2))]
        return time_steps(group, ddp_steps(group, asked), rounds=20)

    outcome.answers[0]                                         # (rounds, layouts), the slowest rank's seconds

A step is plain PyTorch: DDP as it is, with its own buckets and hooks, and the training's own loss and optimizer.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from depthgauge.formats.arguments import whole
from depthgauge.parallel import passes
from depthgauge.parallel.group import Group
from depthgauge.parallel.naming import ParallelError
from depthgauge.timing import Device, DeviceClock
from depthgauge.workload import Training

Step = Callable[[], object]
Reduction = Literal["overlapped", "waited", "none"]
REDUCTIONS: tuple[Reduction, ...] = ("overlapped", "waited", "none")
STRETCH = 0.02
"""Seconds that a timed stretch lasts at least: many times what ranks differ by in leaving a barrier."""


@dataclass(frozen=True)
class Layout:
    """A training step's place on ranks.

    Attributes:
        ranks: the first so many ranks of the group take part, each with the whole model and a batch of its own; the
            others wait.
        reduction: `overlapped`: DDP as it is, which reduces a bucket while the backward pass goes on; `waited`: the
            same buckets, but the backward pass waits for each; `none`: plain training at the same time on each rank,
            without DDP.
        bucket_mib: DDP's `bucket_cap_mb`; None: its default, 25 after a first bucket of 1.
    """

    ranks: int = 2
    reduction: Reduction = "overlapped"
    bucket_mib: float | None = None


def room(device: str) -> int:
    """Ranks that get a core each, or a device each on CUDA: more than these share, and tell nothing of scaling."""
    if device.startswith("cuda"):
        return torch.cuda.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ddp_steps(group: Group, asked: Sequence[tuple[Training, Layout]]) -> list[Step | None]:
    """Training steps in their layouts: zero_grad, forward, backward, optimizer, always on the training's first batch.

    Every rank of the group calls this with the same layouts.

    Args:
        group: the ranks.
        asked: a training and its layout, each training another object; it lies on the rank's device. Without an
            optimizer it is SGD with momentum at a learning rate of 0.

    Returns:
        A step a layout; None where this rank takes no part.

    Raises:
        ParallelError: a layout that the group cannot have, or one training in two layouts.
    """
    for _, layout in asked:
        if not 1 <= layout.ranks <= group.ranks or layout.reduction not in REDUCTIONS:
            raise ParallelError(f"{layout} is no layout on {group.ranks} ranks with reduction {', '.join(REDUCTIONS)}")
    if len({id(training.model) for training, _ in asked}) < len(asked):
        raise ParallelError("two layouts have one model, whose gradients DDP would reduce twice: make it for each")
    parts = {  # every rank makes every group, also those that it is not in
        ranks: None if ranks == group.ranks else group.of_first(ranks)
        for ranks in sorted({layout.ranks for _, layout in asked})
    }
    return [
        _step(training, layout, parts[layout.ranks]) if group.rank < layout.ranks else None
        for training, layout in asked
    ]


def time_steps(
    group: Group, steps: Sequence[Step | None], rounds: int, *, stretch: float = STRETCH
) -> NDArray[np.float64]:
    """Seconds of each step, all of them up in one round and down in the next, so that a drift meets all alike.

    Each begins behind a barrier of all ranks and an untimed step, and is repeated for a stretch long enough that what
    ranks differ by in leaving the barrier counts for nothing.

    Args:
        group: the ranks; every one calls this.
        steps: from `ddp_steps`: None where this rank takes no part.
        rounds: durations of each; an interval of a median takes 6 at 95 %, 8 at 99 %.
        stretch: seconds that a duration is averaged over at least.

    Raises:
        ValueError: rounds are no whole number from 1.

    Returns:
        Shape (rounds, steps): the mean seconds of a stretch in the slowest rank; the same in every rank.
    """
    rounds = whole("rounds", rounds)
    clock = DeviceClock(Device.named(str(group.device)))
    warm = torch.zeros(len(steps), dtype=torch.float64)
    for place, step in enumerate(steps):
        if step is not None:
            step()
            warm[place] = min(clock.time(step) for _ in range(2))
    calls = [max(1, math.ceil(stretch / max(seconds, 1e-9))) for seconds in _slowest(warm).tolist()]
    taken = torch.zeros(rounds, len(steps), dtype=torch.float64)
    for turn in range(rounds):
        for place in range(len(steps))[:: -1 if turn % 2 else 1]:
            meet()
            step = steps[place]
            if step is not None:
                step()
                taken[turn, place] = clock.time(step, calls[place]) / calls[place]
    return cast("NDArray[np.float64]", _slowest(taken).numpy())


def _step(training: Training, layout: Layout, part: Any) -> Step:
    (batch,) = training.first()
    loss: nn.Module = passes.Step(training)
    if layout.reduction != "none":
        loss = DistributedDataParallel(loss, process_group=part, bucket_cap_mb=layout.bucket_mib)
        if layout.reduction == "waited":
            # DDP takes the annotation of `bucket` as a type, never as the text that it is in this file
            loss.register_comm_hook(part, lambda state, bucket: _waited(state, bucket))  # noqa: PLW0108
    optimizer = training.optimizer or torch.optim.SGD(training.model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()

    return step


def _waited(part: Any, bucket: Any) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket over the ranks before the backward pass goes on."""
    gradients = bucket.buffer().div_(distributed.get_world_size(part))
    distributed.all_reduce(gradients, group=part)
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(gradients)
    return done


def meet() -> None:
    """Return when every rank of the group has come here."""
    distributed.all_reduce(torch.zeros(1))  # of the host's memory, by gloo, where computing is on CUDA as well


def _slowest(seconds: torch.Tensor) -> torch.Tensor:
    distributed.all_reduce(seconds, distributed.ReduceOp.MAX)
    return seconds
