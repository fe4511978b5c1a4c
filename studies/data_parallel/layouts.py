"""The work of ranks for the part on scaling: steps timed and traced in their layouts, in one launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from depthgauge import models
from depthgauge.factories import Input
from depthgauge.parallel import Group, Layout
from depthgauge.parallel.split import record, split
from depthgauge.parallel.steps import Reduction, Step, ddp_steps, meet, room, time_steps
from depthgauge.studies.data_parallel.launches import launched
from depthgauge.study import Case, Context, Rows
from depthgauge.workload import Training

STRETCH = 0.01  # seconds that a duration is averaged over at least
TRACED = 2  # steps of a turn under the profiler
PARTS = ("computing", "exposed", "rest", "hidden", "collectives")

Splits = list[NDArray[np.float64] | None]


def measured(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Seconds of timed cases by round, parts of traced ones by turn; the ranks that get a core or a device each."""
    most = room(context.device)
    here = [case for case in cases if not context.device.startswith("cuda") or case.integer("ranks") <= most]
    for case in cases:
        yield case.rows("room", float(most))
    if not here:
        return
    ranks = max(case.integer("ranks") for case in here)
    answers = launched(work, here, ranks=ranks, device=context.device.partition(":")[0], context=context)
    seconds, sizes, _ = answers[0]
    columns = iter(seconds.T)
    for place, case in enumerate(here):
        yield case.rows("gradient_bytes", float(sizes[place]))
        if not case.integer("turns"):
            column = next(columns)
            yield case.rows("seconds", column, step=np.arange(len(column)))
            continue
        traced = [splits[place] for _, _, splits in answers if splits[place] is not None]
        for metric, values in zip(PARTS, np.mean(traced, axis=0).T, strict=True):
            yield case.rows(metric, values, step=np.arange(len(values)))


def work(group: Group, cases: Sequence[Case]) -> tuple[NDArray[np.float64], list[int], Splits]:
    """In each rank: seconds of the timed cases, bytes of gradients, and splits of the traced cases, all in turns."""
    trainings = [_training(case, str(group.device)) for case in cases]
    steps = ddp_steps(group, list(zip(trainings, map(_layout, cases), strict=True)))
    timed = [step for step, case in zip(steps, cases, strict=True) if not case.integer("turns")]
    seconds = time_steps(group, timed, cases[0].integer("rounds"), stretch=STRETCH)
    return seconds, [_gradient_bytes(training) for training in trainings], _traced(group, cases, steps)


def _traced(group: Group, cases: Sequence[Case], steps: Sequence[Step | None]) -> Splits:
    """Parts of a step by turn, each the mean of the steps of one trace; None of a case that is not traced here."""
    turns = [case.integer("turns") for case in cases]
    found: list[list[Any]] = [[] for _ in cases]
    for turn in range(max(turns)):
        for place, step in enumerate(steps):
            if turn >= turns[place]:
                continue
            meet()
            if step is not None:
                step()  # the very first of a DDP has other buckets
                traced = split(record(step, group, steps=TRACED))
                found[place].append(np.mean([[getattr(each, part) for part in PARTS] for each in traced], axis=0))
    return [np.array(values) if values else None for values in found]


def _layout(case: Case) -> Layout:
    bucket = None if case["bucket"] is None else case.number("bucket")
    return Layout(case.integer("ranks"), cast("Reduction", case.text("reduction")), bucket)


def _training(case: Case, device: str) -> Training:
    asked = case.get("input")
    return models.training(
        case.text("model"), preset="small", device=device, batch=case.integer("batch"),
        asked=None if asked is None else Input.parse(str(asked)), **case.given("width"),
    )  # fmt: skip


def _gradient_bytes(training: Training) -> int:
    return sum(each.numel() * each.element_size() for each in training.model.parameters() if each.requires_grad)
