"""Steps of a training's own, and its losses: what the questions do with it within `untouched()`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any, cast

from depthgauge.restoring import random_states_kept
from depthgauge.updating import clear, update
from depthgauge.workload import Training


def step(training: Training, batch: Any, *, optimizer: Any = None, scale: float = 1.0) -> float:
    """Make one step, where the loss is finite; return the loss before it.

    Args:
        training: changed.
        batch: of it.
        optimizer: in place of its own.
        scale: times the loss whose gradient the step follows.

    Raises:
        Exception: what the user's loss, module or optimizer raises.
    """
    optimizer = training.optimizer if optimizer is None else optimizer
    clear(optimizer)
    loss = training.value(batch)
    value = loss.item()
    if math.isfinite(value):
        (loss if scale == 1 else scale * loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        update(optimizer, lambda: training.value(batch))
    return value


def go_on(training: Training, most: int, going: Callable[[], bool] = lambda: True) -> int:
    """Make up to so many steps on its batches, one at least, as long as the loss is finite; return how many."""
    with closing(cast("Any", training.stream())) as stream:
        for made in range(most):
            if (made and not going()) or not math.isfinite(step(training, next(stream))):
                return made
    return most


def losses(training: Training, batches: Iterable[Any]) -> tuple[float, ...]:
    """Losses of batches at the weights as they are; the next call draws the same."""
    with random_states_kept():
        return tuple(training.value(batch).item() for batch in batches)


def set_rates(optimizer: Any, rates: Sequence[float]) -> None:
    """Set the rate of each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if hasattr(group["lr"], "fill_"):  # a tensor's place is known to compiled steps
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
