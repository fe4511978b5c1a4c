"""The cost of every operator of a computation: floating-point operations, and bytes moved.

    with counting() as operations:
        model(x).sum().backward()
    sum(operation.flops for operation in operations)

Operators are those below autograd, one entry a call, in the order in which they ran. On the meta device nothing is
computed, whatever the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop, shape_wrapper


@dataclass(frozen=True)
class Operation:
    """One call of an operator that computes or moves something; views and empty allocations do neither.

    Attributes:
        name: the operator's name in torch.profiler: `aten::addmm`.
        shapes: of the tensors that it is given, in their order, those without dimensions left out; of sparse and nested
            ones those of the values that are stored.
        flops: multiplications and additions of matrix products, convolutions and attention, two each term;
            elementwise operations are not counted (torch.utils.flop_counter).
        bytes: of what it is given and returns, each tensor once: its traffic without any fusion or cache reuse.
        dtype: of the first tensor that it is given, else of what it returns: `float32`.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    flops: int
    bytes: int
    dtype: str


def stored(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The dense tensors that hold a tensor's numbers; itself as a rule."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.values(),) if tensor.is_nested else (tensor,)


@contextmanager
def counting() -> Iterator[list[Operation]]:
    """The operators that run within the block, backward passes included; the list grows as they do."""
    operations: list[Operation] = []
    with _Counter(operations):
        yield operations


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


_FORMULAS: Mapping[Any, Callable[..., Any]] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: shape_wrapper(_convolution_backward),  # type: ignore[no-untyped-call]
    # torch's counter knows the fused attention of devices other than the CPU
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}


# Allocations, and views that torch does not tag as such.
_IDLE = ("empty", "new_empty", "_unsafe_view", "_reshape_alias", "lift_fresh")


def multiplications(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object], out: Any) -> int:
    """Number of products in a matrix product, convolution or attention; 0 of any other operator."""
    formula = _FORMULAS.get(func.overloadpacket)
    return int(formula(*args, **kwargs, out_val=out)) // 2 if formula else 0


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has not typed __init_subclass__
    def __init__(self, operations: list[Operation]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor __init__
        self.operations = operations

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        call: Callable[..., Any] = func
        kwargs = kwargs or {}
        out: object = call(*args, **kwargs)
        given = [*_tensors(args), *_tensors(list(kwargs.values()))]
        moved = [*given, *_tensors(out)]
        idle = func.is_view or func.overloadpacket.__name__.startswith(_IDLE)
        if moved and not idle:
            self.operations.append(
                Operation(
                    name=func.overloadpacket._qualified_op_name,
                    shapes=tuple(tuple(tensor.shape) for tensor in given if tensor.dim()),
                    flops=2 * multiplications(func, args, kwargs, out),
                    bytes=sum(tensor.numel() * tensor.element_size() for tensor in moved),
                    dtype=str(moved[0].dtype).removeprefix("torch."),
                )
            )
        return out


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors of an argument; of a sparse or jagged one those that hold its numbers."""
    if isinstance(value, torch.Tensor):
        yield from stored(value)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
