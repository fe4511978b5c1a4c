"""One typical step out of several traced ones, without their disturbances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from depthgauge.trace import Operator, Range, Trace

_ALIKE = 1.05  # steps that take at most so many times the quickest one's time are kept with it


def steady(trace: Trace) -> Trace:
    """The trace of one typical step: every operator, and every gap between two, takes its median over the steps.

    What else runs on a machine interrupts an operator here in one step and there in another; no step need be free of
    it for every median to be. Steps count that ran the same operators in the same order. Where fewer than three do, or
    a device or several threads work side by side, so that there is no one order, the quickest step stands, and those
    within 5 % of it.
    """
    if trace.device or len({operator.thread for operator in trace.operators}) != 1:
        return _quickest(trace)
    steps = {step: _inside(trace.operators, step) for step in trace.steps}
    reference = min(steps, key=lambda step: step.end - step.start)
    order = _names(steps[reference])
    times = {step: _edges(inside, step) for step, inside in steps.items() if _names(inside) == order}
    if len(times) < 3:
        return _quickest(trace)
    typical = np.median([np.diff(edges) for edges in times.values()], axis=0)
    return _retimed(trace, reference, times[reference], np.concatenate([[0.0], np.cumsum(typical)]))


def _quickest(trace: Trace) -> Trace:
    quickest = min(step.end - step.start for step in trace.steps)
    disturbed = {step for step in trace.steps if step.end - step.start > _ALIKE * quickest}
    return replace(trace, ranges=tuple(span for span in trace.ranges if span not in disturbed))


def _inside(operators: Sequence[Operator], step: Range) -> list[Operator]:
    return [operator for operator in operators if step.start <= operator.start and operator.end <= step.end]


def _names(operators: Sequence[Operator]) -> list[tuple[str, object]]:
    return [(operator.name, operator.shapes) for operator in operators]


def _edges(operators: Sequence[Operator], step: Range) -> NDArray[np.float64]:
    """The times at which operators start and end, from the step's start to its end, in the order of nesting."""

    def nested() -> Iterator[float]:
        running: list[Operator] = []
        yield step.start
        for operator in operators:
            while running and running[-1].end <= operator.start:
                yield running.pop().end
            yield operator.start
            running.append(operator)
        while running:
            yield running.pop().end
        yield step.end

    return np.array(list(nested()))


def _retimed(trace: Trace, step: Range, before: NDArray[np.float64], after: NDArray[np.float64]) -> Trace:
    """The events of one step, moved from the times `before` to those `after`."""

    def moved(time: float) -> float:
        return float(np.interp(time, before, after))

    def within(start: float, end: float) -> bool:
        return step.start <= start and end <= step.end

    operators = [event for event in trace.operators if within(event.start, event.end)]
    ranges = [event for event in trace.ranges if within(event.start, event.end)]
    memory = [event for event in trace.memory if within(event.time, event.time)]
    return Trace(
        operators=tuple(replace(event, start=moved(event.start), end=moved(event.end)) for event in operators),
        ranges=tuple(replace(event, start=moved(event.start), end=moved(event.end)) for event in ranges),
        device=(),
        memory=tuple(replace(event, time=moved(event.time)) for event in memory),
    )
