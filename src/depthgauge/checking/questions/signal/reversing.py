"""Parts that go up where the loss is to go down: a gradient whose sign a function of the user's own has turned."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from depthgauge import nested
from depthgauge.checking.answers import Finding, Measure, Status
from depthgauge.checking.graphs import nodes
from depthgauge.checking.steps import losses
from depthgauge.checking.words import listed
from depthgauge.restoring import random_states_kept
from depthgauge.workload import Training

CHANGE = 3e-3  # of the loss: what a step along the gradient is to change
FARTHEST = 0.03  # of the weights' norm
EXACT = 0.05  # relative: an adversary's share of the gradient, beside the loss's own, is not that of a turned sign
PARTS = 6  # that are looked at


def findings(training: Training, batches: Sequence[Any]) -> Iterator[Finding]:
    """Parts along whose gradient the loss falls as fast as it should rise; within `untouched()`."""
    training.model.zero_grad(set_to_none=True)
    value = training.value(batches[0])
    if not any(isinstance(node, BackwardCFunction) for node in nodes(value)):
        return
    turned = []
    for name, parameters in _parts(training.model):
        slopes = [_slope(training, batch, parameters) for batch in batches[:2]]
        if slopes and all(abs(each + 1) < EXACT for each in slopes):
            turned.append(name)
    if turned:
        text = (
            f"the gradient of {listed(turned)} has the opposite sign: along it the loss falls, so that steps raise it"
        )
        advice = (
            "look at the custom autograd function between them and the loss: reverse the adversary's gradient alone"
        )
        yield Finding("reversed_gradient", Status.BROKEN, text, advice, "steps lower the loss", tuple(turned),
                      Measure("slope along the gradient over its norm", -1.0))  # fmt: skip


def _parts(model: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """The model's parts, down to where there are two or more."""
    name, children = "", list(model.named_children())
    while len(children) == 1:
        name = f"{name}.{children[0][0]}" if name else children[0][0]
        children = list(children[0][1].named_children())
    parts = [(f"{name}.{own}" if name else own, [*child.parameters()]) for own, child in children]
    return [(part, held) for part, held in parts if any(each.requires_grad for each in held)][:PARTS]


def _slope(training: Training, batch: Any, parameters: list[nn.Parameter]) -> float:
    """The loss's slope along the gradient over the gradient's norm: 1 where it is the gradient; NaN where unknown."""
    training.model.zero_grad(set_to_none=True)
    losses_now = losses(training, [batch])[0]
    _backward(training, batch)
    held = [(each, each.grad.detach().clone()) for each in parameters if each.grad is not None and each.requires_grad]
    norm = math.sqrt(sum(nested.real(gradient).double().square().sum().item() for _, gradient in held))
    if not held or not 0 < norm < math.inf or not math.isfinite(losses_now):
        return math.nan
    size = math.sqrt(sum(nested.real(each.detach()).double().square().sum().item() for each, _ in held))
    far = min(CHANGE * abs(losses_now) / norm, FARTHEST * size)
    ends = []
    for side in (1, -1):
        _move(held, side * far / norm)
        ends.append(losses(training, [batch])[0])
        _move(held, -side * far / norm)
    return (ends[0] - ends[1]) / (2 * far * norm) if far > 0 else math.nan


def _backward(training: Training, batch: Any) -> None:
    with random_states_kept():
        training.value(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _move(held: list[tuple[nn.Parameter, Tensor]], far: float) -> None:
    with torch.no_grad():
        for each, gradient in held:
            each.add_(gradient, alpha=far)
