"""What is tried: an entry of the table, and the case that it builds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import nn

STEPS = 3
KINDS = ("module", "loop", "wrapper")


@dataclass(frozen=True)
class Case:
    """A model and its training, small, with random weights.

    Attributes:
        model: what is watched.
        loss: takes a model, draws a batch for it and returns its loss; None where a training loop owns all of that.
        optimizer: what `probe.track` is given as `optimizer=`.
        train: runs a few steps and returns the losses, or other numbers that tell two trainings apart.
        watch: further arguments of `probe.track`.
    """

    model: nn.Module
    loss: Callable[[nn.Module], torch.Tensor] | None
    optimizer: Any
    train: Callable[[Case], list[float]]
    watch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Attributes:
        name: what is tried.
        build: makes the case, always the same for the same global seed; imports its package itself.
        kind: one of KINDS.
        package: the distribution whose version is noted.
        expected: "pass"; "partly", where fewer than nine in ten weight layers are seen; or "fails".
        why: the reason, where something else than "pass" is expected, or else what a pass does not say.
    """

    name: str
    build: Callable[[], Case]
    kind: str = "module"
    package: str = "torch"
    expected: str = "pass"
    why: str = ""

    @property
    def key(self) -> str:
        """Its name, after that of the package."""
        return self.name if self.package == "torch" else f"{self.package}: {self.name}"


def plain(case: Case) -> list[float]:
    """The loop that everybody writes."""
    losses = []
    assert case.loss is not None
    for _ in range(STEPS):
        case.optimizer.zero_grad()
        loss = case.loss(case.model)
        loss.backward()
        case.optimizer.step()
        losses.append(loss.item())
    return losses


def case(
    model: nn.Module,
    loss: Callable[[nn.Module], torch.Tensor] | None,
    train: Callable[[Case], list[float]] = plain,
    **more: Any,
) -> Case:
    """A case with plain SGD, unless told otherwise."""
    optimizer = more.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=0.05)
    return Case(model, loss, optimizer, train, more)


def squares(*shape: int) -> Callable[[nn.Module], torch.Tensor]:
    """The mean square of what a model makes of a normally distributed batch of that shape."""
    return lambda model: first(model(torch.randn(*shape))).square().mean()


def first(output: Any) -> torch.Tensor:
    """The first floating tensor of an output, depth first."""
    found = next(floating(output), None)
    assert found is not None, f"no floating tensor in {type(output).__name__}"
    return found


def floating(output: Any) -> Iterator[torch.Tensor]:
    """The floating and complex tensors of an output, depth first."""
    if isinstance(output, torch.Tensor):
        if output.is_floating_point() or output.is_complex():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from floating(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from floating(value)
    elif is_dataclass(output):
        yield from floating(vars(output))
