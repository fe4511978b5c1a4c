"""A probe's session: each tensor that passes is read under its layer, step, call and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from depthgauge.probe import hooks
from depthgauge.probe.hooks import pauses
from depthgauge.probe.kernel import Kernel
from depthgauge.probe.layers import Call, Layer, is_inside
from depthgauge.probe.optimizers import parameters_in
from depthgauge.probe.outputs import HandedOn, tensors_of
from depthgauge.probe.parameters import Batch, ParameterReader
from depthgauge.probe.reading import kernel_beside, kernel_for
from depthgauge.probe.record import (
    ACTIVATION,
    ACTIVATION_GRADIENT,
    WEIGHT_GRADIENT,
    Record,
    Slot,
)
from depthgauge.probe.rows import ATTEMPT_BITS, EVALUATION, PASS_BITS
from depthgauge.probe.steps import Attempt, Steps
from depthgauge.probe.tensors import function_modes, is_uninitialized, reason_of, without_torch_function
from depthgauge.probe.unread import NEVER_RAN
from depthgauge.probe.updates import Members, Updates

_is_traced = torch.compiler.is_dynamo_compiling
_backward_pass = torch._C._current_graph_task_id
"""Autograd's number of the backward pass that is running; -1 outside of one."""


class Session:
    """The state of one `track` block.

    Args:
        module: the model.
        members: the optimizers that make up a step, each with those inside of it; None for steps that are calls.
        wanted: directions.
        every: steps that are recorded.
        scaler: a GradScaler, a number, or None.
        on_step: called after a recorded step.
        overlap: whether large activations and gradients may be read beside the step.
    """

    def __init__(  # noqa: PLR0917 # one caller
        self,
        module: nn.Module,
        members: Members | None,
        wanted: frozenset[str],
        every: int,
        scaler: Any,
        on_step: Callable[[Record], None] | None,
        overlap: bool = False,
    ) -> None:
        self.record = Record()
        self._module: nn.Module | None = module
        self._members = members
        self._wanted = wanted
        self._every = every
        self.on_step = on_step
        self._open = True
        self._turn = 0  # steps that have begun
        self._active = members is not None
        self._layers: dict[int, Layer] = {}
        self._forward = ACTIVATION in wanted
        self._backward = ACTIVATION_GRADIENT in wanted
        self._kernels: dict[str, Kernel] = {}
        self._miss = partial(_miss, self.record)
        self._beside = kernel_beside(self._miss) if overlap else None
        self._host = self._kernel(torch.empty(0, device="cpu"), self._beside)
        batch = self._host if isinstance(self._host, Batch) else None
        self._parameters = ParameterReader(wanted, self.slot, self.observe, self._miss, batch)
        updated = None
        if members is not None:
            ids = set().union(*(parameters_in(each) for member in members for each in member))
            updated = [each for each in module.parameters() if id(each) in ids]
        self._steps = Steps(self.record, updated, scaler, self._on_skip)
        self._known: set[int] = set()
        self._present: set[int] = set()  # modules of the model when the block began
        self._sees_backward = True
        self._in_mode = False  # whether the backward pass runs inside of a TorchFunctionMode
        self._updates = Updates(self.record, members or (), self._parameters, self._steps, self)
        self._handed_on: HandedOn | None = None
        self._accumulated: dict[tuple[int, int], int] = {}
        self._uninitialized: list[tuple[int, nn.Parameter]] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._undo: ExitStack | None = None

    def attach(self, chosen: Mapping[str, nn.Module], fused: Mapping[str, nn.Module], undo: ExitStack) -> None:
        """Register all hooks; `undo` removes them.

        Args:
            chosen: the modules to look at, by name.
            fused: blocks that torch.compile has compiled, whose insides no hook sees.
            undo: the stack of actions at the block's end.
        """
        module = self._module
        assert module is not None
        self._undo = undo
        if self._beside is not None:
            undo.callback(self._beside.close)
        self._known = set(map(id, chosen.values()))
        self._present = set(map(id, module.modules()))
        # A backward pass begins at what the model returned, which is watched, or at nobody's business.
        self._sees_backward = self._members is None or (self._backward and "" in chosen)
        if self._forward or self._backward:
            for name, part in chosen.items():
                # A plain Sequential returns what its last module returned.
                if type(part) is not nn.Sequential and not any(is_inside(name, block) for block in fused):
                    self._layers[id(part)] = Layer(name, part, root=part is module)
            for name in fused:
                self.record._miss(name, "inside of a block that torch.compile has fused", 0)
        if any(layer.container for layer in self._layers.values()):
            self._handed_on = HandedOn()
        self._parameters.choose(chosen, module)
        if self._members is not None:
            if self._layers:
                self._layers.setdefault(id(module), Layer("", module, root=True, silent=True))
            else:
                hooks.watch_first(self._steps.parameters, self._on_parameter, undo)
            self._updates.attach(undo)
        if self._members is None and WEIGHT_GRADIENT in self._wanted:
            self._uninitialized = list(self._parameters.with_gradients())
            self._watch_gradients()
        if self._layers or self._members is None:  # at last, as another thread may run a module at once
            hooks.on_every_module(self._on_module, self._on_call if self._members is None else None, undo)

    def finish(self) -> None:
        """The block has run to its end, which ends the last step, too, if gradients wait for the optimizer."""
        if self._members is not None and self._steps.waits:
            self.record._skipped.add(self._steps.number)
            self._tell()
        elif self._members is None:
            self._tell()
        if self.saw_calls:
            for layer in self._layers.values():
                if layer.holds_weights and not layer.ran and not layer.silent:
                    self.record._miss(layer.name, NEVER_RAN, 0)
            for name, part in self._module.named_modules() if self._module is not None else ():
                if id(part) not in self._present and Layer(name, part, root=False).holds_weights:
                    self.record._miss(name, "joined the model inside of the block", 0)

    @property
    def saw_calls(self) -> bool:
        """Tell whether any watched module has run; true if none is watched."""
        seen = [layer.ran for layer in self._layers.values() if not layer.silent]
        return any(seen) or not seen

    def close(self) -> None:
        """Stop recording; hooks on a graph that outlives the block do nothing from here on, and hold no memory."""
        self._open = self._active = False
        self._drop_handles()
        # Another thread may be within a hook just now: it goes on with the state of a block that watches nothing.
        vars(self).update(vars(Session(nn.Module(), None, frozenset(), 1, None, None)), _open=False, _module=None)

    def slot(self, slot: Slot) -> int:
        """The number of a new slot."""
        self.record._slots.append(slot)
        return len(self.record._slots) - 1

    def observe(self, tensor: torch.Tensor, slot: int, step: int, moment: int) -> bool:
        """Record a tensor of any kind; False if it cannot be read, which is counted."""
        try:
            if function_modes():
                with without_torch_function():
                    self._kernel(tensor).observe(tensor, slot, step, moment)
            else:
                (self._host if tensor.is_cpu else self._kernel(tensor)).observe(tensor, slot, step, moment)
        except Exception as error:  # noqa: BLE001 # nothing that cannot be read may stop the program
            self._miss(slot, error)
            return False
        return True

    def _kernel(self, tensor: torch.Tensor, kernel: Kernel | None = None) -> Kernel:
        if (name := str(tensor.device)) not in self._kernels:
            self._kernels[name] = kernel or kernel_for(name)
            self.record._kernels.append(self._kernels[name])
        return self._kernels[name]

    # Steps.

    def stop(self) -> None:
        """Record no step from the next one on."""
        self._every = 1 << ATTEMPT_BITS  # beyond the last

    def _tell(self) -> None:
        if self._active and self.on_step:
            self.on_step(self.record)

    def next_step(self) -> None:
        """End the step."""
        self.record._ended = self._steps.number + 1
        self._tell()
        self._steps.begin(self._steps.number + 1)
        self._active = self._steps.number % self._every == 0
        self._turn += 1
        if self._handed_on:
            self._handed_on.clear()
        self._accumulated.clear()
        self._updates.calls = 0
        self._drop_handles()
        if self._beside is not None:
            self._beside.end_step()

    def _on_skip(self, late: Sequence[Attempt] | None) -> None:
        """A step has been skipped; these forward passes belong to the next one, or None has run of it."""
        if late is None:
            self.next_step()
            return
        self.record._unfinished = late[0].word
        try:
            self._tell()
        finally:
            self.record._unfinished = None
        self._active = self._steps.number % self._every == 0

    def _drop_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_call(self, module: nn.Module, _arguments: Any) -> None:
        """Before a module runs, without an optimizer: a call of the model, or the first of any, begins a step."""
        if _is_traced() or (pauses and hooks.is_paused()):
            return
        first = self._steps.number < 0 and id(module) in self._known
        if not (first or module is self._module) or _backward_pass() >= 0:
            return
        self.next_step()
        if self._active:
            self._parameters.read_weights(self._steps.attempt.word, self.mode())

    @property
    def active(self) -> bool:
        """Tell whether this step is recorded."""
        return self._active

    def mode(self) -> int:
        """MOMENT of the model's mode."""
        return 0 if getattr(self._module, "training", True) else EVALUATION

    # Modules and gradients.

    def _on_module(self, module: nn.Module, _arguments: Any, output: Any) -> None:
        """Record a module's outputs after it has run."""
        if _is_traced() or (pauses and hooks.is_paused()):
            return
        layer = self._layers.get(id(module))
        if layer is None:
            return
        layer.ran = True
        task = _backward_pass()
        if task < 0 and (layer.root or self._steps.undecided):
            self._on_forward(layer, output)
        if layer.silent or not self._active:
            return
        if layer.step != self._turn:
            layer.begin(self._turn, forget=self._members is not None)
        try:
            mode = module.training
            call = (self._steps.attempt, layer.count(mode)) if task < 0 else self._again(layer, mode, task)
            if call is None:
                return
            if type(output) is torch.Tensor and not function_modes():
                self._on_tensor(layer, call, None, output, task)
            else:
                self._on_structure(layer, call, output, task)
        except Exception as error:  # noqa: BLE001 # nothing that cannot be read may stop the program
            self.record._miss(layer.name, reason_of(error))
        if self._uninitialized:
            self._watch_gradients()

    def _on_forward(self, layer: Layer, output: Any) -> None:
        """A forward pass that may be the first after a backward pass, or has come to its end."""
        if self._steps.undecided and self._updates.stepping is None:
            self._steps.forward()
        if layer.root and not (self._active and self._sees_backward):
            self._watch_backward(output)

    def _again(self, layer: Layer, training: bool, task: int) -> Call | None:
        """Find the call that a checkpoint computes again."""
        call = layer.repeated_call(training)
        if call is not None:
            self._steps.pass_of(call[0], task)
        return call

    def _on_structure(self, layer: Layer, call: Call, output: Any, task: int) -> None:
        with without_torch_function():
            for place, tensor in tensors_of(output):
                try:
                    self._on_tensor(layer, call, place, tensor, task)
                except Exception as error:  # noqa: BLE001 # see _on_module
                    self.record._miss(layer.name, reason_of(error))

    def _on_tensor(self, layer: Layer, call: Call, place: str | None, tensor: torch.Tensor, task: int) -> None:
        if self._handed_on is not None and self._handed_on.has(tensor, by_container=layer.container):
            return
        slots = layer.whole if place is None else layer.slots.get(place)
        if slots is None:
            slots = self._new_slots(layer, place)
        attempt, moment = call
        if self._forward and task < 0:
            (self._host if tensor.is_cpu else self._kernel(tensor)).observe(tensor, slots[0], attempt.word, moment)
        if not self._backward:
            return
        if not tensor.requires_grad:
            # Perhaps the first run of a reentrant checkpoint, which is computed again with gradients.
            if task < 0 and not (layer.waiting and layer.waiting[-1] is call):
                layer.waiting.append(call)
        else:
            read = partial(self._on_gradient, slots[1], attempt, moment, tensor.output_nr, task)
            if (node := tensor.grad_fn) is None:
                register: Any = tensor.register_hook
                self._handles.append(register(hooks.Hook(lambda gradient: read((gradient,)))))
            else:
                # Not a full backward hook of the module, which forbids in-place changes of its output, and not a
                # tensor hook, which costs twice as much: the node that made this value gets the value's gradient,
                # whatever is done in place to the tensor later.
                node.register_prehook(read)

    def _new_slots(self, layer: Layer, place: str | None) -> tuple[int, int]:
        self.record._layer_index.setdefault(layer.name, len(self.record._layer_index))
        slots = (
            self.slot(Slot(ACTIVATION, layer.name, output=place, may_mask=layer.container or not layer.holds_weights)),
            self.slot(Slot(ACTIVATION_GRADIENT, layer.name, output=place)),
        )
        layer.slots[place] = slots
        layer.whole = layer.slots.get(None)
        return slots

    def _on_gradient(  # noqa: PLR0917 # what a node calls takes no keywords
        self, slot: int, attempt: Attempt, moment: int, place: int, outer: int, gradients: Sequence[torch.Tensor | None]
    ) -> None:
        gradient = gradients[place]
        if gradient is None or not self._open:
            return
        number = attempt.passes.get(_backward_pass())
        if number is None:
            number = self._steps.pass_of(attempt, _backward_pass(), outer)
            self._in_mode = function_modes() > 0
        moment |= number << PASS_BITS
        if self._in_mode:
            self.observe(gradient, slot, attempt.word, moment)
            return
        try:  # as `observe`, without the call
            (self._host if gradient.is_cpu else self._kernel(gradient)).observe(gradient, slot, attempt.word, moment)
        except Exception as error:  # noqa: BLE001 # nothing that cannot be read may stop the program
            self._miss(slot, error)

    def _watch_backward(self, output: Any) -> None:
        """Notice a backward pass by the model's output, also in steps that are not recorded."""
        try:
            with without_torch_function():
                for _, tensor in tensors_of(output):
                    if (node := tensor.grad_fn) is not None:
                        node.register_prehook(partial(self._on_backward, self._steps.attempt))
        except Exception as error:  # noqa: BLE001 # an output may be anything
            self.record._miss("", reason_of(error))

    def _on_backward(self, attempt: Attempt, _gradients: Any) -> None:
        if self._open:
            self._steps.pass_of(attempt, _backward_pass())

    def _on_parameter(self, _gradient: torch.Tensor) -> None:
        """Notice a backward pass where no module is watched."""
        if self._open and (task := _backward_pass()) not in self._steps.attempt.passes:
            if self._steps.undecided and self._updates.stepping is None:
                self._steps.forward()
            self._steps.pass_of(self._steps.attempt, task)

    # Weight gradients without an optimizer.

    def _watch_gradients(self) -> None:
        """Watch parameters; those of lazy layers once they exist."""
        waiting, undo = [], self._undo
        for slot, parameter in self._uninitialized:
            if is_uninitialized(parameter):
                waiting.append((slot, parameter))
            elif undo is not None:
                hooks.watch_gradient(parameter, partial(self._on_weight_gradient, slot), undo)
        self._uninitialized = waiting

    def _on_weight_gradient(self, slot: int, parameter: torch.Tensor) -> None:
        if self._active and parameter.grad is not None:
            attempt = self._steps.attempt
            number = self._steps.pass_of(attempt, _backward_pass())
            times = self._accumulated.get((slot, number), 0)
            self._accumulated[slot, number] = times + 1
            self.observe(parameter.grad, slot, attempt.word, self.mode() | times | number << PASS_BITS)


def _miss(record: Record, slot: int, error: Exception) -> None:
    record._miss(record._slots[slot].layer, reason_of(error))
