"""The cost of every operator of a computation: floating-point operations, and bytes moved.

    with counting() as operations:
        model(x).sum().backward()
    sum(operation.flops for operation in operations)

Operators are those below autograd, one entry a call, in the order in which they ran. On the meta device nothing is
computed, whatever the size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop, shape_wrapper

from depthgauge.multiplying import LAYERS, SPARSE, SUMS, is_sparse, stored

WHOLE_LAYERS = frozenset(packet._qualified_op_name for packet in LAYERS)
"""Names of operators that are a whole layer, as `Operation` has them."""


@dataclass(frozen=True)
class Operation:
    """One call of an operator that computes or moves something; views and empty allocations do neither.

    Attributes:
        name: the operator's name in torch.profiler: `aten::addmm`.
        shapes: of the tensors that it is given, in their order, those without dimensions left out; of sparse and nested
            ones those of the values that are stored.
        flops: multiplications and additions of products of matrices and vectors, convolutions and attention, those
            inside of a library's recurrent and attention layers among them, two each term; of sparse matrices those of
            stored numbers. Elementwise operations are not counted (torch.utils.flop_counter).
        bytes: that it must read and write, without fusion between operators (see `transfers`).
        dtype: of the first tensor that it is given, else of what it returns: `float32`.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    flops: int
    bytes: int
    dtype: str


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


def multiplications(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object], out: Any) -> int:
    """Number of products in a product of matrices or vectors, a convolution or attention; 0 of any other operator.

    An operator that is a whole layer counts as another one: its results are no sums of products.
    """
    packet = func.overloadpacket
    if own := (SPARSE if any(map(is_sparse, args)) else {}).get(packet) or SUMS.get(packet):
        return own(*args, **{name: given for name, given in kwargs.items() if name != "out"})
    formula = _FORMULAS.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) // 2 if formula else 0


def in_layers(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object]) -> int:
    """Number of products inside of an operator that is a whole layer; 0 of any other."""
    count = LAYERS.get(func.overloadpacket)
    return count(*args, **kwargs) if count else 0


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
        if moved and not _idle(func):
            whole = next(each for value in (args, list(kwargs.values()), out) for each in _whole(value))
            self.operations.append(
                Operation(
                    name=func.overloadpacket._qualified_op_name,
                    shapes=tuple(tuple(tensor.shape) for tensor in given if tensor.dim()),
                    flops=2 * (multiplications(func, args, kwargs, out) or in_layers(func, args, kwargs)),
                    bytes=transfers(func, args, kwargs, out),
                    dtype=str(whole.dtype).removeprefix("torch."),
                )
            )
        return out


