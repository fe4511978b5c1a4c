"""Dependence of an example's output on the examples that share its batch.

    precision.batch_invariance(model, x)        # k, equal, largest_ulp, note

A sum of products has the same terms in every batch; which kernel adds them up, and in which order, depends on the size.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from depthgauge import nested
from depthgauge.foreign import describe_error
from depthgauge.formats.arguments import check_dense, kind
from depthgauge.nested import describe
from depthgauge.precision import checks
from depthgauge.precision.arguments import Arguments
from depthgauge.precision.passage import Side
from depthgauge.probe.hooks import paused

_BITS = {
    torch.float8_e4m3fn: torch.int8, torch.float8_e5m2: torch.int8,
    torch.float8_e4m3fnuz: torch.int8, torch.float8_e5m2fnuz: torch.int8,
    torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64,
}  # fmt: skip


def batch_invariance(module: nn.Module, inputs: Any, *, seed: int = 0) -> pd.DataFrame:
    """Hold the outputs of the first k examples alone against the first k of the whole batch's.

    Inputs are cut along their first dimension, an output along each dimension that is longer with the whole batch by
    the ratio of the batches: the second of an RNN's hidden states, both of a matrix of similarities. The module runs
    without gradients, in the mode it is in: batch normalization in training mode, whose outputs do depend on the batch,
    gives large distances; dropout draws from the same seed each time, but other numbers for other sizes. Each run
    begins with what the module had before; it is left as it was, and a record that is open (`probe.track`) sees
    nothing.

    Args:
        module: any module.
        inputs: a tensor, a tuple of arguments, or a mapping of arguments by name, on the module's device.
        seed: of what the module draws.

    Returns:
        One row a k, 1 to 4 and powers of two with their neighbours, up to the whole batch: `k`; `equal`, whether every
        floating-point output has the same bits (NaN is equal to NaN, and 0 to -0 is not); `largest_ulp`, the largest
        distance in units in the last place of the output's dtype (see `ulp_distance`). It is infinite where one alone
        is not finite, or the module raises on so few, as batch normalization in training does on one; NaN where there
        is no output to be compared. `note` says what was not compared and why, and which outputs have no dimension of
        the batch's: these are compared as they are.

    Raises:
        ValueError: inputs without a first dimension in common, or without values; a module without values.
        TypeError: what is no module, inputs that the module does not take, sparse and nested tensors.
        Exception: what the module raises on the whole batch.
    """
    checks.check_module("module", module)
    checks.check_batch("inputs", inputs, dense=True)
    checks.check_call(module, inputs)
    if isinstance(module, torch.jit.ScriptModule):
        raise TypeError("module is one of torch.jit, whose weights cannot be lent: give the one that was scripted")
    arguments = Arguments.of(inputs)
    count = nested.rows(tuple(arguments))
    if not count:
        raise ValueError("the inputs have no first dimension in common, which would be that of the examples")
    with torch.inference_mode(False), paused():
        whole = _outputs(module, arguments, seed)
        rows = [{"k": k, **_row(module, arguments, seed, k, whole)} for k in sizes(count)]
    return pd.DataFrame(rows, columns=["k", "equal", "largest_ulp", "note"])


def _row(module: nn.Module, arguments: Arguments, seed: int, k: int, whole: dict[str, Tensor]) -> dict[str, Any]:
    try:
        alone = _outputs(module, Arguments(*nested.first(tuple(arguments), k)), seed)
    except Exception as error:  # noqa: BLE001 - what ran with all examples does not with these: it depends on the batch
        return {"equal": False, "largest_ulp": float("inf"), "note": f"it raised {describe_error(error)}"}
    return _compared(alone, whole, k, nested.rows(tuple(arguments)) or 0)


def sizes(count: int) -> list[int]:
    """1 to 4, powers of two and their neighbours, and the whole batch."""
    powers = [2**power for power in range(count.bit_length() + 1)]
    near = {k + by for k in powers for by in (-1, 0, 1)}
    return sorted(k for k in {1, 2, 3, 4, *near, count} if 1 <= k <= count)


def _outputs(module: nn.Module, arguments: Arguments, seed: int) -> dict[str, Tensor]:
    return Side(module, arguments, seed).run(lambda _edge, _maker, _direction, tensor: tensor, {}, gradients=False)


def _compared(part: dict[str, Tensor], whole: dict[str, Tensor], k: int, count: int) -> dict[str, Any]:
    equal, distances, notes = [], [], []
    if not part and not whole:
        notes.append("the output holds no floating-point tensor that can be seen")
    for place in dict.fromkeys((*whole, *part)):
        if place in part and place in whole:
            found, note = _nearest(part[place], whole[place], k, count)
        else:
            found, note = None, "it is not there in every batch"
        equal.append(found is not None and found[0])
        distances += [] if found is None else [found[1]]
        notes += [f"output {place}: {note}" if place else f"output: {note}"] if note else []
    largest = max(distances, default=math.nan)
    return {"equal": bool(equal) and all(equal), "largest_ulp": largest, "note": "; ".join(notes)}


def _nearest(a: Tensor, b: Tensor, k: int, count: int) -> tuple[tuple[bool, float] | None, str]:
    """Whether an output of k examples has the bits of the whole batch's, and their distance; and what is to be said."""
    if a.dtype != b.dtype or a.dim() != b.dim():
        return None, f"{describe(a)} with {k} examples, {describe(b)} with {count}: not compared"
    grown = [axis for axis in range(a.dim()) if a.shape[axis] != b.shape[axis]]
    if any(a.shape[axis] * count != b.shape[axis] * k for axis in grown):
        return None, f"its shape is {tuple(a.shape)} with {k} examples, {tuple(b.shape)} with {count}: not compared"
    several = [axis for axis in grown if a.shape[axis] != k]
    notes = [f"dimension {axis} holds several values of each example, in the order that is nearer" for axis in several]
    if not grown and k < count:
        notes.append("no dimension is the batch's: compared as it is")
    cuts = [b]
    for axis in grown:
        cuts = [cut for each in cuts for cut in _cuts(each, axis, k, count)]
    return min((_distance(a, cut) for cut in cuts), key=lambda found: found[1]), "; ".join(notes)


