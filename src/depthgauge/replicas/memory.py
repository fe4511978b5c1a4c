"""Memory of a replica, and the number of replicas that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from depthgauge.copies import copied
from depthgauge.replicas.stack import call, tensors
from depthgauge.restoring import random_states_kept


def most_members(parameters: int, budget: int = 2**28, *, each: int = 12) -> int:
    """Count the members whose parameters fit into a budget, at least one; intermediate results are not counted.

    A function of its arguments alone: chunks that are cut by it, and their ids, are the same everywhere.

    Args:
        parameters: number of parameters of one member.
        budget: bytes.
        each: bytes a parameter takes: 12 in training, for value, gradient and momentum in float32; 8 for float64 alone.
    """
    return max(1, budget // max(each * parameters, 1))


def parameter_bytes(model: nn.Module) -> int:
    """Bytes of one copy's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for group in tensors(model) for tensor in group.values())


@dataclass(frozen=True)
class Sizes:
    """Sizes of one batch of one copy; the model is called once, on two examples of zeros, when the first is asked for.

    Nothing is computed where the model is on the meta device and asks for no values.

    Attributes:
        model: any module, on any device.
        shape: shape of one example.
        dtype: dtype of the inputs.
        batch: examples.
    """

    model: nn.Module
    shape: Sequence[int]
    dtype: torch.dtype
    batch: int

    @property
    def activation_bytes(self) -> int:
        """Bytes of all that the modules without submodules put out."""
        return -(-self._of_two[0] // 2) * self.batch

    @property
    def convolution_work(self) -> float:
        """Multiply-adds of a two-dimensional convolution forward, the mean over the calls; 0 without any."""
        return self._of_two[1] / 2 * self.batch

    @cached_property
    def _of_two(self) -> tuple[int, float]:
        """Bytes and multiply-adds for two examples."""
        outputs, work = 0, []
        for module, output in _calls(self.model, self.shape, self.dtype):
            tensors = [
                each for each in (output if isinstance(output, tuple) else (output,)) if isinstance(each, Tensor)
            ]
            outputs += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            if isinstance(module, nn.Conv2d):
                work += [tensor.numel() * module.weight[0].numel() for tensor in tensors]
        return outputs, sum(work) / len(work) if work else 0.0


def _calls(model: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> list[tuple[nn.Module, object]]:
    """The modules without submodules, and what each puts out for two examples, in the order of their calls."""
    calls: list[tuple[nn.Module, object]] = []
    model = copied(model, own_tensors=False)
    leaves = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [
        module.register_forward_hook(lambda module, _inputs, output: calls.append((module, output)))
        for module in leaves
    ]
    try:
        with torch.no_grad(), random_states_kept():
            on_meta = any(parameter.is_meta for parameter in model.parameters())
            for device in ("meta", "cpu") if on_meta else ("cpu",):
                calls.clear()
                copies = {n: _copy(tensor, device, dtype) for part in tensors(model) for n, tensor in part.items()}
                try:
                    call(model, copies, torch.zeros(2, *shape, dtype=dtype, device=device))
                except (NotImplementedError, RuntimeError):
                    if device == "cpu":
                        raise
                else:
                    break
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _copy(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    if tensor.is_floating_point() and dtype.is_floating_point:  # a stack may hold its template's in another format
        tensor = tensor.to(dtype)
    if device == "meta":
        return tensor.detach().to("meta", copy=True)
    return torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device, copy=True)


def replica_bytes(
    model: nn.Module, shape: Sequence[int], batch: int, *, moments: int, dtype: torch.dtype | None = None
) -> int:
    """Bytes that one replica takes in training, an upper bound.

    Parameters before and after, their gradients and optimizer state; each activation, its input to the next layer and
    its gradient; the batch and its order.

    Args:
        model: the template.
        shape: shape of one example.
        batch: examples a step.
        moments: tensors of optimizer state for each parameter.
        dtype: dtype of the inputs; None: that of the parameters.
    """
    native = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    inputs = native if dtype is None else dtype
    example = torch.Size(shape).numel() * torch.empty((), dtype=inputs).element_size()
    activations = Sizes(model, shape, inputs, batch).activation_bytes
    return (3 + moments) * parameter_bytes(model) + 3 * activations + 2 * batch * example
