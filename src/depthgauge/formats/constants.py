"""The floating-point formats, and what each of them can hold."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A binary floating-point format; rounding is to nearest, ties to even.

    Attributes:
        name: the name used in rows and tables.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the stored significand (without the implicit leading one).
        max: largest finite value.
        smallest_normal: smallest positive value with a full significand.
        smallest_subnormal: smallest positive value.
        dtype: name of the torch dtype that stores it; tf32 lives in `float32` storage.
        has_infinity: whether it can spell infinity. `float8_e4m3fn` cannot: what is too large for it becomes NaN, or
            saturates at `max` where the conversion is told to saturate.
        aliases: other names that `get` accepts.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    max: float
    smallest_normal: float
    smallest_subnormal: float
    dtype: str
    has_infinity: bool = True
    aliases: tuple[str, ...] = ()


def _ieee(name: str, exponent_bits: int, mantissa_bits: int, dtype: str, *aliases: str) -> Format:
    bias = 2 ** (exponent_bits - 1) - 1
    return Format(
        name,
        exponent_bits,
        mantissa_bits,
        max=math.ldexp(2 - 2.0**-mantissa_bits, bias),
        smallest_normal=math.ldexp(1.0, 1 - bias),
        smallest_subnormal=math.ldexp(1.0, 1 - bias - mantissa_bits),
        dtype=dtype,
        aliases=aliases,
    )


# IEEE 754-2019 table 3.5 for the first, third and fourth; bfloat16 and tf32 are its layout with other widths; the two
# of eight bits: Micikevicius et al., "FP8 formats for deep learning" (2022), table 1. e4m3fn gives up infinity, and
# all but one NaN, to reach 448 where its layout would end at 240.
FORMATS: tuple[Format, ...] = (
    _ieee("float16", 5, 10, "float16", "fp16", "half"),
    _ieee("bfloat16", 8, 7, "bfloat16", "bf16"),
    _ieee("float32", 8, 23, "float32", "fp32", "float", "single"),
    _ieee("float64", 11, 52, "float64", "fp64", "double"),
    _ieee("tf32", 8, 10, "float32"),
    Format(
        "float8_e4m3fn", 4, 3, 448.0, 2.0**-6, 2.0**-9, "float8_e4m3fn", False, ("fp8_e4m3fn", "fp8_e4m3", "e4m3fn")
    ),
    _ieee("float8_e5m2", 5, 2, "float8_e5m2", "fp8_e5m2", "e5m2"),
)
_BY_NAME = {name: fmt for fmt in FORMATS for name in (fmt.name, *fmt.aliases)}


def get(name: str | Format) -> Format:
    """The format of that name (`"fp16"`, `"float16"`, `"half"`, ...); a `Format` passes through.

    Raises:
        ValueError: no format has that name.
    """
    if isinstance(name, Format):
        return name
    known = _BY_NAME.get(name.lower().removeprefix("torch."))
    if known is None:
        nearest = difflib.get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.0)[0]
        names = ", ".join(fmt.name for fmt in FORMATS)
        raise ValueError(f"no floating-point format is called {name!r}: the nearest is {nearest!r}, all are {names}")
    return known
