"""Weights, their gradients and their updates: all parameters of a model, read together once a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from depthgauge.architecture import own_parameters
from depthgauge.probe.record import UPDATE, WEIGHT, WEIGHT_GRADIENT, Slot
from depthgauge.probe.rows import OBSERVE, OBSERVE_AND_KEEP, OBSERVE_CHANGE
from depthgauge.probe.tensors import Memory, Unreadable, exact, function_modes, is_uninitialized, without_torch_function

Look = tuple[torch.Tensor, int, int, Memory | None]
"""A tensor, its slot, what to do with companion memory, and that memory."""


@runtime_checkable
class Batch(Protocol):
    """A kernel that reads many tensors in one call."""

    def observe_all(self, looks: Sequence[Look], step: int, moment: int) -> list[Look]:
        """Append a row for each tensor that can be read where it lies; returns the others."""


@dataclass(eq=False)
class _Watched:
    """A parameter, its slots, and memory for its values before a step, allocated once; `before` while a step runs.

    `above` are the dictionaries from the model to the module that has it, each with the name and the module that
    follow; `holder` is the dictionary that it is in by its `name`.
    """

    above: Sequence[tuple[Mapping[str, nn.Module | None], str, nn.Module]]
    holder: Mapping[str, nn.Parameter | None]
    name: str
    parameter: nn.Parameter
    weight: int
    gradient: int
    update: int
    memory: Memory | None = None
    form: tuple[torch.Size, torch.dtype, torch.device] | None = None
    before: Memory | None = None


@dataclass(frozen=True)
class StepParameters:
    """The watched parameters that an optimizer's step updates, by id.

    Attributes:
        updated: ids of the parameters in its groups.
        read: ids of the parameters whose weights and gradients are read with it; None for all.
    """

    updated: frozenset[int] | set[int]
    read: frozenset[int] | set[int] | None = None


class ParameterReader:
    """Reads the chosen parameters, in one call of the compiled kernel where they lie in main memory.

    Args:
        observe: records one tensor under a slot, whatever its kind, at a STEP and a MOMENT.
        miss: takes the slot of a tensor that cannot be read, and why.
        batch: reads many at once; `None` where no kernel does.
    """

    def __init__(
        self,
        wanted: frozenset[str],
        new_slot: Callable[[Slot], int],
        observe: Callable[[torch.Tensor, int, int, int], bool],
        miss: Callable[[int, Exception], None],
        batch: Batch | None,
    ) -> None:
        self._weights, self._gradients, self._updates = (kind in wanted for kind in (WEIGHT, WEIGHT_GRADIENT, UPDATE))
        self._new_slot = new_slot
        self._observe = observe
        self._miss = miss
        self._batch = batch
        self._watched: list[_Watched] = []
        self._there: list[_Watched] = []  # those that the step under way began with

    def choose(self, modules: Mapping[str, nn.Module], model: nn.Module) -> None:
        """Watch the parameters that these modules hold, a shared one once, under its first name."""
        chosen: set[int] = set()
        for layer, module in modules.items():
            above = _path(model, layer)
            parameters = own_parameters(module)
            holder = parameters if _is_scripted(module) else module._parameters
            for name, parameter in parameters.items():
                if id(parameter) not in chosen:
                    chosen.add(id(parameter))
                    weight, gradient, update = (
                        self._new_slot(Slot(kind, layer, name)) for kind in (WEIGHT, WEIGHT_GRADIENT, UPDATE)
                    )
                    self._watched.append(_Watched(above, holder, name, parameter, weight, gradient, update))

    def _present(self) -> list[_Watched]:
        """List the watched parameters that the model still has, each with the tensor that bears the name now."""
        present: list[_Watched] = []
        above, held = None, True
        for each in self._watched:
            if each.above is not above:  # parameters of one module share it
                above = each.above
                held = all(place.get(name) is part for place, name, part in above)
            parameter = each.holder.get(each.name)
            if held and parameter is not None:
                each.parameter = parameter
                present.append(each)
            else:
                self._miss(each.weight, Unreadable("taken out of the model within the block"))
        return present

    def ids(self) -> set[int]:
        """Return the ids of all watched parameters."""
        return {id(each.parameter) for each in self._watched}

    def with_gradients(self) -> Iterator[tuple[int, nn.Parameter]]:
        """Slots for gradients, and the parameters that get some."""
        return ((each.gradient, each.parameter) for each in self._watched if each.parameter.requires_grad)

    def read_weights(self, step: int, moment: int) -> None:
        """Record the weights as they are."""
        if self._weights:
            self._read([(each.parameter, each.weight, OBSERVE, None) for each in self._present()], step, moment)

    def read_before(self, step: int, moment: int, selected: StepParameters, *, gradients: bool) -> None:
        """Record weights and gradients, and keep the weights from which updates are computed."""
        looks: list[Look] = []
        gradients = gradients and self._gradients
        with without_torch_function():
            self._there = self._present()
            for each in self._there:
                parameter: torch.Tensor = each.parameter
                if selected.read is not None and id(parameter) not in selected.read:
                    continue
                updates = self._updates and parameter.requires_grad and id(parameter) in selected.updated
                each.before = memory = self._memory(each) if updates else None
                if self._weights:
                    looks.append((parameter, each.weight, OBSERVE if memory is None else OBSERVE_AND_KEEP, memory))
                if gradients and (gradient := parameter.grad) is not None:
                    looks.append((gradient, each.gradient, OBSERVE, None))
        self._read(looks, step, moment)

    def read_after(self, step: int, moment: int, selected: StepParameters, *, gradients: bool) -> None:
        """Record the updates, and gradients that were not there before the step."""
        looks: list[Look] = []
        gradients = gradients and self._gradients
        with without_torch_function():
            for each in self._there:
                parameter = each.parameter
                if selected.read is not None and id(parameter) not in selected.read:
                    continue
                if each.before is not None:
                    looks.append((parameter, each.update, OBSERVE_CHANGE, each.before))
                    each.before = None
                if gradients and (gradient := parameter.grad) is not None:
                    looks.append((gradient, each.gradient, OBSERVE, None))
        self._read(looks, step, moment)

    def _memory(self, each: _Watched) -> Memory | None:
        """Memory for a parameter's values, which the kernel fills where weights are read, too."""
        try:
            form = each.parameter.shape, each.parameter.dtype, each.parameter.device
            if each.memory is None or each.form != form:
                each.memory = None
                each.memory, each.form = Memory(each.parameter), form
            elif not self._weights:
                each.memory.keep(exact(each.parameter))
        except Exception as error:  # noqa: BLE001 # nothing that cannot be read may stop the program
            if not self._weights:  # else the weight itself says why
                self._miss(each.update, error)
            return None
        return each.memory

    def _read(self, looks: list[Look], step: int, moment: int) -> None:
        others = looks
        if self._batch is not None and not function_modes():
            try:
                others = self._batch.observe_all(looks, step, moment)
            except Exception as error:  # noqa: BLE001 # nothing that cannot be read may stop the program
                others = []
                for look in looks:
                    self._miss(look[1], error)
        if others:
            with without_torch_function():
                for look in others:
                    self._read_alone(look, step, moment)

    def _read_alone(self, look: Look, step: int, moment: int) -> None:
        tensor, slot, what, memory = look
        if is_uninitialized(tensor):
            return
        try:
            values: Any = exact(tensor)
            if what == OBSERVE_CHANGE and memory is not None:
                self._observe(memory.change_to(values), slot, step, moment)
                return
            self._observe(values, slot, step, moment)
            if what == OBSERVE_AND_KEEP and memory is not None:
                memory.keep(values)
        except Exception as error:  # noqa: BLE001 # see _read
            self._miss(slot, error)


def _path(model: nn.Module, name: str) -> Sequence[tuple[Mapping[str, nn.Module | None], str, nn.Module]]:
    """The dictionaries on the way to the module of that qualified name; none of a scripted one changes."""
    path, at = [], model
    for part in filter(None, name.split(".")):
        if _is_scripted(at):
            break
        path.append((at._modules, part, inside := at.get_submodule(part)))
        at = inside
    return path


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)
