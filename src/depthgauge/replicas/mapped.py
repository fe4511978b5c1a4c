"""Any model, called once for a whole stack with folded tensors, or once a replica."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from depthgauge.architecture import layers
from depthgauge.nested import scores
from depthgauge.replicas.folded import Folded, rows
from depthgauge.replicas.stack import Stack, call


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
        stack: the replicas; their template stays as it is.
        parameters: in the stack's order, (R, *shape) each.
        buffers: by name, (R, *shape) each; running statistics are moved in them.
    """

    def __init__(self, stack: Stack, parameters: Sequence[Tensor], buffers: Mapping[str, Tensor]) -> None:
        self._template = stack.template
        given = {**dict(zip(stack.parameters, parameters, strict=True)), **buffers}
        values = {name: Folded(tensor) for name, tensor in given.items()}
        self._filled: list[tuple[dict[str, Any], str, Folded]] = []
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
            for held, name, value in own:
                held[name] = value


def outputs(stack: Stack, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Outputs (R, B, ...) of a stack for inputs (R, B, ...), one call for all replicas, differentiable.

    Running statistics stay as they are.
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
    differentiating with respect to the zeros, which works the same with and without vmap.

    Returns:
        names (a repeated call is `name:1`, `name:2`, ...), values (R, B, ...), gradients (R, B, ...); the gradients
        are an empty list where there is no cotangent.
    """
    names: list[str] = []

    def seen(forward: Callable[[], Tensor], taps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        names.clear()
        values: list[Tensor] = []

        def tap(name: str, value: Tensor) -> Tensor:
            calls = sum(known.partition(":")[0] == name for known in names)
            names.append(f"{name}:{calls}" if calls else name)
            value = value + taps[len(values)] if taps else value
            values.append(value)
            return value

        with _hooked(stack.template, tap):
            out = forward()
        return out, values

    def everywhere(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if together:
            parameters = list(stack.parameters.values())
            out, values = seen(lambda: outputs(stack, parameters, inputs), [Folded(tap) for tap in taps])
            return out, [rows(value) for value in values]
        each = [
            seen(
                partial(call, stack.template, stack.member(row), inputs[row], stack.places), [tap[row] for tap in taps]
            )
            for row in range(len(stack))
        ]
        columns = zip(*(values for _, values in each), strict=True)
        return torch.stack([out for out, _ in each]), [torch.stack(column) for column in columns]

    with torch.no_grad():
        _, values = everywhere([])
    if cotangent is None:
        return tuple(names), values, []
    taps = [torch.zeros_like(value).requires_grad_() for value in values]
    with torch.enable_grad():
        out, _ = everywhere(taps)
    gradients = torch.autograd.grad(out, taps, cotangent(out.detach()), materialize_grads=True)
    return tuple(names), values, list(gradients)


def batchable(stack: Stack, inputs: Tensor) -> bool:
    """Tell whether one call for all replicas works and agrees with separate calls, tried on `inputs` (R, B, ...).

    Dropout cannot be batched; control flow that depends on data cannot be followed.
    """
    for module in stack.template.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            return False
    buffers, members = _copies(stack), [stack.member(row) for row in range(len(stack))]
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # vmap announces an operation that it would run replica by replica: no gain is to be had there.
            warnings.simplefilter("error")
            together = Together(stack, list(stack.parameters.values()), buffers)(inputs)
            each = zip(members, inputs, strict=True)
            alone = torch.stack([call(stack.template, member, x, stack.places) for member, x in each])
    except Exception:  # noqa: BLE001 - a trial of the model's own code, where anything may be raised
        return False
    moved = ((buffer, torch.stack([member[name] for member in members])) for name, buffer in buffers.items())
    return _agree(together, alone) and all(_agree(*pair) for pair in moved)


def _agree(together: Tensor, alone: Tensor) -> bool:
    tolerance = torch.finfo(together.dtype).eps ** 0.5 if together.is_floating_point() else 0.0
    return together.shape == alone.shape and torch.allclose(
        together, alone, rtol=tolerance, atol=tolerance, equal_nan=True
    )