def _whole(value: object) -> Iterator[torch.Tensor]:
    """The tensors of an argument."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _whole(item)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    """The tensors of an argument; of a sparse or jagged one those that hold its numbers."""
    return (part for each in _whole(value) for part in stored(each))


# -- bytes -------------------------------------------------------------------------------------------------------------

_Given = Mapping[str, Any]  # an operator's arguments by name, those left out by their defaults, and what it `returned`
_Count = Callable[[_Given], int]


def _elements_of(name: str) -> _Count:
    return lambda given: int(given[name].numel())


def _slices(given: _Given) -> int:
    """Elements of the slices along `dim` that an index names."""
    whole = given["self"]
    return int(whole.numel() // max(1, whole.shape[given["dim"]] if whole.dim() else 1) * given["index"].numel())


def _rows(given: _Given) -> int:
    return int(given["indices"].numel() * given["self"].shape[-1])


def _placed(given: _Given) -> int:
    """Elements that `index_put_` writes; all of the tensor where that depends on the values of a mask."""
    whole, indices = given["self"], [index for index in given["indices"] if index is not None]
    if any(index.dtype in {torch.bool, torch.uint8} for index in indices):
        return int(whole.numel())
    indexed = [whole.shape[place] for place, index in enumerate(given["indices"]) if index is not None]
    points = math.prod(torch.broadcast_shapes(*(index.shape for index in indices)))  # type: ignore[no-untyped-call]  # torch has not typed it
    return int(whole.numel() // max(1, math.prod(indexed)) * points)


def _zeroed(*, below: bool) -> _Count:
    """Elements that `triu_` (below the diagonal) or `tril_` writes."""

    def count(given: _Given) -> int:
        *batch, rows, columns = given["self"].shape
        kept = (min(columns, max(0, row + given["diagonal"] + (0 if below else 1))) for row in range(rows))
        first = sum(kept)  # elements of the rows left of the cut
        return int(math.prod(batch) * (first if below else rows * columns - first))

    return count


# Arguments of which an operator touches a part alone: how many elements at most, by the operator's and their name.
_PARTS: Mapping[str, Mapping[str, _Count]] = {
    name: counts
    for names, counts in (
        ("gather take index index_select masked_select", {"self": _elements_of("returned")}),
        ("embedding", {"weight": _elements_of("returned")}),
        ("embedding_renorm_", {"self": _rows}),
        ("nll_loss_forward nll_loss2d_forward", {"self": _elements_of("target")}),
        ("scatter scatter_add scatter_reduce", {"src": _elements_of("index")}),
        ("scatter_ scatter_add_ scatter_reduce_", {"self": _elements_of("index"), "src": _elements_of("index")}),
        ("put_", {"self": _elements_of("index")}),
        ("index_put_ _index_put_impl_", {"self": _placed}),
        ("index_fill_ index_copy_ index_add_ index_reduce_", {"self": _slices}),
        ("triu_", {"self": _zeroed(below=True)}),
        ("tril_", {"self": _zeroed(below=False)}),
    )
    for name in names.split()
}

# Operators that take no values of `self`: it is overwritten, or lends its shape.
_OVERWRITING = re.compile(
    r"(_foreach_)?(copy|fill|zero)_?|(uniform|exponential|geometric|log_normal|cauchy|random|normal)_?"
    r"|_philox_(uniform|normal)_?|normal_functional|bernoulli_|index_(fill|copy)_|masked_(fill|scatter)_|tri[ul]_"
)
_SHAPED = re.compile(
    r"_?(adaptive_|fractional_)?(avg|max)_pool\dd(_with_indices)?_backward|(replication|reflection)_pad\dd_backward"
    r"|nll_loss(2d)?_backward|new_.*|.*_like"
)
_ADDED = frozenset(("addmm", "addmv", "addbmm", "baddbmm", "addr", "sspaddmm", "_addmm_activation"))


def _unread(func: torch._ops.OpOverload, given: _Given) -> set[str]:
    """Arguments whose values do not matter: they are overwritten, or lend their shape alone."""
    name, plain = func.overloadpacket.__name__, func.overloadpacket.__name__.rstrip("_")
    unread = {argument.name for argument in func._schema.arguments if argument.is_out}
    if (
        _OVERWRITING.fullmatch(name)
        or _SHAPED.fullmatch(name)
        or (name == "bernoulli" and "p" in given)
        or (name == "scatter_" and given.get("reduce") is None)
        or (name in {"put_", "index_put_", "_index_put_impl_"} and not given["accumulate"])
        or given.get("include_self") is False
        or (plain in _ADDED and given["beta"] == 0)
    ):
        unread.add("self")
    if plain == "rrelu_with_noise":
        unread.add("noise")
    if plain == "_fused_sgd" and given["is_first_step"]:
        unread.add("momentum_buffer_list")
    if name == "convolution_backward":  # the gradient of the one takes the other
        unread |= {each for each, wanted in zip(("weight", "input"), given["output_mask"], strict=False) if not wanted}
    return unread


def _written(func: torch._ops.OpOverload, given: _Given) -> set[str]:
    """Arguments that a call writes to, which is what its schema says but for a few."""
    name, plain = func.overloadpacket.__name__, func.overloadpacket.__name__.rstrip("_")
    written = {each.name for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write}
    if name == "native_batch_norm" and given["training"]:
        written |= {"running_mean", "running_var"}
    if plain == "rrelu_with_noise" and not given["training"]:
        written.discard("noise")
    if plain.startswith("_fused_") and given.get("grad_scale") is None:
        written.discard("grads")
    return written


def transfers(func: torch._ops.OpOverload, args: Sequence[object], kwargs: Mapping[str, object], out: object) -> int:
    """Bytes that one call of an operator must read and write.

    What it reads it reads once, however often it is given or repeated by `expand`; what it overwrites (`out=`, `copy_`,
    `fill_`) it does not read; of a tensor that an index picks from it touches what is picked. Where values decide (a
    mask, an index that names an element twice), as many as there can be. The least, that is: a kernel may read twice,
    and a processor fetches a line before it writes to it.

    Args:
        func: the operator, below autograd.
        args: what it was given, in order.
        kwargs: what it was given by name.
        out: what it returned.
    """
    arguments, returns = func._schema.arguments, func._schema.returns
    given: _Given = {argument.name: argument.default_value for argument in arguments}
    named = dict(zip((argument.name for argument in arguments), args, strict=False))
    given = {**given, **named, **kwargs, "returned": out}
    unread, written = _unread(func, given), _written(func, given)
    parts = _PARTS.get(func.overloadpacket.__name__, {})
    reads, writes = _Touched(), _Touched()
    own: list[torch.Tensor] = []
    for name in (argument.name for argument in arguments):
        most = parts[name](given) if name in parts else None
        for tensor in _tensors(given[name]):
            own.append(tensor)
            if name not in unread:
                reads.add(tensor, most)
            if name in written:
                writes.add(tensor, most)
    for result, declared in zip((out,) if len(returns) == 1 else _several(out), returns, strict=False):
        for tensor in _tensors(result):
            if declared.alias_info is None and not any(tensor is each for each in own):
                writes.add(tensor)
    return reads.bytes + writes.bytes


def _several(out: object) -> Sequence[object]:
    return out if isinstance(out, list | tuple) else ()


class _Touched:
    """Memory that is read, or written: each place of it once."""

    def __init__(self) -> None:
        self._memory: dict[int, tuple[int, int, int]] = {}  # storage -> bytes of its tensors, where they begin and end

    def add(self, tensor: torch.Tensor, most: int | None = None) -> None:
        """Add a tensor, or as many of its elements at most."""
        size, first, span = tensor.element_size(), 0, tensor.numel()
        place = id(tensor)
        elements = span
        if tensor.layout is torch.strided and torch._C._has_storage(tensor):
            place, first = tensor.untyped_storage()._cdata, int(tensor.storage_offset())
            sides = [(length, step) for length, step in zip(tensor.shape, tensor.stride(), strict=True) if step]
            span = 1 + sum((length - 1) * step for length, step in sides) if elements else 0
            elements = min(math.prod(length for length, _ in sides), span) if elements else 0
        elements = elements if most is None else min(most, elements)
        known, begin, end = self._memory.get(place, (0, first * size, 0))
        self._memory[place] = known + elements * size, min(begin, first * size), max(end, (first + span) * size)

    @property
    def bytes(self) -> int:
        """Bytes in all; of tensors that share memory no more than lie between their ends."""
        return sum(min(bytes_, end - begin) for bytes_, begin, end in self._memory.values())


# Allocations, views that torch does not tag as such, and what changes a tensor's size or place alone.
_IDLE = re.compile(
    r"(new_)?empty(_like|_strided|_permuted)?|_unsafe_view|_reshape_alias|lift_fresh|_resize_output_|sparse_resize_"
    r"|resize_as_sparse_|_coalesced_|_mkldnn_transpose_|record_stream|set_data"
)


def _idle(func: torch._ops.OpOverload) -> bool:
    tagged = func.is_view or torch.Tag.inplace_view in func.tags
    return tagged or _IDLE.fullmatch(func.overloadpacket.__name__) is not None
