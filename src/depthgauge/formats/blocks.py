"""The rounding of blocks of values that share a scale.

A block's scale follows from its largest magnitude; its elements are then rounded in units of the scale, and saturate.
Definitions leave open what a NaN or an infinity does. Here, as in torchao, it makes the scale NaN, and with it the
block.
"""

from __future__ import annotations

import math
from typing import Any

from depthgauge.formats.constants import BlockFormat, get
from depthgauge.formats.elements import round_elements
from depthgauge.formats.working import Working, fill, row_maxima


def round_blocks(values: Any, fmt: BlockFormat, axis: int, generator: Any = None) -> Any:
    """Values of float32 or float64 rounded to a block format along an axis; see `depthgauge.formats.round`.

    Blocks start at the axis' beginning; the last of them holds what is left. None goes beyond the axis.
    """
    library = Working.of(values).library
    moved = library.moveaxis(values.reshape(values.shape or (1,)), axis, -1)
    length = moved.shape[-1]
    block = min(fmt.block, length)
    rows = moved.reshape(-1, length)
    if length % block:
        rows = library.concatenate([rows, library.zeros_like(rows[:, : -length % block])], axis=1)
    rounded = _round_rows(rows.reshape(-1, block), fmt, generator)
    rounded = rounded.reshape(rows.shape)[:, :length].reshape(moved.shape)
    return library.moveaxis(rounded, -1, axis).reshape(values.shape)


def _round_rows(values: Any, fmt: BlockFormat, generator: Any) -> Any:
    """A matrix rounded, each of its rows a block."""
    largest = row_maxima(values)
    lost = ~(largest <= Working.of(values).largest)
    fill(largest, lost, 0.0)
    encode, *decode = _powers_of_two(largest, fmt) if fmt.scale == "e8m0" else _two_levels(largest, fmt)
    fill(encode, lost, math.nan)
    rounded = round_elements(values * encode, fmt.element, generator, saturate=True)
    for factor in decode:
        rounded *= factor
    return rounded


def _powers_of_two(largest: Any, fmt: BlockFormat) -> tuple[Any, Any]:
    """Factor to the elements' units, and the one back, by section 6.3 of OCP Microscaling Formats (MX) v1.0.

    The scale is the largest power of two not above the block's maximum, over the largest power of two of the elements,
    within the range of E8M0.
    """
    working = Working.of(largest)
    scale = working.binade(largest)
    scale *= 2.0 ** (1 - math.frexp(fmt.element.max)[1])
    working.library.clip(scale, 2.0**-127, 2.0**127, out=scale)
    fill(scale, largest == 0, 1.0)
    return 1.0 / scale, scale


def _two_levels(largest: Any, fmt: BlockFormat) -> tuple[Any, ...]:
    """Factor to the elements' units, and the two back, by appendix B of "Pretraining LLMs with NVFP4" (NVIDIA 2025).

    Scales are float8_e4m3fn, and one of float32 for the whole tensor puts the largest of them at 448, the end of their
    range. The latter is left out, as 1, where the format says so.
    """
    working, e4m3, float32 = Working.of(largest), get("float8_e4m3fn"), get("float32")
    tensor = working.library.ones_like(largest[:1])
    if fmt.tensor_scale:
        reach = working.library.amax(largest, keepdims=True, axis=0)
        fill(reach, reach == 0, fmt.element.max * e4m3.max)
        tensor = round_elements(fmt.element.max * e4m3.max / reach, float32, saturate=True)
    back = round_elements(1.0 / tensor, float32, saturate=True)
    scale = round_elements(largest / fmt.element.max * tensor, e4m3, saturate=True)
    encode = round_elements(1.0 / (scale * back), float32, saturate=True)
    return encode, scale, back
