"""Any model, called once for a whole stack with folded tensors, or once a replica."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from depthgauge.architecture import layers
from depthgauge.nested import scores
from depthgauge.replicas.folded import Folded, rows
from depthgauge.replicas.stack import Stack, call
from depthgauge.restoring import random_states_kept


@contextmanager
def _hooked(model: nn.Module, hook: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Pass every weight layer's output tensor through `hook`."""

    def make(name: str) -> Callable[[nn.Module, object, object], object]:
        return lambda _module, _inputs, output: hook(name, output) if isinstance(output, Tensor) else output

    handles = [module.register_forward_hook(make(name)) for name, module in layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Together:
    """A stack's template, to be called once for all replicas.

    Args:
        stack: the replicas, over a template of their own (`Stack.fresh`), in which its code may keep what it sees.
        parameters: in the stack's order, (R, *shape) each.
        buffers: by name, (R, *shape) each; running statistics are moved in them.
    """

    def __init__(self, stack: Stack, parameters: Sequence[Tensor], buffers: Mapping[str, Tensor]) -> None:
        self._template = stack.template
        given = {**dict(zip(stack.parameters, parameters, strict=True)), **buffers}
        values = {name: Folded(tensor) for name, tensor in given.items()}
        self._filled: list[tuple[dict[str, Any], str, Folded]] = []
        self._moved: list[tuple[Folded, Tensor]] = []
        for place, name in stack.places.items():
            prefix, _, last = place.rpartition(".")
            module = stack.template.get_submodule(prefix)
            held: Any = module._parameters if last in module._parameters else module._buffers
            self._filled.append((held, last, values[name]))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Outputs (R, B, ...) for inputs (R, B, ...), differentiable."""
        own = [(held, name, held[name]) for held, name, _ in self._filled]
        try:
            for held, name, value in self._filled:
                held[name] = value
            return rows(scores(self._template(Folded(inputs))))
        finally:
            now = [(value, held.get(name)) for held, name, value in self._filled]
            self._moved = [(value, new) for value, new in now if new is not value and isinstance(new, Tensor)]
            for held, name, value in own:
                held[name] = value

    @torch.no_grad()
    def settle(self) -> None:
        """Move buffers that the last call replaced (`self.mean = ...`), when its graph is no longer needed."""
        for value, new in self._moved:
            value.held.copy_(rows(new))
        self._moved = []


def outputs(stack: Stack, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Outputs (R, B, ...) of a stack for inputs (R, B, ...), one call for all replicas, differentiable.

    Running statistics stay as they are. The stack is over a template of its own, as for `Together`.
    """
    return Together(stack, parameters, _copies(stack))(inputs)


def _copies(stack: Stack) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in stack.buffers.items()}


def channels_last(stack: Stack) -> Stack:
    """The same replicas with the weights of convolutions in the memory that folded convolutions read."""
    return Stack(
        stack.template,
        {
            name: torch.unflatten(
                tensor.flatten(0, 1).contiguous(memory_format=torch.channels_last), 0, tensor.shape[:2]
            )
            if tensor.dim() == 5
            else tensor
            for name, tensor in stack.parameters.items()
        },
        stack.buffers,
        stack.seeds,
    )


def give_back(trained: Stack, given: Stack) -> None:
    """Copy into the given replicas what `channels_last` did not share with them."""
    for name, tensor in given.parameters.items():
        if trained.parameters[name] is not tensor:
            tensor.copy_(trained.parameters[name])


def leaves(stack: Stack) -> list[Tensor]:
    """The stacked parameters, to be differentiated where the template's own are."""
    wanted = [parameter.requires_grad for parameter in stack.template.parameters()]
    return [
        tensor.detach().requires_grad_(want) for tensor, want in zip(stack.parameters.values(), wanted, strict=True)
    ]


def gradients(leaves: Sequence[Tensor], outputs: Tensor, cotangent: Tensor) -> dict[int, Tensor]:
    """Place -> gradient (R, *shape), for the leaves that have one."""
    places = [place for place, leaf in enumerate(leaves) if leaf.requires_grad]
    wanted = [leaves[place] for place in places]
    # The stubs do not know that a parameter which the outputs do not depend on has None for a gradient.
    computed = cast("tuple[Tensor | None, ...]", torch.autograd.grad(outputs, wanted, cotangent, allow_unused=True))
    return {place: gradient for place, gradient in zip(places, computed, strict=True) if gradient is not None}


