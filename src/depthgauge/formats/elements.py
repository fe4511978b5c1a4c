"""The rounding of each value by itself.

Between 2^e and 2^(e+1) the numbers of a format of m mantissa bits are the multiples of q = 2^(e-m); below its smallest
normal value they are those of its smallest positive one. Adding 1.5 x 2^w q, with w the mantissa bits of the working
precision, and taking it away again leaves the nearest multiple of q, ties to even: the sum has room for no more.
"""

from __future__ import annotations

import math
from typing import Any

from depthgauge.formats.constants import Format
from depthgauge.formats.working import Working, copy, fill, uniform


def round_elements(values: Any, fmt: Format, generator: Any = None, saturate: bool = False) -> Any:
    """Values of float32 or float64 rounded to a format, as a new array or tensor; see `depthgauge.formats.round`."""
    working = Working.of(values)
    if saturate:
        most = fmt.max if fmt.exponent_bits <= working.exponent_bits else math.inf
        values = working.library.clip(values, -most, most)
    if fmt.mantissa_bits >= working.mantissa_bits:
        return copy(values)
    if fmt.exponent_bits >= working.exponent_bits:
        return _round_bits(values, fmt, working, generator)
    beyond = 2.0 ** math.frexp(fmt.max)[1]
    magnitude = abs(values)
    binade = working.binade(magnitude)
    working.library.clip(binade, fmt.smallest_normal, beyond, out=binade)
    if generator is None:
        binade *= 1.5 * 2.0 ** (working.mantissa_bits - fmt.mantissa_bits)
        magnitude += binade
        magnitude -= binade
    else:
        working.library.clip(magnitude, 0.0, beyond, out=magnitude)
        binade *= 2.0**-fmt.mantissa_bits
        _round_by_dice(magnitude, binade, working, uniform(values, generator))
    if not saturate:
        fill(magnitude, magnitude > fmt.max, math.inf if fmt.has_infinity else math.nan)
    return working.with_sign(magnitude, values)


def _round_by_dice(magnitude: Any, quantum: Any, working: Working, dice: Any) -> None:
    """Round magnitudes in place to multiples of a quantum, up if the dice fall below the rest over the quantum."""
    magnitude /= quantum
    down = working.library.floor(magnitude)
    magnitude -= down
    dice -= magnitude
    working.library.floor(dice, out=dice)  # -1 for up, 0 for down
    down -= dice
    working.library.multiply(down, quantum, out=magnitude)


def _round_bits(values: Any, fmt: Format, working: Working, generator: Any) -> Any:
    """Values rounded to a format with the exponents of the working precision: a prefix of their bits.

    An addition to the bits that are dropped carries into those that stay, up to the exponent and to infinity.
    """
    dropped = working.mantissa_bits - fmt.mantissa_bits
    bits = values.view(working.integers)
    if generator is None:
        near = bits >> dropped
        near &= 1
        near += 2 ** (dropped - 1) - 1
    else:
        dice = uniform(values, generator)
        dice *= 2.0**dropped
        near = working.library.asarray(dice, dtype=working.integers)
    near += bits
    near &= -(2**dropped)
    near = near.view(values.dtype)
    fill(near, values != values, math.nan)  # noqa: PLR0124 - true of NaN
    return near