def _cuts(whole: Tensor, axis: int, k: int, count: int) -> list[Tensor]:
    """The first examples along a dimension, where each has one value; else example by example, and side by side."""
    shape, values = whole.shape, whole.shape[axis] // count
    by_example = whole.narrow(axis, 0, values * k)
    side_by_side = (
        whole.reshape(*shape[:axis], values, count, *shape[axis + 1 :]).narrow(axis + 1, 0, k).flatten(axis, axis + 1)
    )
    return [by_example] if values == 1 else [by_example, side_by_side]


def _distance(a: Tensor, b: Tensor) -> tuple[bool, float]:
    distance, bits = ulp_distance(a, b), _BITS[a.dtype]
    same = (a.contiguous().view(bits) == b.contiguous().view(bits)) | (a.isnan() & b.isnan())
    return bool(same.all()), float(distance.max()) if distance.numel() else 0.0


def ulp_distance(a: Tensor, b: Tensor) -> Tensor:
    """Number of values of the dtype between two, one of them counted; float64, any shape.

    Values are counted through 0, so that the smallest negative and the smallest positive one are 2 apart; 0 and -0 are
    0 apart. Infinities and NaN are 0 from themselves and infinitely far from all else.

    Args:
        a: floating-point values.
        b: of the same shape and dtype, on the same device.

    Raises:
        TypeError: what is no dense tensor of floating-point values.
        ValueError: two of other shapes, dtypes or devices.
    """
    _check_pair(a, b)
    bits = _BITS[a.dtype]

    def place(x: Tensor) -> Tensor:
        whole = x.contiguous().resolve_neg().view(bits).to(torch.int64)
        return torch.where(whole >= 0, whole, torch.iinfo(bits).min - whole)

    first, second = place(a), place(b)
    # The distance of 64-bit values of opposite signs needs 65 bits: float64 holds it, rounded.
    distance = torch.where(
        (first < 0) == (second < 0), (first - second).abs().double(), (first.double() - second.double()).abs()
    )
    x, y = a.double(), b.double()
    finite = x.isfinite() & y.isfinite()
    same = (x == y) | (x.isnan() & y.isnan())
    return torch.where(finite | same, torch.where(finite, distance, 0.0), float("inf"))


def _check_pair(a: Tensor, b: Tensor) -> None:
    for name, tensor in (("a", a), ("b", b)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {kind(tensor)}, where a tensor was expected")
        check_dense(name, tensor)
        if tensor.dtype not in _BITS:
            raise TypeError(f"{name} is of {tensor.dtype}, where a floating-point dtype was expected")
    first_kind, second_kind = ((tuple(x.shape), str(x.dtype), str(x.device)) for x in (a, b))
    if first_kind != second_kind:
        raise ValueError(f"a is {' '.join(map(str, first_kind))} and b {' '.join(map(str, second_kind))}, not alike")
