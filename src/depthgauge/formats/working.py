"""Working precisions: float32 and float64 values of numpy and torch, and their bits, under one set of names."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Working:
    """The working precision of an array or tensor, whose bits are read as integers of the same width.

    Attributes:
        library: numpy or torch.
        integers: the library's signed integer type of that width.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the stored significand.
    """

    library: Any
    integers: Any
    exponent_bits: int
    mantissa_bits: int

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return math.ldexp(2 - 2.0**-self.mantissa_bits, (1 << (self.exponent_bits - 1)) - 1)

    @classmethod
    def of(cls, values: Any) -> Working:
        """The working precision of an array or tensor of float32 or float64."""
        library = np if isinstance(values, np.ndarray) else sys.modules["torch"]
        if values.dtype.itemsize == 4:
            return cls(library, library.int32, 8, 23)
        return cls(library, library.int64, 11, 52)

    def binade(self, magnitude: Any) -> Any:
        """The largest power of two not above each magnitude; 0 for subnormal numbers, infinity for NaN."""
        mask = ((1 << self.exponent_bits) - 1) << self.mantissa_bits
        return (magnitude.view(self.integers) & mask).view(magnitude.dtype)

    def with_sign(self, magnitude: Any, values: Any) -> Any:
        """The magnitudes, changed in place, with the signs of the values."""
        bits = magnitude.view(self.integers)
        bits |= values.view(self.integers) & -(1 << (self.exponent_bits + self.mantissa_bits))
        return magnitude


def is_tensor(x: object) -> bool:
    """Tell a torch tensor; nobody has one who has not imported torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def copy(values: Any) -> Any:
    """The same values in memory of their own."""
    return values.copy() if isinstance(values, np.ndarray) else values.clone()


def fill(values: Any, where: Any, value: float) -> None:
    """Set values, in place, where the mask says so."""
    if isinstance(values, np.ndarray):
        np.copyto(values, value, where=where)
    else:
        values.masked_fill_(where, value)


def row_maxima(values: Any) -> Any:
    """The largest magnitude of each row of a matrix, as a column; NaN where a row holds one."""
    if isinstance(values, np.ndarray):  # max(axis=1) starts anew for each row, which is slow for short rows
        starts = np.arange(0, values.size, values.shape[1])
        return np.maximum.reduceat(abs(values).reshape(-1), starts)[:, np.newaxis]
    return values.abs().amax(1, keepdim=True)


def uniform(like: Any, generator: Any) -> Any:
    """Numbers uniform in [0, 1), of the shape, precision and device of the values."""
    if isinstance(like, np.ndarray):
        return generator.random(like.shape, dtype=like.dtype)
    return sys.modules["torch"].rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)
