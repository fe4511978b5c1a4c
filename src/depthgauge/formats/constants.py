"""The floating-point formats, and what each of them can hold."""

from __future__ import annotations

import difflib
import math
import reprlib
from dataclasses import dataclass, field, fields
from decimal import Decimal, localcontext
from fractions import Fraction
from numbers import Real
from typing import Any, overload

import numpy as np

from depthgauge.formats.arguments import check_dense, numbers, real, whole
from depthgauge.formats.working import Working, fill, is_tensor


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

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next value; the unit roundoff u is half of it."""
        return 2.0**-self.mantissa_bits

    @property
    def zero_below(self) -> float:
        """The largest magnitude that rounds to zero: half the smallest value, a tie that goes to the even zero."""
        return self.smallest_subnormal / 2

    @property
    def overflows_from(self) -> float:
        """The smallest magnitude, of float64's, that rounds beyond the largest value; infinity for float64 itself."""
        limit = self._overflow
        try:
            tie = float(limit)
        except OverflowError:
            return math.inf
        return tie if self._tie_overflows else math.nextafter(tie, math.inf)

    @property
    def stagnation(self) -> float:
        """The value at which a sum of ones stops: 1 is half a spacing there, a tie that goes back to the even sum."""
        return 2.0 ** (self.mantissa_bits + 1)

    @property
    def _overflow(self) -> Fraction:
        """The middle between the largest value and the one that would follow it."""
        return Fraction(self.max) + Fraction(2) ** (math.frexp(self.max)[1] - 2 - self.mantissa_bits)

    @property
    def _tie_overflows(self) -> bool:
        return int(math.ldexp(math.frexp(self.max)[0], self.mantissa_bits + 1)) % 2 == 1

    @overload
    def spacing(self, x: float) -> float: ...
    @overload
    def spacing(self, x: Any) -> Any: ...
    def spacing(self, x: Any) -> Any:
        """The distance between neighbouring values of the format where x lies: one unit in the last place.

        It belongs to x's binade: at a power of two it is the distance to the next greater value, and the next smaller
        is half as far. Below the smallest normal value it is the smallest subnormal one; beyond the largest value, and
        of NaN, it is NaN.

        Args:
            x: a number, an array or a tensor.

        Returns:
            A number, or an array or tensor of float64 of x's shape (and on its device).

        Raises:
            TypeError: x is no real number, or masked, sparse or nested.
        """
        if is_tensor(x):
            check_dense("x", x)
            if x.is_complex():
                raise TypeError(f"x is a tensor of {x.dtype}, where real numbers were expected")
            magnitude = abs(x.detach().double())
        else:
            array = numbers("x", real(x) if isinstance(x, Real | Decimal) else x)
            magnitude = abs(np.atleast_1d(array.astype(np.float64)))
        working = Working.of(magnitude)
        spacing = working.library.clip(working.binade(magnitude), self.smallest_normal, None)
        spacing *= self.epsilon
        fill(spacing, ~(magnitude <= self.max), math.nan)
        if is_tensor(x) or np.ndim(x):
            return spacing
        return float(spacing[0])

    def exp_overflows_from(self, terms: int = 1) -> float:
        """The smallest x of the format for which so many exp(x) add up to more than it holds.

        Of one term it is where exp overflows. Of n it is where the sum under a softmax does that subtracts no maximum,
        if its n logits are all x; no n logits below it overflow. The exponentials are taken as exact and their sum as
        rounded once.

        Args:
            terms: number of exponentials in the sum.

        Raises:
            ValueError: `terms` is no whole number from 1 on.
        """
        terms = whole("terms", terms)
        with localcontext(prec=60):
            limit = (Decimal(self._overflow.numerator) / self._overflow.denominator / terms).ln()
            spacing = Decimal(self.spacing(float(limit)))
            return float(math.ceil(limit / spacing) * spacing)


@dataclass(frozen=True)
class BlockFormat(Format):
    """A format whose values share a scale, block by block; what it does to a value depends on its neighbours.

    The attributes of `Format` are those of the elements, in units of the scale.

    Attributes:
        element: format of the elements.
        block: values that share a scale.
        scale: format of the scale: `e8m0` for powers of two from 2^-127 to 2^127, or `e4m3`.
        tensor_scale: whether the scales of a tensor share a scale of float32 in turn.
    """

    element: Format = field(kw_only=True)
    block: int = field(kw_only=True)
    scale: str = field(kw_only=True)
    tensor_scale: bool = False


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
_E2M1 = Format("float4_e2m1fn", 2, 1, 6.0, 1.0, 0.5, "float4_e2m1fn_x2", has_infinity=False)


def _blocks(name: str, element: Format, block: int, scale: str, tensor_scale: bool = False) -> BlockFormat:
    shared = {one.name: getattr(element, one.name) for one in fields(Format)} | {"name": name, "aliases": ()}
    return BlockFormat(**shared, element=element, block=block, scale=scale, tensor_scale=tensor_scale)


# OCP Microscaling Formats (MX) v1.0, table 1; NVIDIA, "Pretraining Large Language Models with NVFP4" (2025), section 2.
BLOCKS: tuple[BlockFormat, ...] = (
    _blocks("mxfp8_e4m3", FORMATS[5], 32, "e8m0"),
    _blocks("mxfp8_e5m2", FORMATS[6], 32, "e8m0"),
    _blocks("nvfp4", _E2M1, 16, "e4m3", tensor_scale=True),
)
_BY_NAME: dict[str, Format] = {name: fmt for fmt in (*FORMATS, *BLOCKS) for name in (fmt.name, *fmt.aliases)}


def get(name: str | Format) -> Format:
    """The format of that name (`"fp16"`, `"float16"`, `"half"`, ...); a `Format` passes through.

    Raises:
        ValueError: no format has that name.
    """
    if isinstance(name, Format):
        return name
    text = str(name).lower().removeprefix("torch.")  # a torch.dtype is spelled so
    known = _BY_NAME.get(text)
    if known is None:
        nearest = difflib.get_close_matches(text, _BY_NAME, n=1, cutoff=0.0)[0]
        names = ", ".join(fmt.name for fmt in (*FORMATS, *BLOCKS))
        shown = " ".join(reprlib.repr(name).split())
        raise ValueError(f"no floating-point format is called {shown}: the nearest is {nearest!r}, all are {names}")
    return known


def elementwise(name: str | Format) -> Format:
    """The format of that name, if it rounds each value by itself.

    Raises:
        ValueError: no format has that name, or it is a block format.
    """
    fmt = get(name)
    if isinstance(fmt, BlockFormat):
        raise ValueError(
            f"{fmt.name} is a block format: what it does to a value depends on the {fmt.block} of its block"
        )
    return fmt
