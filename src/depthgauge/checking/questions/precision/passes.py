"""One pass of a training under a number format: the user's own, float32 in its place, or 16 bits around it."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from depthgauge import nested
from depthgauge.checking.beginning import REFERENCE
from depthgauge.checking.questions.precision.operators import HALVES
from depthgauge.checking.steps import losses, step
from depthgauge.workload import Training


@dataclass(frozen=True, eq=False)
class Pass:
    """A loss, and its gradients by parameter.

    Attributes:
        loss: a number, possibly not finite.
        gradients: dense, each in the format that it came in; parameters without one are left out.
    """

    loss: float
    gradients: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Tell whether loss and gradients are finite."""
        return math.isfinite(self.loss) and all(bool(each.isfinite().all()) for each in self.gradients.values())

    def error(self, exact: Pass) -> float:
        """The root mean square of the gradients' difference over that of the exact ones; NaN where these are 0."""
        off = size = 0.0
        for name, right in exact.gradients.items():
            wide = nested.real(right).double()
            here = self.gradients.get(name)
            off += (wide if here is None else nested.real(here).double() - wide).square().sum().item()
            size += wide.square().sum().item()
        return math.sqrt(off / size) if size else math.nan


def run(training: Training, batch: Any, around: AbstractContextManager[Any] | None = None) -> Pass:
    """One pass at the weights as they are, inside of `training.untouched()`."""
    for parameter in training.model.parameters():
        parameter.grad = None
    with around or nullcontext():
        value = training.value(batch)
    value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    named = training.model.named_parameters()
    return Pass(value.item(), {name: _dense(each.grad) for name, each in named if each.grad is not None})


def _dense(gradient: Tensor) -> Tensor:
    return (gradient.to_dense() if gradient.layout is not torch.strided else gradient).detach().clone()


def in_float32(training: Training, batch: Any) -> Pass:
    """The same pass with every 16-bit number in float32: weights, inputs, casts and autocast regions."""
    with training.untouched():
        widen(training.modules)
        return run(training, widened(batch), wide())


def fall_in_float32(training: Training, first: Sequence[Any], steps: int, going: Callable[[], bool]) -> float:
    """Measure how far so many of the user's own steps bring the loss down with float32 weights.

    NaN where there is not time for all of them, or the loss is not finite.
    """
    batches = [widened(batch) for batch in first]
    reference = batches[:REFERENCE]
    with training.untouched(), wide():
        widen(training.modules)
        before = sum(losses(training, reference))
        for place in range(steps):
            if not going() or not math.isfinite(step(training, batches[place % len(batches)])):
                return math.nan
        return (before - sum(losses(training, reference))) / len(reference)


def widen(modules: list[nn.Module]) -> None:
    """Turn 16-bit weights and buffers into float32."""
    for module in modules:
        if any(each.dtype in HALVES for each in (*module.parameters(), *module.buffers())):
            module.float()


def widened(batch: Any) -> Any:
    """The batch with its 16-bit numbers in float32."""
    return nested.mapped(batch, lambda each: each.float() if each.dtype in HALVES else each)


@contextmanager
def wide() -> Iterator[None]:
    """Turn off autocast, and every cast to 16 bits, within the block."""
    with _autocast_off(), _Wide():
        yield


class _Wide(TorchFunctionMode):
    """Every 16-bit format that is asked for becomes float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.half, Tensor.bfloat16):
            return args[0].float()
        kwargs = {name: _wider(each) for name, each in (kwargs or {}).items()}
        return func(*(_wider(each) for each in args), **kwargs)


def _wider(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in HALVES else value


@contextmanager
def _autocast_off() -> Iterator[None]:
    """Make every autocast block that is entered one that is not enabled."""
    kind: Any = torch.amp.autocast_mode.autocast
    enter: Callable[[Any], Any] = kind.__enter__

    def entered(block: Any) -> Any:
        enabled, block._enabled = block._enabled, False
        try:
            return enter(block)
        finally:
            block._enabled = enabled

    kind.__enter__ = entered
    try:
        yield
    finally:
        kind.__enter__ = enter


def device_of(training: Training) -> str:
    """The kind of device that the first parameter lies on."""
    return next((each.device.type for each in training.model.parameters()), "cpu")


def narrow(training: Training, fmt: str) -> AbstractContextManager[Any]:
    """An autocast region of that format for the training's device."""
    return torch.autocast(device_of(training), getattr(torch, fmt))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what passes warn of: a probe's unread tensors, gradients read off a leaf, autocast's hints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def eager() -> AbstractContextManager[Any]:
    """Run what is compiled without its compilation, whose operators cannot be looked at, within the block."""
    if "torch._dynamo" not in sys.modules:  # which takes seconds to be imported, and nothing is compiled without it
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
