"""The first steps of a training, recorded."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from depthgauge import probe
from depthgauge.checking.steps import losses, step
from depthgauge.foreign import describe_error
from depthgauge.probe import Record, UnreadWarning
from depthgauge.workload import Training

REFERENCE = 4  # batches whose loss is held against itself before and after
EVERY = 5  # steps, of which one is recorded
OF_WEIGHTS = ("weight", "weight_gradient", "update")
LEAST = 3  # steps, however long they take


@dataclass(frozen=True, eq=False)
class Begun:
    """Effects of the first steps of the user's own optimizer.

    Attributes:
        record: every tensor of every fifth step, from the first on.
        losses: of each step's batch, before the step.
        before: losses of the first batches (at most 4) before the first step.
        after: of the same batches, with the same draws, after the last step; empty where one cannot be had.
        seconds: of each step, that of the record included.
        stopped: why there are no more: empty where all that were asked for were made.
    """

    record: Record
    losses: tuple[float, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    seconds: tuple[float, ...]
    stopped: str

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return len(self.seconds)


def begin(training: Training, most: int, going: Callable[[], bool], references: int = REFERENCE) -> Begun:
    """Make up to `most` steps while `going()`, at least three where none fails, and put everything back.

    Args:
        training: one with an optimizer.
        most: steps.
        going: whether there is time left.
        references: batches whose loss is held against itself before and after.
    """
    made: list[float] = []
    seconds: list[float] = []
    stopped = ""
    with training.untouched():
        before = _reference(training, references)
        with quietly(), recorded(training, EVERY) as record, closing(cast("Any", training.stream())) as stream:
            while not stopped and len(made) < most:
                if len(made) >= LEAST and not going():
                    stopped = f"there was time for {len(made)} steps"
                    break
                start = time.perf_counter()
                loss = _step(training, stream)
                if isinstance(loss, str):
                    stopped = f"step {len(made)} raised {loss}"
                    break
                seconds.append(time.perf_counter() - start)
                made.append(loss)
                if not math.isfinite(loss):
                    stopped = f"the loss is {loss} in step {len(made) - 1}"
        after = _reference(training, references)
    return Begun(record, tuple(made), before, after, tuple(seconds), stopped)


@contextmanager
def recorded(training: Training, every: int = 1) -> Iterator[Record]:
    """Record every tensor; of what `torch.compile` has fused, weights, their gradients and updates alone."""
    with ExitStack() as stack:
        try:
            record = stack.enter_context(probe.track(training.model, optimizer=training.optimizer, every=every))
        except ValueError:
            seen = OF_WEIGHTS if training.optimizer is not None else OF_WEIGHTS[:2]
            some = probe.track(training.model, optimizer=training.optimizer, every=every, directions=seen)
            record = stack.enter_context(some)
        yield record


def _step(training: Training, stream: Iterator[Any]) -> float | str:
    """The loss before one update, or what it raised."""
    try:
        return step(training, next(stream))
    except Exception as error:  # noqa: BLE001 - a step is the user's code, and may raise anything
        return describe_error(error)


def _reference(training: Training, count: int) -> tuple[float, ...]:
    """Losses of the first batches at the weights as they are; empty where one cannot be had."""
    try:
        return losses(training, training.known(count)) if count else ()
    except Exception:  # noqa: BLE001 - as above; the steps themselves say what is wrong
        return ()


@contextmanager
def quietly() -> Iterator[None]:
    """Silence the probe's warning of what it could not read: `Record.unread` has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadWarning)
        yield
