"""Is this device faster in 16 bits: passes in turns, with an interval."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from depthgauge import stats
from depthgauge.checking.answers import TRIFLE, Finding, Measure, Status
from depthgauge.checking.questions.precision import passes
from depthgauge.checking.questions.precision.operators import HALVES
from depthgauge.checking.subject import Clock
from depthgauge.checking.words import percent
from depthgauge.stats import Comparison
from depthgauge.timing import clock as clock_of
from depthgauge.workload import Training

SECONDS = 0.5  # that more than the least number of blocks may take: the figure decides no fault
BLOCKS = 15  # of A B B A, at most
LEAST = 6  # from which the median's 95 % interval by order statistics has two ends
WORTH = 1.1  # a format is advised from this factor on, and advised against: a neighbour's load makes that of timings


def ratio(training: Training, batch: Any, fmt: str, clock: Clock) -> Comparison | str:
    """The time of a pass in 16 bits over that in float32; where there is not enough time, why not.

    Args:
        training: left as it was.
        batch: one of its own.
        fmt: the autocast format that is put around a training in float32; empty: the training's own 16 bits.
        clock: the time that it may take.
    """
    stop = clock_of(passes.device_of(training))
    present = _pass(training, batch, contextlib.nullcontext)
    if fmt:
        narrow, wide = _pass(training, batch, lambda: passes.narrow(training, fmt)), present
    else:
        narrow, wide = present, _pass(training, batch, passes.wide)
    with training.untouched():
        if not fmt and any(each.dtype in HALVES for each in training.model.parameters()):
            return "its weights are in 16 bits, so that the two cannot be timed in turns"
        once = min(max(stop.time(work) for work in (narrow, wide)) for _ in range(2))
        blocks = min(clock.count(4 * once, BLOCKS), max(LEAST, int(SECONDS / (4 * once))))
        if blocks < LEAST:
            return f"a pass takes {once:.2g} s, too long for {LEAST} comparisons of four"
        a, b = [], []
        for _ in range(blocks):
            first, second, third, fourth = (stop.time(work) for work in (narrow, wide, wide, narrow))
            a.append((first, fourth))
            b.append((second, third))
    return stats.time_ratio(a, b, confidence=0.95)


def _pass(training: Training, batch: Any, around: Callable[[], Any]) -> Callable[[], None]:
    def work() -> None:
        with around():
            value = training.value(batch)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    return work


def judged(compared: Comparison, fmt: str, present: bool, error: float, seconds: float) -> list[Finding]:
    """A finding where one of the two formats is worth a change.

    Args:
        compared: the 16-bit pass over the float32 one.
        fmt: the 16-bit format.
        present: whether the training uses it now.
        error: of the gradient in it, relative.
        seconds: that a pass takes as it is.
    """
    effect = compared.effect
    status = Status.LOOK if abs(1 - effect.value) * seconds / max(1.0, effect.value) >= TRIFLE else Status.FINE
    times = f"{effect.value:.2f} times as long ({effect.low:.2f} to {effect.high:.2f}) as in float32"
    name = f"time of a pass in {fmt} over float32"
    measure = Measure(name, effect.value, effect.low, effect.high, method=effect.method)
    if not present and effect.high < 1 / WORTH:
        return [
            Finding(
                "faster_format", status, f"under {fmt} autocast a pass takes {times} on this device",
                f"run the loss under torch.autocast(dtype=torch.{fmt})",
                f"passes {1 / effect.value:.2f} times as fast; the gradient changes by {percent(error)}",
                ("loss",), measure,
            )
        ]  # fmt: skip
    if present and effect.low > WORTH:
        return [
            Finding(
                "slower_format", status, f"in {fmt} a pass takes {times} on this device",
                f"leave {fmt} off on this device", f"passes {effect.value:.2f} times as fast", ("loss",), measure,
            )
        ]  # fmt: skip
    return []
