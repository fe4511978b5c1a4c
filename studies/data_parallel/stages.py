"""Pipelines of torch's own, timed stage by stage: stages of a network, and stages that only sleep."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from depthgauge.parallel import Group
from depthgauge.studies.data_parallel.allocation import allocated
from depthgauge.studies.data_parallel.timelines import BACKWARD, FORWARD, NETWORK, SLEEPING, Pipe, Spans
from depthgauge.studies.data_parallel.trainers import RATE, Task, blocks_of, distance_to, feeding

SCHEDULES: dict[str, Callable[..., Any]] = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}


class _Asleep(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        time.sleep(FORWARD)
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        time.sleep(BACKWARD)
        return gradient


class Sleeping(nn.Module):
    """A stage that takes known times, and no core: as many as there are run at once anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Return x after a while; its gradient takes a while as well."""
        result: Tensor = _Asleep.apply(x * self.scale)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return result


class TimedStage(PipelineStage):
    """A stage of torch's own that notes when each of its passes begins and ends."""

    def __init__(self, module: nn.Module, group: Group) -> None:
        super().__init__(module, group.rank, group.ranks, group.device)
        self.spans: list[tuple[float, float]] = []

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of a microbatch."""
        return self._timed(super().forward_one_chunk, *args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        """Backward pass of a microbatch."""
        return self._timed(super().backward_one_chunk, *args, **kwargs)

    def _timed(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._settle()
        begin = time.monotonic()
        result = work(*args, **kwargs)
        self._settle()
        self.spans.append((begin, time.monotonic()))
        return result

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timelines(group: Group, pipes: Sequence[Pipe], task: Task, rounds: int) -> list[list[Spans]]:
    """The spans of this rank, by pipeline and round, all pipelines in turns."""
    built = [_built(pipe, task, group) for pipe in pipes]
    for _, step in built:
        step()  # shapes are agreed upon in the first
    found: list[list[Spans]] = [[] for _ in pipes]
    for place in range(rounds):
        for index in range(len(pipes))[:: -1 if place % 2 else 1]:
            stage, step = built[index]
            stage.spans.clear()
            distributed.barrier()
            step()
            found[index].append(np.array(stage.spans))
    return found


def _built(pipe: Pipe, task: Task, group: Group) -> tuple[TimedStage, Callable[[], object]]:
    module = Sleeping() if pipe.kind == SLEEPING else blocks_of(task, group.rank, group.ranks)
    own = task if pipe.kind == NETWORK else Task(1, 1, pipe.microbatches)
    stage = TimedStage(module.to(group.device), group)
    schedule = SCHEDULES[pipe.schedule](stage, pipe.microbatches, loss_fn=distance_to)
    return stage, feeding(schedule, own, group)


def held(group: Group, task: Task) -> int:
    """Bytes that this rank's stage holds between two steps of SGD with momentum."""
    assert task.examples  # drawn before anything is counted

    def build() -> Callable[[], object]:
        part = blocks_of(task, group.rank, group.ranks).to(group.device)
        stage = PipelineStage(part, group.rank, group.ranks, group.device)
        feed = feeding(ScheduleGPipe(stage, 1, loss_fn=distance_to), task, group)
        optimizer = torch.optim.SGD(part.parameters(), lr=RATE, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            feed()
            optimizer.step()

        return step

    return allocated(build, group.device)[1]


def work(group: Group, pipes: Sequence[Pipe], task: Task, rounds: int) -> tuple[list[list[Spans]], int]:
    """Timelines, and the bytes that this rank holds."""
    return timelines(group, pipes, task, rounds), held(group, task)
