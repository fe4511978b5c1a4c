"""Checks of arguments that every function of the package shares, with one wording of the errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthgauge.formats.arguments import numbers as _numbers
from depthgauge.formats.arguments import real as _real
from depthgauge.formats.arguments import whole as whole  # noqa: PLC0414 - handed on


def finite(name: str, value: Any) -> float:
    """`value` as a finite float; ValueError otherwise."""
    number = _real(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}, where a finite number was expected")
    return number


def non_negative(name: str, value: Any) -> float:
    """`value` as a finite float >= 0; ValueError otherwise."""
    number = _real(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} is {value!r}, where a finite number >= 0 was expected")
    return number


def positive(name: str, value: Any) -> float:
    """`value` as a finite float > 0; ValueError otherwise."""
    number = _real(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} is {value!r}, where a finite number > 0 was expected")
    return number


def reals(name: str, values: Any) -> NDArray[np.float64]:
    """`values` as an array of float64; TypeError where they are no real numbers."""
    return np.asarray(_numbers(name, values), dtype=np.float64)
