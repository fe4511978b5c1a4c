"""What one forward and one backward pass cost: floating-point operations and bytes moved.

    cost = measure(models.build("resnet50", device="meta"), torch.empty(1, 3, 224, 224, device="meta"))
    cost.forward_flops / cost.forward_bytes       # arithmetic intensity, the abscissa of a roofline

On the meta device nothing is computed, whatever the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """One forward and one backward pass of a batch.

    Attributes:
        parameters: trainable numbers, shared ones once.
        forward_flops: multiplications and additions of matrix products, convolutions and attention, two each term;
            elementwise operations are not counted (torch.utils.flop_counter). Attention is counted in full, the
            part that a causal mask discards included.
        backward_flops: likewise, for the gradients of the parameters and of what lies between.
        forward_bytes: what the operators read and write, each for itself: traffic without any fusion or cache reuse.
        backward_bytes: likewise.
    """

    parameters: int
    forward_flops: int
    backward_flops: int
    forward_bytes: int
    backward_bytes: int


def _convolution_backward(*arguments: Any, **_kwargs: object) -> int:
    """Twice the forward count, or once where one of the two gradients is not wanted.

    torch's own formula counts the weight's gradient of g groups g times (pytorch pull request 183405), which would
    nearly double a ResNeXt's backward pass.
    """
    out_gradient, inputs, weight, _bias, _stride, _padding, _dilation, transposed, *_, wanted = arguments
    pixels: int = math.prod((inputs if transposed else out_gradient)[2:])
    gradients = sum(map(bool, wanted[:2]))
    flops: int = gradients * 2 * out_gradient[0] * pixels * math.prod(weight)
    return flops


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not typed __init_subclass__
    """Sums the bytes of every operator's inputs and outputs; views and empty allocations move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor __init__
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        call: Callable[..., Any] = func
        out: object = call(*args, **(kwargs or {}))
        allocates = func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if not func.is_view and not allocates:
            moved = [*_tensors(args), *_tensors(list((kwargs or {}).values())), *_tensors(out)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in moved)
        return out


def measure(model: nn.Module, inputs: torch.Tensor) -> Cost:
    """Cost of one batch: `model(inputs)`, and the gradients of every trainable parameter for the sum of the outputs.

    No `grad` is touched; a normalization in training updates its running statistics as in any pass, and dropout draws.
    """
    forward, backward = _counter(), _counter()
    forward_traffic, backward_traffic = _Traffic(), _Traffic()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # The counter knows no fused attention for the CPU; written out, it costs the same operations on every device.
    with sdpa_kernel(SDPBackend.MATH), forward, forward_traffic:
        out = model(inputs)
    ones = torch.ones_like(out)
    with backward, backward_traffic:
        torch.autograd.grad(out, trained, ones, allow_unused=True)
    return Cost(
        parameters=sum(parameter.numel() for parameter in trained),
        forward_flops=forward.get_total_flops(),
        backward_flops=backward.get_total_flops(),
        forward_bytes=forward_traffic.bytes,
        backward_bytes=backward_traffic.bytes,
    )
