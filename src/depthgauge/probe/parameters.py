"""Weights, their gradients and their updates: all parameters of a model, read together once a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from depthgauge.probe.reading import is_plain
from depthgauge.probe.record import UPDATE, WEIGHT, WEIGHT_GRADIENT, Slot

# Companion memory: nothing; a copy to be made of the tensor; the copy that the tensor's change is taken from.
OBSERVE, OBSERVE_AND_KEEP, OBSERVE_CHANGE = range(3)

Job = tuple[int, int, int, int, int, int]
"""Address, numbers, bytes of each, what to do with companion memory, its address, slot."""


@runtime_checkable
class Batch(Protocol):
    """A kernel that reads many tensors in one call."""

    def observe_all(self, jobs: list[Job], step: int) -> None:
        """Append a row for each job."""


@dataclass(eq=False)
class _Watched:
    """A parameter, its slots, and its values before the optimizer's step: memory that is allocated once."""

    parameter: nn.Parameter
    weight: int
    gradient: int
    update: int
    before: torch.Tensor | None = None


class ParameterReader:
    """Reads the chosen parameters, in one call of the compiled kernel where they lie in main memory.

    Args:
        observe: records one tensor under a slot at the current step, whatever its kind.
        batch: reads many at once; `None` where no kernel does.
    """

    def __init__(
        self,
        wanted: frozenset[str],
        new_slot: Callable[[Slot], int],
        observe: Callable[[torch.Tensor, int], None],
        batch: Batch | None,
    ) -> None:
        self._wanted = wanted
        self._new_slot = new_slot
        self._observe = observe
        self._batch = batch
        self._watched: list[_Watched] = []

    def choose(self, modules: Mapping[str, nn.Module]) -> None:
        """Watch the parameters that these modules hold, a shared one once, under its first name."""
        chosen: dict[int, nn.Parameter] = {}
        for layer, module in modules.items():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) not in chosen:
                    chosen[id(parameter)] = parameter
                    weight, gradient, update = (
                        self._new_slot(Slot(kind, layer, name)) for kind in (WEIGHT, WEIGHT_GRADIENT, UPDATE)
                    )
                    self._watched.append(_Watched(parameter, weight, gradient, update))

    def with_gradients(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Slots for gradients, and the parameters that get some."""
        return ((each.gradient, each.parameter) for each in self._watched if each.parameter.requires_grad)

    def read_weights(self, step: int) -> None:
        """Record the weights as they are."""
        if WEIGHT in self._wanted:
            self._read([(each.parameter, each.weight, OBSERVE, None) for each in self._watched], step)

    def read_before(self, step: int, *, gradients: bool) -> None:
        """Record weights and gradients, and keep what updates are taken from."""
        tensors: list[tuple[torch.Tensor, int, int, torch.Tensor | None]] = []
        for each in self._watched:
            parameter = each.parameter
            if UPDATE in self._wanted and parameter.requires_grad:
                if each.before is None or each.before.shape != parameter.shape:
                    each.before = torch.empty_like(parameter.detach())
                if WEIGHT in self._wanted:
                    tensors.append((parameter, each.weight, OBSERVE_AND_KEEP, each.before))
                else:
                    each.before.copy_(parameter.detach())
            elif WEIGHT in self._wanted:
                tensors.append((parameter, each.weight, OBSERVE, None))
            if gradients and WEIGHT_GRADIENT in self._wanted and (gradient := parameter.grad) is not None:
                tensors.append((gradient, each.gradient, OBSERVE, None))
        self._read(tensors, step)

    def read_after(self, step: int, *, gradients: bool) -> None:
        """Record the updates, and gradients that were not there before the step."""
        tensors: list[tuple[torch.Tensor, int, int, torch.Tensor | None]] = []
        for each in self._watched:
            if each.before is not None and UPDATE in self._wanted:
                tensors.append((each.parameter, each.update, OBSERVE_CHANGE, each.before))
            if gradients and WEIGHT_GRADIENT in self._wanted and (gradient := each.parameter.grad) is not None:
                tensors.append((gradient, each.gradient, OBSERVE, None))
        self._read(tensors, step)

    def _read(self, tensors: list[tuple[torch.Tensor, int, int, torch.Tensor | None]], step: int) -> None:
        jobs: list[Job] = []
        for tensor, slot, what, companion in tensors:
            dtype = tensor.dtype
            if (
                (dtype is torch.float32 or dtype is torch.float64)
                and self._batch is not None
                and tensor.is_cpu
                and is_plain(tensor)
            ):
                width = 4 if dtype is torch.float32 else 8
                beside = 0 if companion is None else companion.data_ptr()
                jobs.append((tensor.data_ptr(), tensor.numel(), width, what, beside, slot))
            elif what == OBSERVE_CHANGE and companion is not None:
                self._observe(tensor.detach() - companion, slot)
            else:
                self._observe(tensor, slot)
                if companion is not None:
                    companion.copy_(tensor.detach())
        if jobs and self._batch is not None:
            self._batch.observe_all(jobs, step)
