"""Values rounded to a format."""

from __future__ import annotations

import sys
from typing import Any, TypeVar, cast

import numpy as np

from depthgauge.formats.constants import Format, get
from depthgauge.formats.elements import round_elements

CHUNK = 2**15  # values of an array rounded at a time: their intermediate results stay in the cache

Values = TypeVar("Values")


def round(  # noqa: A001 - always read with the module's name: formats.round
    x: Values, fmt: str | Format, *, stochastic: Any = None, saturate: bool = False
) -> Values:
    """Values rounded to a format, to nearest with ties to even or stochastically, kept in the dtype they have.

    Subnormal numbers are rounded to, not flushed; NaN stays, and so does the sign of a zero. What lies beyond the
    format's range becomes infinity, in `float8_e4m3fn` (which has none) NaN: the definition of IEEE 754 and of Open
    Compute's FP8. torch's own conversion to `float8_e4m3fn` gives NaN or 448 by its version and device; `saturate`
    asks for the latter everywhere.

    Args:
        x: a numpy array of float16, float32 or float64, a number, or a torch tensor of any floating dtype, on any
            device. It is not changed, and gradients do not flow through.
        fmt: a format of `FORMATS`, or its name.
        stochastic: a `numpy.random.Generator` for arrays, a `torch.Generator` of the tensor's device for tensors. A
            value between two neighbours a < x < b of the format becomes b with probability (x - a) / (b - a), else a
            (Connolly, Higham & Mary 2021, "Stochastic rounding and its probabilistic backward error analysis", mode
            1); the probability is right to 2^-24, and for float64 to 2^-53. Beyond the largest value the next would be
            infinity.
        saturate: whether the largest value stands for what lies beyond it, infinities included.

    Returns:
        A new array, number or tensor of the same shape and dtype. A dtype narrower than the format can change its
        values once more: 65504 is 65536 in bfloat16, which float16 holds as infinity.

    Raises:
        ValueError: unknown format.
        TypeError: not floating-point values, or another library's generator.
    """
    fmt = get(fmt)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        result: Values = _round_tensor(torch, x, fmt, stochastic, saturate)
        return result
    array = np.asarray(x)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(
            f"round takes values of float16, float32 or float64, or a floating-point tensor, not {array.dtype}"
        )
    if stochastic is not None and not isinstance(stochastic, np.random.Generator):
        raise TypeError(f"an array is rounded with a numpy.random.Generator, not a {type(stochastic).__name__}")
    working = np.float64 if array.dtype.itemsize == 8 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        flat, rounded = array.reshape(-1), np.empty(array.size, array.dtype)
        for start in range(0, array.size, CHUNK):
            chunk = flat[start : start + CHUNK].astype(working, copy=False)
            rounded[start : start + CHUNK] = round_elements(chunk, fmt, stochastic, saturate)
    rounded = rounded.reshape(array.shape)
    same: Any = rounded if isinstance(x, np.ndarray) else type(x)(rounded[()])  # type: ignore[call-arg] # a number
    return cast("Values", same)


def _round_tensor(torch: Any, x: Any, fmt: Format, generator: Any, saturate: bool) -> Any:
    if not x.is_floating_point():
        raise TypeError(f"round takes values of floating point, not {x.dtype}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"a tensor is rounded with a torch.Generator, not a {type(generator).__name__}")
    with torch.no_grad():
        x = x.detach()
        native = torch.float16, torch.bfloat16, torch.float32
        to = getattr(torch, fmt.dtype)
        # Every torch rounds correctly from float32 to these; from float64 it rounds to float32 on the way.
        if generator is None and not saturate and fmt.name != "tf32" and to in native and x.dtype in native:
            return x.clone() if to == x.dtype else x.to(to).to(x.dtype)
        working = torch.float64 if x.dtype == torch.float64 else torch.float32
        return round_elements(x.to(working), fmt, generator, saturate).to(x.dtype)
