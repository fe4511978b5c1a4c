"""Products in the operators that torch's own counter of operations does not know.

Products of vectors and of sparse matrices, and operators that have whole layers inside: recurrent ones and attention,
as a device's library has them, of which autograd sees one call. `operations` counts with these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

Count = Callable[..., int]
"""An operator's arguments -> its products; a multiplication and an addition each."""


def stored(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that hold a tensor's numbers; itself as a rule."""
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in {torch.sparse_csr, torch.sparse_bsr}:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in {torch.sparse_csc, torch.sparse_bsc}:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    if tensor.layout is torch.jagged:  # not `values()`: below autograd it waits for itself where there is a gradient
        return (cast("Any", tensor)._values,)  # of torch's own subclass
    return (tensor.values(),) if tensor.is_nested else (tensor,)


_SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def is_sparse(tensor: object) -> bool:
    """Tell whether it is a tensor that stores only some of its numbers."""
    return isinstance(tensor, Tensor) and tensor.layout in _SPARSE


def _numbers(tensor: Tensor) -> int:
    return stored(tensor)[-1].numel()


def _rows(tensor: Tensor) -> int:
    """Vectors along the last dimension."""
    values = stored(tensor)[-1]
    return values.numel() // max(1, values.shape[-1])


def _of_matrices(left: Tensor, right: Tensor) -> int:
    """Products of two matrices of which either may be sparse: of each stored number with a row or column of the other.

    Where both are, the stored numbers of one are taken to be spread evenly over its rows.
    """
    if is_sparse(left):
        return int(_numbers(left) * _numbers(right) // max(1, right.shape[0]))
    return int(_numbers(right) * left.shape[0])


def _linear(inputs: Tensor, weight: Tensor, *_: object, **__: object) -> int:
    return _numbers(inputs) * int(weight.shape[0])


def _linear_backward(_inputs: Tensor, gradient: Tensor, weight: Tensor, wanted: Sequence[bool]) -> int:
    return sum(wanted[:2]) * _numbers(gradient) * int(weight.shape[-1])


def _trilinear(one: Tensor, two: Tensor, three: Tensor, *places: Any, **_: object) -> int:
    """Terms of the sum of products of three, each of which has dimensions put in at its places."""
    shapes = [list(each.shape) for each in (one, two, three)]
    for shape, added in zip(shapes, places, strict=False):
        for dim in sorted(added):
            shape.insert(dim, 1)
    return math.prod(max(sizes) for sizes in zip(*shapes, strict=True))


def _tbc(inputs: Tensor, weight: Tensor, _bias: Tensor, pad: int = 0) -> int:
    length = inputs.shape[0] + 2 * pad - weight.shape[0] + 1
    return length * int(inputs.shape[1]) * weight.numel()


SUMS: Mapping[Any, Count] = {
    torch.ops.aten.mv: lambda matrix, _vector, **_: _numbers(matrix),
    torch.ops.aten.addmv: lambda _self, matrix, _vector, **_: _numbers(matrix),
    torch.ops.aten.dot: lambda one, _other: int(one.numel()),
    torch.ops.aten.vdot: lambda one, _other: int(one.numel()),
    torch.ops.aten.addr: lambda _self, one, other, **_: int(one.numel() * other.numel()),
    torch.ops.aten.addbmm: lambda _self, one, other, **_: int(one.numel() * other.shape[-1]),
    torch.ops.aten._int_mm: lambda one, other, **_: int(one.numel() * other.shape[-1]),
    torch.ops.aten._addmm_activation: lambda _self, one, other, **_: int(one.numel() * other.shape[-1]),
    torch.ops.aten._sparse_addmm: lambda _self, one, other, **_: _of_matrices(one, other),
    torch.ops.aten._sparse_mm: lambda one, other, *_: _of_matrices(one, other),
    torch.ops.aten._sparse_sparse_matmul: _of_matrices,
    torch.ops.aten._trilinear: _trilinear,
    torch.ops.aten.conv_tbc: _tbc,
    torch.ops.aten.linear: _linear,  # of a nested tensor, as the next
    torch.ops.aten.linear_backward: _linear_backward,
}
"""Operators each of whose results is a sum of products."""

SPARSE: Mapping[Any, Count] = {
    torch.ops.aten.mm: lambda one, other, **_: _of_matrices(one, other),
    torch.ops.aten.addmm: lambda _self, one, other, **_: _of_matrices(one, other),
}
"""Operators that torch's counter takes for products of dense matrices, where one of them is sparse."""


def _recurrent(inputs: Tensor, weights: Sequence[Tensor], *_: object, **__: object) -> int:
    """Each step of each sequence meets each matrix of weights once."""
    return _rows(inputs) * sum(weight.numel() for weight in weights if weight.dim() > 1)


def _recurrent_backward(inputs: Tensor, weights: Sequence[Tensor], *others: Any, **_: object) -> int:
    """The gradient of what came, always, and that of the weights where it is wanted."""
    wanted = others[-1] if others and isinstance(others[-1], list | tuple) else (True,)
    return (1 + bool(wanted[-1])) * _recurrent(inputs, weights)


def _attention(query: Tensor, key: Tensor, width: int) -> int:
    """Scores and weighted sums of all sequences."""
    pairs = zip(_lengths(query), _lengths(key), strict=True)
    return 2 * width * sum(int(one) * int(other) for one, other in pairs)


def _lengths(tensor: Tensor) -> Sequence[Any]:
    if tensor.is_nested:
        return [each.shape[0] for each in tensor.unbind()]
    return [tensor.shape[1]] * int(tensor.shape[0])


def _encoder_layer(source: Tensor, width: int, *others: Any, **_: object) -> int:
    weights = [each for each in others if isinstance(each, Tensor) and each.dim() == 2]
    each_place = sum(weight.numel() for weight in weights[:4])
    return _rows(source) * each_place + _attention(source, source, width)


def _attention_layer(query: Tensor, key: Tensor, value: Tensor, width: int, *_: object, **__: object) -> int:
    places = 2 * _rows(query) + _rows(key) + _rows(value)
    return places * width**2 + _attention(query, key, width)


LAYERS: Mapping[Any, Count] = {
    torch.ops.aten.mkldnn_rnn_layer: lambda inputs, *others: _recurrent(inputs, others[:2]),
    torch.ops.aten.mkldnn_rnn_layer_backward: lambda inputs, *others: 2 * _recurrent(inputs, others[:2]),
    torch.ops.aten._cudnn_rnn: _recurrent,
    torch.ops.aten._cudnn_rnn_backward: _recurrent_backward,
    torch.ops.aten.miopen_rnn: _recurrent,
    torch.ops.aten.miopen_rnn_backward: _recurrent_backward,
    torch.ops.aten._transformer_encoder_layer_fwd: _encoder_layer,
    torch.ops.aten._native_multi_head_attention: _attention_layer,
}
"""Operators that are whole layers, many roundings deep."""
