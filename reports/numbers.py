"""Numbers as a reader sees them: as many digits as the interval warrants, and no more.

    interval(0.51234, 0.4991, 0.5257)   0.512 [0.499, 0.526]
    interval(2.04e-10, 1.9e-10, 2.2e-10)   (2.04 [1.90, 2.20]) × 10⁻¹⁰
    number(float("inf"))   ∞
    quantity(0.008312, "s")   8.31 ms

An interval is always printed by its two ends: `±` would hide that most of ours are not symmetric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

NOTHING = "–"

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PLAIN = range(-3, 6)  # decimal exponents that are read more easily without a power of ten
_PREFIXES = {-3: "n", -2: "µ", -1: "m", 0: "", 1: "k", 2: "M", 3: "G", 4: "T"}
_MOST = 15  # decimal digits that a float64 holds
_ROUNDING = 1e-13  # of a number: what some hundred float64 roundings may add up to


def number(value: float | None, digits: int = 4) -> str:
    """`value` to at most `digits` significant digits; `–` for None, and NaN and ∞ by name.

    Digits before the decimal point are never rounded away.
    """
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return _special(value)
    if value == 0:
        return "0"
    exponent = _exponent(value, digits)
    if exponent in _PLAIN:
        return _trim(_fixed(value, max(digits - 1 - exponent, 0)))
    return _trim(_fixed(_mantissa(value, exponent), digits - 1)) + _power(exponent)


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """`value` with the prefix of its unit that leaves one to three digits before the point: `8.31 ms`, `140 GB/s`."""
    if value is None or not math.isfinite(value) or value == 0:
        return f"{number(value)} {unit}" if value is not None else NOTHING
    step = min(max(_exponent(value, digits) // 3, -3), 4)
    mantissa = _mantissa(value, 3 * step)
    decimals = max(digits - 1 - _exponent(mantissa, digits), 0)
    return f"{_fixed(mantissa, decimals)} {_PREFIXES[step]}{unit}"


def interval(observed: float | None, low: float | None, high: float | None) -> str:
    """`observed [low, high]`, all three to the decimal place that the interval resolves.

    The place is that of the second digit of the interval's width (of its nearer side, where it is lopsided). Ends of
    one sign that lie a factor of 100 or more apart belong to a logarithmic scale: they get their own digits each. An
    interval that is no wider than the rounding of its own float64 numbers has no width. One that reaches from 0 or
    minus infinity to infinity says nothing: `observed [no bounds]`. A number without one has none: `observed [no
    interval]`.
    """
    if low is None and high is None:
        return number(observed)
    none = all(end is not None and math.isnan(end) for end in (low, high))
    if none and observed is not None and not math.isnan(observed):
        return f"{number(observed)} [no interval]"
    if low in {0.0, -math.inf} and high == math.inf:
        return f"{number(observed)} [no bounds]"
    values = (observed, low, high)
    finite = [abs(value) for value in values if value is not None and math.isfinite(value)]
    width = _resolved_width(observed, low, high)
    if not finite or not _ROUNDING * max(finite) < width < math.inf or _logarithmic(values):
        return _bracket(number(value) for value in values)
    exponent = _exponent(max(finite), _MOST)
    decimals = min(1 - math.floor(math.log10(width)), _MOST - 1 - exponent)
    if exponent in _PLAIN:
        return _bracket(_place(value, 0, max(decimals, 0)) for value in values)
    return f"({_bracket(_place(value, exponent, decimals + exponent) for value in values)}){_power(exponent)}"


def aligned(values: Sequence[float]) -> list[str]:
    """A column of numbers, to one decimal place where they lie close enough together for that."""
    finite = [value for value in values if math.isfinite(value) and value != 0]
    if not finite:
        return [number(value) for value in values]
    exponents = [_exponent(value, 4) for value in finite]
    least, most = min(exponents), max(exponents)
    if least not in _PLAIN or most not in _PLAIN or most - least > 3:
        return [number(value) for value in values]
    whole = all(value.is_integer() for value in finite)
    decimals = 0 if whole else max(0, 3 - most, 1 - least)
    return [_place(value, 0, decimals) for value in values]


def _resolved_width(observed: float | None, low: float | None, high: float | None) -> float:
    """Width that fixes the last printed place; 0 where there is none."""
    ends = [end for end in (low, high) if end is not None and math.isfinite(end)]
    whole = abs(ends[1] - ends[0]) if len(ends) == 2 else math.inf
    middle = observed if observed is not None and math.isfinite(observed) else sum(ends) / max(len(ends), 1)
    sides = [side for end in ends if (side := abs(end - middle)) > 0]
    return min(max(2 * min(sides), sum(sides) / 100), whole) if sides else 0.0


def _logarithmic(values: Iterable[float | None]) -> bool:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite or not (min(finite) > 0 or max(finite) < 0):
        return False
    sizes = sorted(map(abs, finite))
    return sizes[-1] / 100 >= sizes[0]


def _place(value: float | None, exponent: int, decimals: int) -> str:
    if value is None:
        return NOTHING
    return _fixed(_mantissa(value, exponent), decimals) if math.isfinite(value) else _special(value)


def _bracket(texts: Iterable[str]) -> str:
    observed, low, high = texts
    return f"{observed} [{low}, {high}]"


def _special(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "∞" if value > 0 else "−∞"


def _exponent(value: float, digits: int) -> int:
    """Decimal exponent of `value` once it is rounded to `digits`: 9.9996 to four digits is 10.00."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _mantissa(value: float, exponent: int) -> float:
    # through text: 10.0**-320 is subnormal, and dividing by it loses digits
    mantissa, _, power = f"{value:.17e}".partition("e")
    return float(f"{mantissa}e{int(power) - exponent}")


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if not text.strip("-0.") else text.replace("-", "−")


def _trim(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _power(exponent: int) -> str:
    return f" × 10{str(exponent).translate(_SUPERSCRIPT)}"
