"""Any model, called once for a whole stack with `torch.func.vmap`, or once a replica."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import vmap

from depthgauge.architecture import layers
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


def outputs(stack: Stack, parameters: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Outputs (R, B, ...) of a stack for inputs (R, B, ...), one call for all replicas, differentiable."""

    def of_replica(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        return call(stack.template, tensors, x, stack.places)

    out: Tensor = vmap(of_replica)({**dict(zip(stack.parameters, parameters, strict=True)), **stack.buffers}, inputs)
    return out


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

    def of_replica(tensors: dict[str, Tensor], x: Tensor, taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        names.clear()
        values: list[Tensor] = []

        def tap(name: str, value: Tensor) -> Tensor:
            calls = sum(known.partition(":")[0] == name for known in names)
            names.append(f"{name}:{calls}" if calls else name)
            value = value + taps[len(values)] if taps else value
            values.append(value)
            return value

        with _hooked(stack.template, tap):
            out = call(stack.template, tensors, x, stack.places)
        return out, values

    def everywhere(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        if together:
            result: tuple[Tensor, list[Tensor]] = vmap(of_replica)({**stack.parameters, **stack.buffers}, inputs, taps)
            return result
        rows = [of_replica(stack.member(row), inputs[row], [tap[row] for tap in taps]) for row in range(len(stack))]
        return torch.stack([row[0] for row in rows]), [
            torch.stack(column) for column in zip(*(r[1] for r in rows), strict=True)
        ]

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

    Dropout and running statistics cannot be batched; control flow that depends on data cannot be traced.
    """
    for module in stack.template.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            return False
        running = getattr(module, "running_mean", None) is not None
        if running and module.training:
            return False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # vmap announces an operation that it would run replica by replica: no gain is to be had there.
            warnings.simplefilter("error")
            together = outputs(stack, list(stack.parameters.values()), inputs)
            rows = range(len(stack))
            alone = torch.stack([call(stack.template, stack.member(row), inputs[row], stack.places) for row in rows])
    except Exception:  # noqa: BLE001 - a trial of the model's own code, where anything may be raised
        return False
    tolerance = torch.finfo(together.dtype).eps ** 0.5 if together.is_floating_point() else 0.0
    return together.shape == alone.shape and torch.allclose(
        together, alone, rtol=tolerance, atol=tolerance, equal_nan=True
    )