def tapped(
    stack: Stack, inputs: Tensor, cotangent: Callable[[Tensor], Tensor] | None, *, together: bool
) -> tuple[tuple[str, ...], list[Tensor], list[Tensor]]:
    """Outputs of every weight layer, and gradients with respect to them under `cotangent`, for inputs (R, B, ...).

    A layer called several times counts once a call. The gradient is had by adding zeros to each output and
    differentiating with respect to the zeros, which works the same with and without vmap. Both passes draw the same
    from the global generators, which are put back.

    Returns:
        names (a repeated call is `name:1`, `name:2`, ...), values (R, B, ...), gradients (R, B, ...); the gradients
        are an empty list where there is no cotangent.
    """
    names: list[str] = []

    def seen(model: nn.Module, forward: Callable[[], Tensor], taps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        names.clear()
        values: list[Tensor] = []

        def tap(name: str, value: Tensor) -> Tensor:
            calls = sum(known.partition(":")[0] == name for known in names)
            names.append(f"{name}:{calls}" if calls else name)
            value = value + taps[len(values)] if taps else value
            values.append(value if taps else value.clone())  # what follows may work in place
            return value

        with _hooked(model, tap):
            out = forward()
        return out, values

    def everywhere(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if together:
            own = stack.fresh()
            run = Together(own, list(stack.parameters.values()), _copies(stack))
            out, values = seen(own.template, lambda: run(inputs), [Folded(tap) for tap in taps])
            return out, [rows(value) for value in values]
        each = []
        for row in range(len(stack)):
            own = stack.fresh()
            forward = partial(call, own.template, stack.member(row), inputs[row], own.places)
            each.append(seen(own.template, forward, [tap[row] for tap in taps]))
        columns = zip(*(values for _, values in each), strict=True)
        return torch.stack([out for out, _ in each]), [torch.stack(column) for column in columns]

    with torch.no_grad(), random_states_kept():
        _, values = everywhere([])
    if cotangent is None:
        return tuple(names), values, []
    taps = [torch.zeros_like(value).requires_grad_() for value in values]
    with torch.enable_grad(), random_states_kept():
        out, _ = everywhere(taps)
    gradients = torch.autograd.grad(out, taps, cotangent(out.detach()), materialize_grads=True)
    return tuple(names), values, list(gradients)


def batchable(stack: Stack, inputs: Tensor, *, slow: bool = False, backward: bool = True) -> bool:
    """Tell whether one call for all replicas works and agrees with separate ones, tried on `inputs` (R, B, ...).

    Outputs, gradients and running statistics are compared: a backward pass of the model's own does not see the
    replicas. Dropout cannot be batched; control flow that depends on data cannot be followed. The global generators
    are put back.

    Args:
        stack: some replicas.
        inputs: (R, B, ...).
        slow: whether operations count that run replica after replica in that one call.
        backward: whether gradients are compared.
    """
    for module in stack.template.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            return False
    if any(tensor.is_complex() for tensor in stack.parameters.values()):
        return False  # torch's own steps take their real and imaginary parts
    try:
        with torch.set_grad_enabled(backward), random_states_kept(), warnings.catch_warnings():
            # vmap announces an operation that it would run replica by replica: no gain is to be had there.
            warnings.simplefilter("ignore" if slow else "error")
            return _alike(_together(stack, inputs), _alone(stack, inputs))
    except Exception:  # noqa: BLE001 - a trial of the model's own code, where anything may be raised
        return False


@dataclass(frozen=True)
class _Tried:
    """Outputs (R, B, ...), gradients by place, and buffers by name, after one call."""

    outputs: Tensor
    gradients: Mapping[int, Tensor]
    buffers: Mapping[str, Tensor]


def _together(stack: Stack, inputs: Tensor) -> _Tried:
    buffers, variables = _copies(stack), leaves(stack)
    run = Together(stack.fresh(), variables, buffers)
    out = run(inputs)
    found = gradients(variables, out, _cotangent(out.shape[1:], out).expand_as(out)) if out.requires_grad else {}
    run.settle()
    return _Tried(out, found, buffers)


def _alone(stack: Stack, inputs: Tensor) -> _Tried:
    outs: list[Tensor] = []
    found: list[dict[int, Tensor]] = []
    buffers: list[dict[str, Tensor]] = []
    for row, x in enumerate(inputs):
        module = stack.module(row).to(inputs.device)
        out = scores(module(x))
        outs.append(out)
        found.append(gradients(list(module.parameters()), out, _cotangent(out.shape, out)) if out.requires_grad else {})
        buffers.append(dict(module.named_buffers()))
    return _Tried(
        torch.stack(outs),
        {place: torch.stack([own[place] for own in found]) for place in found[0]},
        {name: torch.stack([own[name] for own in buffers]) for name in stack.buffers},
    )


def _cotangent(shape: torch.Size, out: Tensor) -> Tensor:
    """Another number for each output of one replica."""
    return torch.arange(shape.numel(), device=out.device).cos().to(out.dtype).view(shape)


def _alike(together: _Tried, alone: _Tried) -> bool:
    if together.gradients.keys() != alone.gradients.keys():
        return False
    # Of a bias before a normalization the gradient is rounding: it is held against that of all parameters.
    size = max((float(each.abs().max()) for each in alone.gradients.values() if each.numel()), default=0.0)
    return (
        _agree(together.outputs, alone.outputs)
        and all(_agree(together.buffers[name], moved) for name, moved in alone.buffers.items())
        and all(_agree(together.gradients[place], each, size) for place, each in alone.gradients.items())
    )


def _agree(together: Tensor, alone: Tensor, size: float = 1.0) -> bool:
    tolerance = torch.finfo(together.dtype).eps ** 0.5 if together.is_floating_point() else 0.0
    return together.shape == alone.shape and torch.allclose(
        together, alone, rtol=tolerance, atol=tolerance * size, equal_nan=True
    )
