"""Checks of arguments that every function of the package shares, with one wording of the errors."""

from __future__ import annotations

import math
import operator
from typing import Any


def whole(name: str, value: Any, least: int = 1) -> int:
    """`value` as an int of at least `least`; ValueError otherwise."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name} is {value!r}, where a whole number >= {least} was expected")
    return number


def _real(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


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
