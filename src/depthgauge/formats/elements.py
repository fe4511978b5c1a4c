"""The rounding of each element by itself, on numpy arrays and torch tensors alike.

Everything here works on values in their working precision, float32 or float64, whose bits are read as integers of the
same width. Between 2^e and 2^(e+1) the numbers of a format are the multiples of q = 2^(e-m), below its smallest normal
value those of its smallest subnormal one. Adding 1.5 x 2^w q, w the working precision's mantissa bits, and taking it
away again leaves the nearest multiple of q, ties to even: the sum has room for no more.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthgauge.formats.constants import Format


@dataclass(frozen=True)
class Working:
    """A working precision.

    Attributes:
        library: numpy or torch.
        integers: the library's signed integer type of the same width.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the stored significand.
    """

    library: Any
    integers: Any
    exponent_bits: int
    mantissa_bits: int

    @classmethod
    def of(cls, values: Any) -> Working:
        """The working precision of an array or tensor of float32 or float64."""
        library = np if isinstance(values, np.ndarray) else sys.modules["torch"]
        if values.dtype.itemsize == 4:
            return cls(library, library.int32, 8, 23)
        return cls(library, library.int64, 11, 52)

    @property
    def exponent_mask(self) -> int:
        """The bits of the exponent field."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def sign_mask(self) -> int:
        """The sign bit, as a signed integer."""
        return -(1 << (self.exponent_bits + self.mantissa_bits))

    def binade(self, magnitude: Any) -> Any:
        """The largest power of two that is not above each magnitude; 0 for subnormal numbers, infinity for NaN."""
        return (magnitude.view(self.integers) & self.exponent_mask).view(magnitude.dtype)

    def with_sign(self, magnitude: Any, values: Any) -> Any:
        """The magnitudes, changed in place, with the signs of the values."""
        bits = magnitude.view(self.integers)
        bits |= values.view(self.integers) & self.sign_mask
        return magnitude


def round_elements(values: Any, fmt: Format, generator: Any = None, saturate: bool = False) -> Any:
    """Values of float32 or float64 rounded to a format, as a new array or tensor; see `depthgauge.formats.round`."""
    working = Working.of(values)
    if saturate:
        most = fmt.max if fmt.exponent_bits <= working.exponent_bits else math.inf
        values = working.library.clip(values, -most, most)
    if fmt.mantissa_bits >= working.mantissa_bits:
        return values + 0.0 if saturate else _copy(values)
    if fmt.exponent_bits >= working.exponent_bits:
        return _round_bits(values, fmt, working, generator)
    magnitude = abs(values)
    binade = working.binade(magnitude)
    working.library.clip(binade, fmt.smallest_normal, 2.0 ** math.frexp(fmt.max)[1], out=binade)
    if generator is None:
        _nearest(magnitude, binade, fmt, working)
    else:
        _stochastic(magnitude, binade, fmt, working, uniform(values, generator))
    if not saturate:
        _fill(magnitude, magnitude > fmt.max, math.inf if fmt.has_infinity else math.nan)
    return working.with_sign(magnitude, values)


def _nearest(magnitude: Any, binade: Any, fmt: Format, working: Working) -> None:
    binade *= 1.5 * 2.0 ** (working.mantissa_bits - fmt.mantissa_bits)
    magnitude += binade
    magnitude -= binade


def _stochastic(magnitude: Any, binade: Any, fmt: Format, working: Working, dice: Any) -> None:
    library = working.library
    library.clip(magnitude, 0, 2.0 ** math.frexp(fmt.max)[1], out=magnitude)
    binade *= 2.0**-fmt.mantissa_bits
    magnitude /= binade
    down = library.floor(magnitude)
    magnitude -= down
    dice -= magnitude
    library.floor(dice, out=dice)  # -1 where the dice fell below the distance, else 0
    down -= dice
    library.multiply(down, binade, out=magnitude)


def _round_bits(values: Any, fmt: Format, working: Working, generator: Any) -> Any:
    """Round to a format with the exponents of the working precision: its bits are the leading ones."""
    dropped = working.mantissa_bits - fmt.mantissa_bits
    bits = values.view(working.integers)
    if generator is None:
        near = bits >> dropped
        near &= 1
        near += 2 ** (dropped - 1) - 1
    else:
        near = _integers(uniform(values, generator) * 2.0**dropped)
    near += bits
    near &= -(2**dropped)
    near = near.view(values.dtype)
    _fill(near, values != values, math.nan)  # noqa: PLR0124 - true of NaN
    return near


def _copy(values: Any) -> Any:
    return values.copy() if isinstance(values, np.ndarray) else values.clone()


def _fill(values: Any, where: Any, value: float) -> None:
    if isinstance(values, np.ndarray):
        np.copyto(values, value, where=where)
    else:
        values.masked_fill_(where, value)


def _integers(values: Any) -> Any:
    return values.astype(np.int32) if isinstance(values, np.ndarray) else values.int()


def uniform(like: Any, generator: Any) -> Any:
    """Numbers uniform in [0, 1) of that shape, precision and device."""
    if isinstance(like, np.ndarray):
        return generator.random(like.shape, dtype=like.dtype)
    return sys.modules["torch"].rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
