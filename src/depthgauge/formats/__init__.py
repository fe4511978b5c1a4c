"""Floating-point formats: what they hold, what a rounding to them makes of values, and what it loses.

    >>> get("fp16").max
    65504.0
    >>> round(np.float32([0.1, 1e-8, 1e5]), "fp16")
    array([0.09997559, 0.        ,        inf], dtype=float32)

`round` gives the rounded values themselves, of an array or a tensor. An `ExponentHistogram` says what a format and any
loss scale lose without the values. No torch is imported: who rounds a tensor has it already.
"""

from __future__ import annotations

from depthgauge.formats.constants import BLOCKS, FORMATS, BlockFormat, Format, elementwise, get
from depthgauge.formats.histogram import (
    EDGES,
    SEGMENTS,
    Edge,
    ExponentHistogram,
    Fractions,
    cell_key,
    cell_of,
    cell_shares,
    fractions,
)
from depthgauge.formats.rounding import round  # noqa: A004 - always read with the module's name: formats.round

__all__ = [
    "BLOCKS",
    "EDGES",
    "FORMATS",
    "SEGMENTS",
    "BlockFormat",
    "Edge",
    "ExponentHistogram",
    "Format",
    "Fractions",
    "cell_key",
    "cell_of",
    "cell_shares",
    "elementwise",
    "fractions",
    "get",
    "round",
]
