"""Passes over several batches: which parameters get a gradient, and which modules are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.checking.questions.signal.units import Units
from depthgauge.precision.passage import compiled
from depthgauge.workload import Training


@dataclass(eq=False)
class Passed:
    """Observations of passes, of all batches together.

    Attributes:
        batches: how many.
        given: names of parameters that got a gradient, zero or not.
        alive: of those whose gradient was not all zero.
        called: by module's name, in how many batches it was called.
        cut: modules that were called, and whose output no gradient can pass.
        infinite: parameters with a gradient that is not finite.
        held: names of unregistered tensors that got a gradient.
        units: of the activations, all batches together.
    """

    batches: int = 0
    given: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
    called: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    infinite: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    units: Units = field(default_factory=Units)


def go(
    training: Training, batches: Sequence[Any], passed: Passed, *, others: dict[str, Tensor], units: bool = True
) -> None:
    """Make a pass over each batch and note what it shows; gradients stay behind.

    Args:
        training: within `untouched()`.
        batches: of it.
        passed: what is known from passes before.
        others: unregistered tensors; within `gradients_kept`.
        units: whether activations are looked at.
    """
    named = dict(training.model.named_parameters())
    for batch in batches:
        clear(training.model, others.values())
        with calls(training.model, passed):
            value = training.value(batch)
        if units:
            passed.units.note(value, named)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        passed.batches += 1
        for name, each in named.items():
            if each.grad is not None:
                _note(name, each.grad, passed)
        passed.held |= {name for name, each in others.items() if each.grad is not None}


def _note(name: str, gradient: Tensor, passed: Passed) -> None:
    values = gradient.detach()
    values = values.coalesce().values() if values.is_sparse else values
    passed.given.add(name)
    if values.numel() and bool((values != 0).any()):
        passed.alive.add(name)
        if not bool(values.isfinite().all()):
            passed.infinite.add(name)


def clear(model: nn.Module, others: Any = ()) -> None:
    """Forget gradients of the model's parameters and of other tensors."""
    for each in (*model.parameters(), *others):
        each.grad = None


@contextmanager
def calls(model: nn.Module, passed: Passed) -> Iterator[None]:
    """Note which modules are called in the block, and whether a gradient can pass their output."""
    seen: dict[str, bool] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            found = [each for _, each in nested.tensors(output)]
            seen[name] = seen.get(name, False) or not found or any(each.requires_grad for each in found)

        return hook

    handles = [] if any(map(compiled, model.modules())) else [
        module.register_forward_hook(noting(name))
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, open_ in seen.items():
            passed.called[name] = passed.called.get(name, 0) + 1
            if not open_:
                passed.cut.add(name)


def opened(model: nn.Module, generator: torch.Generator) -> None:
    """Fill parameters that are all zero with small numbers, so that a gradient passes what begins closed."""
    with torch.no_grad():
        for each in model.parameters():
            if each.is_floating_point() and each.numel() and not bool(each.any()):
                each.copy_(0.01 * torch.randn(each.shape, generator=generator).to(each))
