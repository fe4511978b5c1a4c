"""Checks of arguments, with one wording of the errors."""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthgauge.formats.working import is_tensor


def kind(value: object) -> str:
    """The kind of a value, as errors name it: `a list`, `a numpy.Generator`, `the class Linear`."""
    if value is None:
        return "None"
    cls = value if isinstance(value, type) else type(value)
    package = cls.__module__.partition(".")[0]
    name = cls.__qualname__ if package == "builtins" else f"{package}.{cls.__qualname__}"
    article = "the class" if cls is value else "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name}"


def real(value: Any) -> float:
    """`value` as a float; NaN where it is no number, and where no float holds it."""
    if isinstance(value, str | bytes):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is torch's, of several numbers
        return math.nan


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`; ValueError otherwise."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except (TypeError, RuntimeError):  # the last is torch's, of a tensor without numbers
        number = least - 1
    if number < least:
        raise ValueError(f"{name} is {value!r}, where a whole number >= {least} was expected")
    return number


def check_dense(name: str, tensor: Any) -> None:
    """Raise TypeError where a tensor's numbers do not lie in memory by its shape."""
    if tensor.is_nested or tensor.layout is not sys.modules["torch"].strided:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"{name} is a {layout} tensor, where a dense one was expected")


def numbers(name: str, values: Any, *, imaginary: bool = False) -> NDArray[Any]:
    """`values` as a numpy array of real numbers, or of complex ones; TypeError where they are none."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose hidden values are no numbers: give x.compressed()")
    if is_tensor(values):
        values = _of_tensor(name, values)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {kind(values)} of which numpy makes no array of numbers") from None
    foreign = array.dtype.kind == "V" and not issubclass(array.dtype.type, np.void)  # bfloat16 of another package
    if array.dtype.kind not in ("biufc" if imaginary else "biuf") and not foreign:
        what = f"an array of {array.dtype}" if isinstance(values, np.ndarray) else kind(values)
        raise TypeError(f"{name} is {what}, where {'' if imaginary else 'real '}numbers were expected")
    return array


def _of_tensor(name: str, tensor: Any) -> NDArray[Any]:
    check_dense(name, tensor)
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device, without values")
    torch = sys.modules["torch"]
    wide = torch.complex128 if tensor.is_complex() else torch.float64 if tensor.is_floating_point() else tensor.dtype
    array: NDArray[Any] = tensor.detach().to("cpu", wide).resolve_conj().resolve_neg().numpy()
    return array


def integers(name: str, values: Any, least: int = -(2**31), greatest: int = 2**63 - 1) -> NDArray[np.int64]:
    """`values` as an array of int64 from `least` to `greatest`; TypeError or ValueError otherwise."""
    array = numbers(name, values)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} are of {array.dtype}, where whole numbers were expected")
    if array.size and not (array.min() >= least and array.max() <= greatest):
        found = f"{array.min()} to {array.max()}"
        raise ValueError(f"{name} are from {found}, where whole numbers from {least} to {greatest} were expected")
    return array.astype(np.int64, copy=False)
