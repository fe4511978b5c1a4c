"""The cost of one forward and one backward pass: floating-point operations and bytes moved.

    cost = measure(models.build("resnet50", device="meta"), torch.empty(1, 3, 224, 224, device="meta"))
    cost.forward_flops / cost.forward_bytes       # arithmetic intensity, the abscissa of a roofline

On the meta device nothing is computed, whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from depthgauge.operations import counting


@dataclass(frozen=True)
class Cost:
    """One forward and one backward pass of a batch.

    Attributes:
        parameters: trainable numbers, shared ones once.
        forward_flops: multiplications and additions of matrix products, convolutions and attention, two each term;
            elementwise operations are not counted (torch.utils.flop_counter). Attention is counted in full, the
            part that a causal mask discards included.
        backward_flops: floating-point operations for the gradients of the parameters and of what lies between.
        forward_bytes: bytes that each operator reads and writes: traffic without any fusion or cache reuse.
        backward_bytes: the same for the backward pass.
    """

    parameters: int
    forward_flops: int
    backward_flops: int
    forward_bytes: int
    backward_bytes: int


def measure(model: nn.Module, inputs: torch.Tensor) -> Cost:
    """Cost of one batch: `model(inputs)`, and the gradients of every trainable parameter for the sum of the outputs.

    No `grad` is touched; a normalization in training updates its running statistics as in any pass, and dropout draws.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Written out, attention costs the same operations on every device, and its backward pass too.
    with sdpa_kernel(SDPBackend.MATH), counting() as forward:
        out = model(inputs)
    ones = torch.ones_like(out)
    with counting() as backward:
        torch.autograd.grad(out, trained, ones, allow_unused=True)
    return Cost(
        parameters=sum(parameter.numel() for parameter in trained),
        forward_flops=sum(operation.flops for operation in forward),
        backward_flops=sum(operation.flops for operation in backward),
        forward_bytes=sum(operation.bytes for operation in forward),
        backward_bytes=sum(operation.bytes for operation in backward),
    )
