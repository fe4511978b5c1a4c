"""Passes of one training in a rank: the whole batch on plain torch, its shards alone, its shards under DDP.

Every pass begins from the same weights and the same random states, and leaves the training as it was.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from depthgauge.parallel.group import Group
from depthgauge.parallel.norm import SyncBatchNorm
from depthgauge.parallel.shards import changed, cloned, doubled
from depthgauge.seeding import Purpose, seed_globals
from depthgauge.workload import Training, moved, sentences

_DROPOUTS = (
    functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d, functional.alpha_dropout,
    functional.feature_alpha_dropout,
)  # fmt: skip
_DRAWING: dict[Any, tuple[str, int, object]] = {  # function -> the argument by which it draws nothing, and its place
    **dict.fromkeys(_DROPOUTS, ("training", 2, False)),
    functional.rrelu: ("training", 3, False),
    functional.scaled_dot_product_attention: ("dropout_p", 4, 0.0),
}


@dataclass(frozen=True)
class Held:
    """Things that a pass holds still, to see whether they are the cause.

    Attributes:
        random: dropout draws nothing.
        statistics: batch normalization normalizes by the running statistics, and not by those of the batch.
        synchronized: batch normalization takes the statistics of all ranks.
    """

    random: bool = False
    statistics: bool = False
    synchronized: bool = False


NOTHING = Held()


@dataclass(frozen=True)
class Found:
    """The gradients of one pass.

    Attributes:
        gradients: by parameter; None where there is none.
        buffers: by name, as the pass left them.
        draws: whether it drew random numbers.
        normalizes: whether a batch normalization took the statistics of the batch; None where nobody looked.
    """

    gradients: Mapping[str, Tensor | None]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    draws: bool = False
    normalizes: bool | None = None


class Step(nn.Module):
    """A training's loss of a batch as the module that DDP wraps: the loss sees the raw model."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model = training.model
        if isinstance(training.loss, nn.Module):
            self.loss = training.loss
        self.work = training

    def forward(self, batch: Any) -> Tensor:
        """The loss, a scalar."""
        return self.work.value(batch, self.model)

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by the name that they have in the model."""
        for name, parameter in self.named_parameters():
            yield name.removeprefix("model."), parameter

    def kept(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers likewise."""
        for name, buffer in self.named_buffers():
            yield name.removeprefix("model."), buffer


def whole(
    step: Step, batch: Any, alone: Any, held: Held = NOTHING, *, double: bool = False, factor: float = 1.0
) -> Found:
    """The gradient of a whole batch on plain torch, in this process.

    Args:
        step: the training's.
        batch: the whole.
        alone: a process group of this rank.
        held: what is held still.
        double: in float64.
        factor: the loss is multiplied by it, and the gradient divided.
    """

    def scaled(batch: Any) -> Tensor:
        loss: Tensor = step(batch)
        return factor * loss

    with _prepared(step, held, double) as seen, _unsynchronized(step, alone):
        found = _found(step, _backward(step, step if factor == 1 else scaled, [batch], double), seen.normalizes)
        divided = {name: each if each is None else each / factor for name, each in found.gradients.items()}
        return found if factor == 1 else replace(found, gradients=divided)


def alone(step: Step, pieces: Sequence[Any], held: Held = NOTHING, *, double: bool = False) -> list[Found]:
    """The gradient of each piece, without reduction; all ranks call it at once."""
    made = []
    for piece in pieces:
        with _prepared(step, held, double) as seen:
            draws = _backward(step, step, [piece], double)
            made.append(_found(step, draws, seen.normalizes))
    return made


def accumulated(step: Step, pieces: Sequence[Any], *, double: bool = False) -> Found:
    """The gradient of pieces one after the other, accumulated, without reduction; all ranks call it at once."""
    with _prepared(step, NOTHING, double) as seen:
        return _found(step, _backward(step, step, pieces, double), seen.normalizes)


def reduced(step: Step, pieces: Sequence[Any], *, unused: bool, double: bool = False) -> Found:
    """The gradient that DDP leaves in this rank: of its pieces, accumulated, averaged over the ranks.

    Args:
        step: of this rank.
        pieces: of this rank.
        unused: whether a parameter is used by no piece of a rank.
        double: in float64.
    """
    with _prepared(step, NOTHING, double) as seen:
        wrapped = DistributedDataParallel(step, find_unused_parameters=unused)
        alive = weakref.ref(wrapped)
        try:
            return _found(step, _backward(step, wrapped, pieces, double), seen.normalizes)
        finally:
            del wrapped
            if alive() is not None:
                gc.collect()  # its hooks on the parameters go with it


