"""Values of all replicas that a model takes for those of one.

A `Folded` tensor stands for one value a replica. A model that is called with folded parameters runs once for the whole
stack: each operation on them has a rule that folds the replicas into a dimension that the operation has anyway, and
what has no rule goes through `torch.func.vmap`.

    linear maps             batched matrix products
    convolution, pooling    replicas folded into the channels: grouped convolution, channels last in memory
    batch and group norm    replicas folded into the channels, running statistics moved in place
    attention, embedding    replicas folded into the batch, or into the vocabulary
"""

# ruff: noqa: ARG001, ARG005, PLR0917 # a rule takes what torch's function takes, and that function

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree

Rule = Callable[..., Any]

# Grouped convolution of groups so narrow, but not of single channels, falls out of oneDNN's fast kernels: with 3 to 16
# channels it takes up to 2.5 times as long as the separate ones.
FEW_CHANNELS = (2, 3)
_LAST = torch.channels_last


class Folded(Tensor):
    """One value a replica, to a model the value of one.

    Attributes:
        held: (R, *shape); or (B, R * C, H, W) where `channels`, channels last in memory, for images (B, C, H, W).
        replicas: R.
        channels: whether the replicas are folded into the channels.
    """

    held: Tensor
    replicas: int
    channels: bool

    @staticmethod
    def __new__(cls, held: Tensor, channels_of: int | None = None) -> Folded:
        """Fold (R, *shape), or (B, R * C, H, W) with `channels_of` R replicas."""
        shape = held.shape[1:]
        if channels_of is not None:
            shape = torch.Size((held.shape[0], held.shape[1] // channels_of, *held.shape[2:]))
        made: Folded = Tensor._make_wrapper_subclass(cls, shape, dtype=held.dtype, device=held.device)
        made.held, made.channels = held, channels_of is not None
        made.replicas = held.shape[0] if channels_of is None else channels_of
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """`Folded((16, 3), replicas=8)`: a model's own messages may show it."""
        return f"Folded({tuple(self.shape)}, replicas={self.replicas})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch's stub is of its own stand-in
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse what reaches a folded tensor past its rules."""
        raise NotImplementedError(f"{func} does not see the replicas of a folded tensor")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` for all replicas, by its rule or by vmap."""
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__
        rule = _RULES.get(name)
        if rule is not None:
            result = rule(func, *args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        elif name in _ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return _by_vmap(func, args, kwargs or {})


def rows(value: Tensor) -> Tensor:
    """The (R, *shape) of a folded tensor; any other as it is."""
    if not isinstance(value, Folded):
        return value
    if not value.channels:
        return value.held
    # By way of what is contiguous in memory, so that the gradient that comes back is channels last as well.
    return torch.unflatten(value.held.permute(0, 2, 3, 1), 3, (value.replicas, -1)).permute(3, 0, 4, 1, 2)


def _by_vmap(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    leaves, tree = _pytree.tree_flatten((args, kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Folded)]

    def of_replica(*own: Tensor) -> Any:
        filled = list(leaves)
        for place, value in zip(places, own, strict=True):
            filled[place] = value
        own_args, own_kwargs = _pytree.tree_unflatten(filled, tree)
        return func(*own_args, **own_kwargs)

    return _pytree.tree_map(Folded, vmap(of_replica)(*(rows(leaves[place]) for place in places)))


def _in_channels(value: Folded) -> Tensor:
    """Images as (B, R * C, H, W), channels last in memory; values of other dimensions likewise."""
    if value.channels:
        return value.held
    if value.held.dim() != 5:
        return value.held.transpose(0, 1).flatten(1, 2)
    return value.held.permute(1, 3, 4, 0, 2).flatten(3).contiguous().permute(0, 3, 1, 2)


def _of_channels(held: Tensor, replicas: int) -> Folded:
    return (
        Folded(held, replicas) if held.dim() == 4 else Folded(torch.unflatten(held, 1, (replicas, -1)).transpose(0, 1))
    )


def _joined(value: Tensor | None) -> Tensor | None:
    """(R, n, ...) as (R * n, ...), in the same memory where that can be."""
    return value.held.flatten(0, 1) if isinstance(value, Folded) else value


def _all_folded(*values: Tensor | None) -> bool:
    return all(value is None or isinstance(value, Folded) for value in values)


def _padded(value: Tensor, dims: int) -> Tensor:
    """The rows with ones after the replicas, so that `dims` dimensions of one replica broadcast."""
    missing = dims - value.dim()
    held = rows(value)
    if not missing or not isinstance(value, Folded):
        return held
    return held[(slice(None), *[None] * missing)]


def _elementwise(func: Rule, *args: Any, **kwargs: Any) -> Any:
    values = [arg for arg in args if isinstance(arg, Tensor)]
    folded = [value for value in values if isinstance(value, Folded)]
    if any(isinstance(value, Tensor) for value in kwargs.values()) or not folded:
        return NotImplemented
    dims = max(value.dim() for value in values)
    if all(value.channels if isinstance(value, Folded) else value.dim() == 0 for value in values):
        held = func(*(arg.held if isinstance(arg, Folded) else arg for arg in args), **kwargs)
        return Folded(held, folded[0].replicas)
    return Folded(func(*(_padded(arg, dims) if isinstance(arg, Tensor) else arg for arg in args), **kwargs))


def _linear(func: Rule, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not _all_folded(x, weight, bias) or x.dim() < 2:
        return NotImplemented
    held, matrix = rows(x), rows(weight).transpose(1, 2)
    flat = held.flatten(1, -2)
    out = torch.bmm(flat, matrix) if bias is None else torch.baddbmm(rows(bias).unsqueeze(1), flat, matrix)
    return Folded(out if held.dim() == 3 else torch.unflatten(out, 1, held.shape[1:-1]))


def _matmul(func: Rule, left: Tensor, right: Tensor) -> Any:
    dims = max(left.dim(), right.dim())
    if min(left.dim(), right.dim()) < 2:
        return NotImplemented
    return Folded(func(_padded(left, dims), _padded(right, dims)))


def _conv2d(
    func: Rule,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not _all_folded(x, weight, bias) or x.dim() != 4:
        return NotImplemented
    assert isinstance(x, Folded)
    settings = (stride, padding, dilation)
    if weight.shape[1] in FEW_CHANNELS and not x.is_cuda:
        biases = [None] * x.replicas if bias is None else rows(bias)
        each = zip(rows(x), rows(weight), biases, strict=True)
        outs = [func(own.contiguous(memory_format=_LAST), *filters, *settings, groups) for own, *filters in each]
        return Folded(torch.cat(outs, 1), x.replicas)
    held = func(_in_channels(x), _joined(weight), _joined(bias), *settings, groups * x.replicas)
    return Folded(held, x.replicas)


def _over_images(func: Rule, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What treats every channel of images by itself."""
    if not isinstance(x, Folded) or x.dim() != 4:
        return NotImplemented
    return Folded(func(_in_channels(x), *args, **kwargs), x.replicas)


def _batch_norm(
    func: Rule, x: Tensor, mean: Tensor | None, var: Tensor | None, weight: Any = None, bias: Any = None, **kwargs: Any
) -> Any:
    if not isinstance(x, Folded) or not _all_folded(mean, var, weight, bias):
        return NotImplemented
    statistics = [None if each is None else rows(each).view(-1) for each in (mean, var)]
    held = func(_in_channels(x), *statistics, _joined(weight), _joined(bias), **kwargs)
    return _of_channels(held, x.replicas)


def _group_norm(
    func: Rule, x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Any:
    if not isinstance(x, Folded) or not _all_folded(weight, bias):
        return NotImplemented
    held = func(_in_channels(x), groups * x.replicas, _joined(weight), _joined(bias), eps)
    return _of_channels(held, x.replicas)


def _layer_norm(
    func: Rule, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    if not _all_folded(x, weight, bias):
        return NotImplemented
    return Folded(_affine(func(rows(x), shape, None, None, eps), weight, bias))


def _rms_norm(
    func: Rule, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Any:
    if not _all_folded(x, weight):
        return NotImplemented
    return Folded(_affine(func(rows(x), shape, None, eps), weight, None))


def _affine(held: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The (R, ..., *shape) times weights, plus biases (R, *shape)."""
    scale, shift = (None if each is None else _padded(each, held.dim() - 1) for each in (weight, bias))
    if scale is None:
        return held
    return held * scale if shift is None else torch.addcmul(shift, held, scale)


def _masked_fill(func: Rule, x: Tensor, mask: Tensor, value: Any) -> Any:
    """By `where`, which reads and writes memory once."""
    if isinstance(value, Folded):
        return NotImplemented
    dims = max(x.dim(), mask.dim())
    held = _padded(x, dims)
    return Folded(torch.where(_padded(mask, dims), torch.as_tensor(value).to(held), held))


def _embedding(
    func: Rule,
    indices: Tensor,
    weight: Tensor,
    padding_idx: Any = None,
    max_norm: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not isinstance(weight, Folded) or padding_idx is not None or max_norm is not None:
        return NotImplemented
    if not isinstance(indices, Folded):
        return Folded(torch.unflatten(weight.held.index_select(1, indices.flatten()), 1, indices.shape))
    first = torch.arange(weight.replicas, device=weight.device) * weight.shape[0]
    shifted = indices.held + first.view(-1, *[1] * indices.dim())
    return Folded(func(shifted, weight.held.flatten(0, 1), None, None, *args, **kwargs))


def _attention(
    func: Rule, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout_p: float = 0.0, **kwargs: Any
) -> Any:
    mask = kwargs.pop("attn_mask", mask)
    folds = _all_folded(q, k, v) and not isinstance(mask, Folded) and (mask is None or mask.dim() == 2)
    if not folds or q.dim() < 3 or dropout_p or not q.dim() == k.dim() == v.dim():
        return NotImplemented
    held = func(*(rows(each).flatten(0, 1) for each in (q, k, v)), attn_mask=mask, **kwargs)
    return Folded(torch.unflatten(held, 0, rows(q).shape[:2]))


def _dim(value: Tensor, dim: int) -> int:
    """The place among the rows' dimensions of a replica's dimension."""
    return dim % value.dim() + 1


def _along(func: Rule, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> Any:
    """What works along one dimension that it is given first."""
    return Folded(func(rows(x), _dim(x, dim), *args, **kwargs))


def _between(func: Rule, x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    """What takes two dimensions."""
    return Folded(func(rows(x), _dim(x, start_dim), _dim(x, end_dim)))


def _reshape(func: Rule, x: Folded, *sizes: Any) -> Any:
    shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if not all(isinstance(size, int) for size in shape):
        return NotImplemented
    return Folded(rows(x).reshape(x.replicas, *shape))


def _permute(func: Rule, x: Tensor, *dims: Any) -> Any:
    order = tuple(dims[0]) if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return Folded(rows(x).permute(0, *(_dim(x, dim) for dim in order)))


def _parts(func: Rule, x: Tensor, size: Any, dim: int = 0) -> Any:
    return tuple(map(Folded, func(rows(x), size, _dim(x, dim))))


def _unbind(func: Rule, x: Tensor, dim: int = 0) -> Any:
    return tuple(map(Folded, rows(x).unbind(_dim(x, dim))))


def _select(func: Rule, x: Tensor, places: Any) -> Any:
    wanted = places if isinstance(places, tuple) else (places,)
    if not all(place is None or place is Ellipsis or isinstance(place, int | slice) for place in wanted):
        return NotImplemented
    return Folded(rows(x)[(slice(None), *wanted)])


def _reduce(func: Rule, x: Tensor, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    if dim is None:
        return NotImplemented if args or kwargs else Folded(func(rows(x).flatten(1), 1))
    dims = (dim,) if isinstance(dim, int) else dim
    return Folded(func(rows(x), [_dim(x, each) for each in dims], *args, **kwargs))


def _concatenate(func: Rule, values: Sequence[Tensor], dim: int = 0) -> Any:
    if not _all_folded(*values):
        return NotImplemented
    held = [rows(value) for value in values]
    return Folded(func(held, dim + 1 if dim >= 0 else dim))


def _dropout(func: Rule, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return NotImplemented if training and p else x


# Metadata, which a folded tensor answers as one replica's.
_ABOUT = frozenset(
    (
        *("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "is_sparse", "is_meta"),
        *("dim", "size", "numel", "nelement", "__len__", "is_floating_point", "is_complex", "element_size"),
        *("get_device", "is_contiguous", "ndimension", "is_nested", "is_quantized"),
    )
)
_ELEMENTWISE = (
    *("relu", "relu_", "tanh", "sigmoid", "gelu", "silu", "elu", "selu", "celu", "mish", "softplus", "softsign"),
    *("leaky_relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "exp", "log", "sqrt", "rsqrt"),
    *(
        "sin",
        "cos",
        "abs",
        "neg",
        "__neg__",
        "square",
        "erf",
        "add",
        "add_",
        "sub",
        "mul",
        "mul_",
        "div",
        "true_divide",
    ),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__rdiv__"),
    *("__div__", "pow", "__pow__", "clamp", "maximum", "minimum", "where", "reciprocal", "addcmul"),
    *("float", "double", "to", "detach", "clone"),
)
_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), _matmul),
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"), _over_images),
    **dict.fromkeys(("softmax", "log_softmax", "unflatten"), _along),
    **dict.fromkeys(("view", "reshape"), _reshape),
    **dict.fromkeys(("chunk", "split"), _parts),
    **dict.fromkeys(("cat", "concat", "stack"), _concatenate),
    **dict.fromkeys(("mean", "sum"), _reduce),
    "linear": _linear,
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "masked_fill": _masked_fill,
    "rms_norm": _rms_norm,
    "embedding": _embedding,
    "scaled_dot_product_attention": _attention,
    "flatten": _between,
    "transpose": _between,
    "permute": _permute,
    "squeeze": _along,
    "unbind": _unbind,
    "__iter__": lambda func, x: iter(_unbind(func, x)),
    "__getitem__": _select,
    "contiguous": lambda func, x, **kwargs: x,
    "dropout": _dropout,
}
