"""Values rounded to a format."""

from __future__ import annotations

import sys
from typing import Any, SupportsIndex, TypeVar

import numpy as np

from depthgauge.formats.arguments import check_dense, kind
from depthgauge.formats.blocks import round_blocks
from depthgauge.formats.constants import BlockFormat, Format, get
from depthgauge.formats.elements import round_elements
from depthgauge.formats.working import copy, is_tensor

CHUNK = 2**15  # values of an array rounded at a time: their intermediate results stay in the cache

Values = TypeVar("Values")


def round(  # noqa: A001 - always read with the module's name: formats.round
    x: Values, fmt: str | Format, *, stochastic: Any = None, axis: int = -1, saturate: bool = False
) -> Values:
    """Values rounded to a format, to nearest with ties to even or stochastically, and kept in their own dtype.

    Small values round to subnormal ones and are not flushed; NaN stays, and so does the sign of a zero. What lies
    beyond the format's range becomes infinity, and NaN in `float8_e4m3fn`, which has none, as IEEE 754 defines it and
    OCP for its 8-bit formats where they do not saturate. torch's own conversion to `float8_e4m3fn` differs by version
    and device, and saturates on a CPU from torch 2.13; `saturate` does everywhere.

    Block formats give each block along `axis` its own scale; their elements always saturate. `mxfp8_e4m3` and
    `mxfp8_e5m2` follow OCP Microscaling Formats (MX) v1.0: 32 values share the power of two by which the largest of
    them comes into the elements' top binade. `nvfp4` follows appendix B of NVIDIA's "Pretraining Large Language Models
    with NVFP4" (2025): 16 values share a scale of `float8_e4m3fn`, and all scales of `x` one of float32; without the
    latter it is `dataclasses.replace(formats.get("nvfp4"), tensor_scale=False)`. A NaN or an infinity makes all of its
    block NaN.

    Args:
        x: a numpy array of float16, float32 or float64, a number, or a torch tensor of any floating dtype, on any
            device. It is not changed, and no gradient flows through.
        fmt: a format of `FORMATS` or `BLOCKS`, or its name.
        stochastic: a `numpy.random.Generator` for an array, a `torch.Generator` of its device for a tensor. A value
            x between neighbours a < b of the format becomes b with probability (x - a) / (b - a), else a: mode 1 of
            Connolly, Higham & Mary, "Stochastic rounding and its probabilistic backward error analysis" (2021). The
            probability is right to 2^-24, for float64 to 2^-53. Above the largest value b is infinity. Scales of
            blocks are rounded to nearest.
        axis: the axis that a block format divides; the last block may be shorter than the others. Others ignore it.
        saturate: whether the largest value stands for what lies beyond it, infinity included.

    Returns:
        A new array, number or tensor of the same shape and dtype. A dtype of smaller range than the format may round
        once more: 65504 is 65536 in bfloat16, which float16 holds as infinity.

    Raises:
        ValueError: unknown format, no such axis, or a generator of another device.
        TypeError: values that are not of floating point, are masked or stand in no dense memory, or another library's
            generator.
    """
    fmt = get(fmt)
    if not isinstance(saturate, bool | np.bool_):
        raise TypeError(f"saturate is {kind(saturate)}, where True or False was expected")
    rounded: Any
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError("a masked array cannot be rounded, as it has no values where it is masked: give x.filled(...)")
    if is_tensor(x):
        rounded = _round_tensor(x, fmt, stochastic, axis, saturate)
    elif isinstance(x, (np.ndarray, np.floating, float)):
        array = np.asarray(x)
        rounded = _round_array(array, fmt, stochastic, axis, saturate).reshape(array.shape)
        rounded = rounded if isinstance(x, np.ndarray) else type(x)(rounded[()])
    else:
        raise TypeError(f"only an array, a tensor or a number of floating point can be rounded, not {kind(x)}")
    result: Values = rounded
    return result


def _round_array(x: Any, fmt: Format, generator: Any, axis: int, saturate: bool) -> Any:
    if x.dtype.kind != "f" or x.dtype.itemsize > 8:
        raise TypeError(f"only an array of float16, float32 or float64 can be rounded, not {x.dtype}")
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise TypeError(f"an array is rounded with a numpy.random.Generator, not {kind(generator)}")
    working = np.float64 if x.dtype.itemsize == 8 else np.float32
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        if isinstance(fmt, BlockFormat):
            return _blocks(x.astype(working), fmt, _axis(axis, x.ndim), generator).astype(x.dtype, copy=False)
        flat, rounded = x.reshape(-1), np.empty(x.size, x.dtype)
        for start in range(0, x.size, CHUNK):
            part = slice(start, start + CHUNK)
            rounded[part] = round_elements(flat[part].astype(working, copy=False), fmt, generator, saturate)
    return rounded


def _round_tensor(x: Any, fmt: Format, generator: Any, axis: int, saturate: bool) -> Any:
    torch = sys.modules["torch"]
    if not x.is_floating_point() or x.dtype is getattr(torch, "float4_e2m1fn_x2", None):  # two in a byte
        raise TypeError(f"only a tensor of floating point can be rounded, not {x.dtype}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"a tensor is rounded with a torch.Generator, not {kind(generator)}")
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(f"a tensor on {x.device} is rounded with a generator there, not on {generator.device}")
    with torch.no_grad():
        x = x.detach()
        working = torch.float64 if x.dtype == torch.float64 else torch.float32
        # torch converts among these three correctly; from float64 it rounds to float32 on the way, and to eight bits it
        # saturates or not by its version, its device and whether it compiles.
        native, to = (torch.float16, torch.bfloat16, torch.float32), getattr(torch, fmt.dtype, None)
        if generator is None and not saturate and fmt.name != "tf32" and to in native and x.dtype in native:
            return x.clone() if to == x.dtype else x.to(to).to(x.dtype)
        check_dense("x", x)
        values = x.to(working).resolve_neg()
        if isinstance(fmt, BlockFormat):
            return torch.empty_like(x).copy_(_blocks(values, fmt, _axis(axis, x.dim()), generator))
        return round_elements(values, fmt, generator, saturate).to(x.dtype)


def _axis(axis: Any, dimensions: int) -> int:
    """The axis as an int; a single number has one axis."""
    count = max(dimensions, 1)
    if isinstance(axis, bool) or not isinstance(axis, SupportsIndex) or not -count <= axis.__index__() < count:
        raise ValueError(f"axis is {axis!r}, where a whole number from {-count} to {count - 1} was expected")
    return axis.__index__()


def _blocks(values: Any, fmt: BlockFormat, axis: int, generator: Any) -> Any:
    return round_blocks(values, fmt, axis, generator) if min(values.shape, default=1) else copy(values)