def _backward(step: Step, run: Callable[[Any], Tensor], pieces: Sequence[Any], double: bool) -> bool:
    """Go back from the mean loss of the pieces; tell whether random numbers were drawn."""
    for _, parameter in step.named():
        parameter.grad = None
    seed_globals(0, Purpose.DROPOUT)
    before = _drawn()
    for number, piece in enumerate(pieces):
        last = number + 1 == len(pieces)
        ddp = isinstance(run, DistributedDataParallel) and not last
        waiting = run.no_sync() if ddp else contextlib.nullcontext()  # type: ignore[attr-defined] # it is DDP's
        with sentences(), waiting:
            mine = changed(piece, cloned)
            loss = run(changed(mine, doubled) if double else mine) / len(pieces)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return _drawn() != before


def _drawn() -> tuple[Any, ...]:
    """The state of the global generators."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if in_use else [])]
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - what a user's code may draw from
    return (*(state.numpy().tobytes() for state in states), random.getstate(), str(numpy))


def _found(step: Step, draws: bool, normalizes: bool | None) -> Found:
    def host(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        return (tensor.to_dense() if tensor.layout is not torch.strided else tensor).to("cpu", copy=True)

    gradients = {
        name: None if parameter.grad is None else host(parameter.grad)
        for name, parameter in step.named()
        if parameter.requires_grad
    }
    return Found(gradients, {name: host(buffer) for name, buffer in step.kept()}, draws, normalizes)


# -- what a pass holds still -------------------------------------------------------------------------------------------


@contextmanager
def _prepared(step: Step, held: Held, double: bool) -> Iterator[_Watched]:
    """Undo all changes after the block; within, hold still what is asked for."""
    with step.work.untouched(), contextlib.ExitStack() as stack:
        if held.synchronized:
            stack.callback(setattr, step, "model", step.model)  # which may be a batch normalization itself
            SyncBatchNorm.convert(step)
        if double:
            with sentences():
                step._apply(doubled)  # type: ignore[no-untyped-call]  # as `double`, and complex numbers, too
        seen = _Watched(held)
        if held != NOTHING:
            stack.enter_context(seen)
            stack.enter_context(_without_dropout(step, held))
        yield seen


class _Watched(TorchFunctionMode):
    """Calls of functions whose result depends on the batch, or on random numbers; held still as asked for."""

    def __init__(self, held: Held) -> None:
        super().__init__()
        self.held = held
        self.normalizes: bool | None = None if held == NOTHING else False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if function is functional.batch_norm:
            call = inspect.signature(function).bind(*args, **kwargs)
            call.apply_defaults()
            self._normalizing(call.arguments)
            return function(*call.args, **call.kwargs)
        if self.held.random and function in _DRAWING:
            args, kwargs = _switched(function, list(args), kwargs)
        return function(*args, **kwargs)

    def _normalizing(self, call: dict[str, Any]) -> None:
        """Change the arguments of a batch normalization."""
        self.normalizes = self.normalizes or call["training"]
        if call["training"] and self.held.statistics:
            call["training"], values = False, call["input"]
            for name, fill in (("running_mean", 0.0), ("running_var", 1.0)):
                if call[name] is None:
                    call[name] = values.new_full((values.shape[1],), fill)


def _switched(function: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    name, place, value = _DRAWING[function]
    if len(args) > place:
        args[place] = value
    else:
        kwargs[name] = value
    return args, kwargs


@contextmanager
def _without_dropout(step: Step, held: Held) -> Iterator[None]:
    """Modules whose dropout is inside a function of many parts."""
    changed_parts = [
        part
        for part in step.modules()
        if held.random and isinstance(part, nn.RNNBase | nn.MultiheadAttention) and part.dropout
    ]
    before = [part.dropout for part in changed_parts]
    try:
        for part in changed_parts:
            part.dropout = 0.0
        yield
    finally:
        for part, value in zip(changed_parts, before, strict=True):
            part.dropout = value


@contextmanager
def _unsynchronized(step: Step, alone: Any) -> Iterator[None]:
    """Layers that share statistics among ranks keep to this one."""
    layers = [part for part in step.modules() if hasattr(part, "process_group")]
    before = [part.process_group for part in layers]
    try:
        for part in layers:
            part.process_group = alone
        yield
    finally:
        for part, value in zip(layers, before, strict=True):
            part.process_group = value


def synchronize(step: Step) -> None:
    """Give every rank the weights and buffers of rank 0."""
    with torch.no_grad():
        for _, tensor in (*step.named(), *step.kept()):
            distributed.broadcast(tensor.detach(), 0)


def placed(training: Training, group: Group) -> Step:
    """The step of a training on the device of a rank."""
    step = Step(training)
    return step.to(group.device) if group.device.type != "cpu" else step


def materialized(step: Step, batch: Any) -> None:
    """Give lazy layers their sizes."""
    if any(nn.parameter.is_lazy(each) for each in step.parameters()):
        with step.work.untouched(), torch.no_grad(), sentences():
            step(changed(batch, cloned))


def on(batch: Any, group: Group) -> Any:
    """A batch on the device of a rank."""
    return batch if group.device.type == "cpu" else moved(batch, group.device)
