"""Where a probe looks: hooks on modules, on the tensors they return, and on the optimizer."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from depthgauge.probe.parameters import Batch, ParameterReader
from depthgauge.probe.reading import kernel_for, readable
from depthgauge.probe.record import (
    ACTIVATION,
    ACTIVATION_GRADIENT,
    DIRECTIONS,
    UPDATE,
    WEIGHT_GRADIENT,
    Kernel,
    Record,
    Slot,
)

Layers = str | type[nn.Module] | Iterable[str | type[nn.Module]]


@contextmanager
def track(
    module: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    directions: Iterable[str] | None = None,
    layers: Layers | None = None,
    every: int = 1,
    on_step: Callable[[Record], None] | None = None,
) -> Iterator[Record]:
    """Record statistics of what passes through a module while the block runs, and change nothing that it computes.

    With an optimizer, step k is all that happens up to the end of its k-th `step()`, gradient accumulation included;
    weights and their gradients are read as `step()` finds them (accumulated, all-reduced, clipped and unscaled by
    whatever came before), and updates are the differences it made, as stored. Without one, step k begins with the
    k-th call of the module; weights are read there, weight gradients when a backward pass has added to them.

    Args:
        module: the model; its training loop stays as it is.
        optimizer: the optimizer whose steps are counted; needed for updates.
        directions: which of `activation`, `activation_gradient`, `weight`, `weight_gradient`, `update`; by default
            all of them, updates only with an optimizer.
        layers: names, patterns (`"encoder.*.attention"`) or types of the modules to look at; by default all. A
            parameter belongs to the module that holds it.
        every: record steps 0, every, 2 every, ...
        on_step: called with the record after each recorded step, for instance to write it out and `clear()` it.
            As a decorator, `@track(model, on_step=...)` records each run of the function.

    Yields:
        The `Record`, which can be read inside the block and after it.

    Raises:
        ValueError: a direction or layer that does not exist, updates without an optimizer, `every` below 1, or
            activations of a module that `torch.compile` has already compiled.
    """
    wanted = _directions(directions, optimizer)
    if every < 1:
        raise ValueError(f"every={every} records no step; it takes a whole number from 1")
    session = _Session(module, optimizer, wanted, every, on_step)
    chosen = _chosen(module, layers)
    with ExitStack() as undo:
        undo.callback(session.close)
        session.attach(chosen, undo)
        yield session.record
        session.finish()


def _directions(directions: Iterable[str] | None, optimizer: torch.optim.Optimizer | None) -> frozenset[str]:
    if directions is None:
        return frozenset(DIRECTIONS) - (set() if optimizer else {UPDATE})
    wanted = frozenset([directions] if isinstance(directions, str) else directions)
    for name in wanted - set(DIRECTIONS):
        raise ValueError(f"no direction is called {name!r}; there are {', '.join(DIRECTIONS)}")
    if UPDATE in wanted and optimizer is None:
        raise ValueError("updates are seen at the optimizer's step: pass optimizer=")
    return wanted


def _chosen(module: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """The modules to look at by name; each module once, under its first name."""
    every = dict(module.named_modules())
    if layers is None:
        return every
    chosen: set[str] = set()
    for selector in [layers] if isinstance(layers, str | type) else layers:
        if isinstance(selector, str):
            found = {name for name in every if fnmatch.fnmatchcase(name, selector)}
        else:
            found = {name for name, part in every.items() if isinstance(part, selector)}
        if not found:
            near = difflib.get_close_matches(str(selector), every, n=3, cutoff=0.0)
            raise ValueError(f"no layer matches {selector!r}; the nearest names are {', '.join(map(repr, near))}")
        chosen |= found
    return {name: part for name, part in every.items() if name in chosen}


class _Layer:
    """A module under observation: its calls in this step, and the slots of its outputs by their place."""

    __slots__ = ("calls", "container", "name", "recomputed", "slots")

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.calls = 0
        self.recomputed = 0
        self.container = any(True for _ in module.children())
        self.slots: dict[str | None, tuple[int, int]] = {}


class _Session:
    """The state of one `track` block."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        wanted: frozenset[str],
        every: int,
        on_step: Callable[[Record], None] | None,
    ) -> None:
        self.record = Record()
        self._module = module
        self._optimizer = optimizer
        self._wanted = wanted
        self._every = every
        self._on_step = on_step
        self._step = 0 if optimizer else -1
        self._active = optimizer is not None
        self._layers: list[_Layer] = []
        self._forward = ACTIVATION in wanted
        self._backward = ACTIVATION_GRADIENT in wanted
        self._kernels: dict[str, Kernel] = {}
        self._host = self._kernel("cpu")
        batch = self._host if isinstance(self._host, Batch) else None
        self._parameters = ParameterReader(wanted, self.slot, self.observe, batch)
        # Outputs of submodules in this step, by id: a container that hands one on has no activation of its own.
        self._handed_on: dict[int, tuple[weakref.ref[torch.Tensor], int]] | None = None
        self._open: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, chosen: Mapping[str, nn.Module], undo: ExitStack) -> None:
        """Register all hooks; `undo` removes them."""
        if self._forward or self._backward:
            _refuse_compiled(self._module)
            for name, part in chosen.items():
                if type(part) is nn.Sequential:
                    continue  # returns what its last module returned
                layer = _Layer(name, part)
                self._layers.append(layer)
                undo.callback(part.register_forward_hook(partial(self._on_output, layer)).remove)
            if any(layer.container for layer in self._layers):
                self._handed_on = {}
        self._parameters.choose(chosen)
        if self._optimizer is not None:
            undo.callback(self._optimizer.register_step_pre_hook(self._before_update).remove)
            undo.callback(self._optimizer.register_step_post_hook(self._after_update).remove)
        else:
            undo.callback(self._module.register_forward_pre_hook(self._on_call).remove)
            if WEIGHT_GRADIENT in self._wanted:
                for slot, parameter in self._parameters.with_gradients():
                    before = parameter._post_accumulate_grad_hooks
                    register: Any = parameter.register_post_accumulate_grad_hook
                    handle = register(partial(self._on_weight_gradient, slot))
                    undo.callback(_remove, parameter, handle, before)

    def finish(self) -> None:
        """The block has run to its end; without an optimizer, that ends the last step, too."""
        if self._optimizer is None and self._active and self._on_step:
            self._on_step(self.record)
        # A function that was compiled earlier runs no hooks that came later.
        if self._layers and not any(layer.slots or layer.calls for layer in self._layers):
            warnings.warn(
                "no call of the tracked modules was seen; if torch.compile was applied before probe.track, "
                "apply it inside of the block",
                stacklevel=4,
            )

    def close(self) -> None:
        """Stop recording; hooks on a graph that outlives the block do nothing from here on."""
        self._active = False
        self._drop_handles()

    def slot(self, slot: Slot) -> int:
        """The number of a new slot."""
        self.record._slots.append(slot)
        return len(self.record._slots) - 1

    def observe(self, tensor: torch.Tensor, slot: int, call: int = 0, step: int | None = None) -> None:
        """Record a tensor of any floating or complex kind; others leave no row."""
        step = self._step if step is None else step
        dtype = tensor.dtype
        if (
            dtype is torch.float32
            and tensor.is_cpu
            and tensor.layout is torch.strided
            and tensor.is_contiguous()
            and not tensor.is_neg()
        ):  # is_plain without the call, which is a tenth of what a small tensor costs
            self._host.observe(tensor, slot, step, call)
            return
        if not (dtype.is_floating_point or dtype.is_complex):
            return
        kernel = self._kernel(str(tensor.device))
        with torch.no_grad():
            kernel.observe(readable(tensor, kernel.native), slot, step, call)

    def _kernel(self, device: str) -> Kernel:
        if device not in self._kernels:
            self._kernels[device] = kernel_for(device)
            self.record._kernels.append(self._kernels[device])
        return self._kernels[device]

    def _next_step(self, step: int) -> None:
        if self._active and self._on_step:
            self._on_step(self.record)
        self._step = step
        self._active = step % self._every == 0
        for layer in self._layers:
            layer.calls = layer.recomputed = 0
        if self._handed_on:
            self._handed_on.clear()
        self._drop_handles()

    def _drop_handles(self) -> None:
        for handle in self._open:
            handle.remove()
        self._open.clear()

    def _on_call(self, _module: nn.Module, _arguments: Any) -> None:
        self._next_step(self._step + 1)
        if self._active:
            self._parameters.read_weights(self._step)

    def _before_update(self, _optimizer: Any, arguments: Any, keywords: Any) -> None:
        if self._active:
            closure = bool(arguments) or keywords.get("closure") is not None
            self._parameters.read_before(self._step, gradients=not closure)

    def _after_update(self, _optimizer: Any, arguments: Any, keywords: Any) -> None:
        if self._active:
            # With a closure, gradients do not exist before the step; what remains after it is its last evaluation's.
            closure = bool(arguments) or keywords.get("closure") is not None
            self._parameters.read_after(self._step, gradients=closure)
        self._next_step(self._step + 1)

    def _on_weight_gradient(self, slot: int, parameter: torch.Tensor) -> None:
        if self._active and parameter.grad is not None:
            self.observe(parameter.grad, slot)

    def _on_output(self, layer: _Layer, _module: nn.Module, _arguments: Any, output: Any) -> None:
        if not self._active:
            return
        if recomputed := torch._C._current_graph_task_id() >= 0:
            # Within a backward pass: a checkpoint computes this again, the latest call first.
            layer.recomputed += 1
            call = layer.calls - layer.recomputed
        else:
            call = layer.calls
            layer.calls = call + 1
        if type(output) is torch.Tensor:
            self._on_tensor(layer, call, None, output, recomputed)
        else:
            for place, tensor in _tensors(output):
                self._on_tensor(layer, call, place, tensor, recomputed)

    def _on_tensor(self, layer: _Layer, call: int, place: str | None, tensor: torch.Tensor, recomputed: bool) -> None:
        if self._handed_on is not None and self._is_handed_on(layer, tensor):
            return
        slots = layer.slots.get(place)
        if slots is None:
            slots = self._new_slots(layer, place)
        if self._forward and not recomputed:
            self.observe(tensor, slots[0], call)
        if self._backward and tensor.requires_grad:
            read = partial(self._on_gradient, slots[1], self._step, call, tensor.output_nr)
            if (node := tensor.grad_fn) is None:
                register: Any = tensor.register_hook
                self._open.append(register(lambda gradient: read((gradient,))))
            else:
                # Not a full backward hook of the module, which forbids in-place changes of its output, and not a
                # tensor hook, which costs twice as much: the node that made this value gets the value's gradient,
                # whatever is done in place to the tensor later.
                node.register_prehook(read)

    def _is_handed_on(self, layer: _Layer, tensor: torch.Tensor) -> bool:
        assert self._handed_on is not None
        version = tensor._version
        if layer.container:
            earlier = self._handed_on.get(id(tensor))
            if earlier is not None and earlier[0]() is tensor and earlier[1] == version:
                return True
        self._handed_on[id(tensor)] = (weakref.ref(tensor), version)
        return False

    def _new_slots(self, layer: _Layer, place: str | None) -> tuple[int, int]:
        self.record._layer_index.setdefault(layer.name, len(self.record._layer_index))
        slots = (
            self.slot(Slot(ACTIVATION, layer.name, output=place)),
            self.slot(Slot(ACTIVATION_GRADIENT, layer.name, output=place)),
        )
        layer.slots[place] = slots
        return slots

    def _on_gradient(
        self, slot: int, step: int, call: int, place: int, gradients: Sequence[torch.Tensor | None]
    ) -> None:
        gradient = gradients[place]
        if self._active and gradient is not None:
            self.observe(gradient, slot, call, step)


def _remove(parameter: nn.Parameter, handle: torch.utils.hooks.RemovableHandle, before: Any) -> None:
    """Remove a hook, and the empty dictionary that torch would leave behind."""
    handle.remove()
    if before is None and not parameter._post_accumulate_grad_hooks:
        parameter._post_accumulate_grad_hooks = None  # type: ignore[assignment] # what torch starts with


def _refuse_compiled(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"torch.compile fuses the activations inside of {name or type(part).__name__!r} away: track the module "
                "that was not compiled, or pass directions=('weight', 'weight_gradient', 'update')"
            )


def _tensors(output: Any, place: str = "") -> Iterator[tuple[str | None, torch.Tensor]]:
    """The tensors of a structured output, each with its place: `"0"`, `"1.0"`, `"hidden"`."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(output, torch.Tensor):
        yield place or None, output
        return
    if isinstance(output, Mapping):
        items = output.items()
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        items = zip(output._fields, output, strict=True)
    elif isinstance(output, list | tuple):
        items = enumerate(output)
    elif is_dataclass(output):
        items = ((field.name, getattr(output, field.name)) for field in fields(output))
    else:
        return
    for key, value in items:
        yield from _tensors(value, f"{place}.{key}" if place else str(key))
