"""The first pass of a training, forward and backward, at the weights as they are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from depthgauge import nested
from depthgauge.checking import late
from depthgauge.checking.filled import Before, Empty
from depthgauge.checking.graphs import Graph, graph_of
from depthgauge.checking.loading import Reading
from depthgauge.checking.steps import losses
from depthgauge.workload import Training

BATCHES = 4  # whose loss is looked at, at most
WARM = 0.2  # of the time that is left: a first pass that took more, the compilers' part in it, is not timed again
LOADING = 0.1  # of it, for reading the first batches
OTHERS = 0.15  # of it, for the other batches' losses


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of one parameter.

    Attributes:
        rms: root mean square of its finite values; NaN where there is none.
        largest: largest absolute value, infinite or NaN where one is.
        finite: whether all of it is.
    """

    rms: float
    largest: float
    finite: bool


@dataclass(frozen=True, eq=False)
class Seen:
    """Observations of one pass over the first batch.

    Attributes:
        batch: the first batch.
        examples: how many it holds; None where its tensors share no first dimension.
        losses: of the first batches (at most 4, fewer where time is short), at the weights as they are.
        graph: the graph of the first one's loss.
        gradients: by parameter, those that train; None where the pass left none.
        seconds: of the pass, forward and backward, warm where there were two.
        made: layers that the first pass made.
        filled: attributes in which it left tensors, and that held nothing before.
        reading: of the batches, by which more are had; None where they were not read by one.
        copies: seconds that copying what a pass changes, and putting it back, takes; 0 where `seconds` has it in it.
    """

    batch: Any
    examples: int | None
    losses: tuple[float, ...]
    graph: Graph
    gradients: Mapping[str, Gradient | None]
    seconds: float
    made: late.Made = ()
    filled: tuple[Empty, ...] = ()
    reading: Reading | None = None
    copies: float = 0.0

    @property
    def loss(self) -> float:
        """Loss of the first batch."""
        return self.losses[0]


def look(training: Training, left: Callable[[], float] = lambda: math.inf) -> Seen:
    """Make one pass, and more where they are short against the time, and leave the training as it was.

    Args:
        training: the user's.
        left: seconds that all questions have.

    Raises:
        Exception: what the user's loss, module or loader raises.
    """
    reading = Reading(training)
    batches = reading.batches(BATCHES, LOADING * left())
    began = time.perf_counter()
    with training.untouched():
        for parameter in training.model.parameters():
            parameter.grad = None
        before, empty = late.names(training.model), Before.of(training.model)
        value = training.value(batches[0])
        graph = graph_of(value)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        gradients = {
            name: None if each.grad is None else _gradient(each.grad)
            for name, each in training.model.named_parameters()
            if each.requires_grad
        }
        made, filled = late.made(before), empty.filled()
    seconds = time.perf_counter() - began
    copies = 0.0
    if seconds < WARM * left():
        began = time.perf_counter()
        with training.untouched():
            start = time.perf_counter()
            training.value(batches[0]).backward()  # type: ignore[no-untyped-call]  # as above
            seconds = time.perf_counter() - start
        copies = time.perf_counter() - began - seconds
    more = min(len(batches), 1 + int(OTHERS * left() / max(seconds, 1e-9))) if left() < math.inf else len(batches)
    with training.untouched():
        others = losses(training, batches[1:more])
    known = (value.item(), *others)
    return Seen(batches[0], nested.rows(batches[0]), known, graph, gradients, seconds, made, filled, reading, copies)


def _gradient(gradient: torch.Tensor) -> Gradient:
    values = gradient.detach()
    values = values.coalesce().values() if values.is_sparse else values
    values = nested.real(values).double().abs()
    if not values.numel():
        return Gradient(math.nan, math.nan, True)
    finite = values.isfinite()
    kept = values[finite]
    rms = kept.square().mean().sqrt().item() if len(kept) else math.nan
    return Gradient(rms, values.max().item(), bool(finite.all()))
