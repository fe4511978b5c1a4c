"""Sixteen numbers that are looked up in a register, byte by byte: one instruction with AVX2, and one with ARM's NEON.

Other processors get a function that does the same, one byte at a time, which serves for comparison alone.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist
from numba import types

from depthgauge.probe.blocks import lowering
from depthgauge.probe.vectors import Vector, declared, shuffled

BYTES = Vector("u8", 32)
_REGISTER = Vector("u8", 16)
_LOW = [1 << k for k in range(8)] + [0] * 8
_HIGH = [0] * 8 + [1 << k for k in range(8)]

# By the processor's name in LLVM; what is looked up beyond place 15 is zero.
NEON = "llvm.aarch64.neon.tbl1.v16i8"
STAND_IN = "depthgauge.tbl1"


def _outside(builder: Any, places: Any, sign: str, limit: int) -> Any:
    return builder.icmp_unsigned(sign, places, BYTES.filled(limit))


def by_shuffles_of_avx2(builder: Any, places: Any) -> list[Any]:
    """Look up in each half of 256 bits: a byte from 128 on gives zero, of others the lower half counts."""
    kind = BYTES.lowered
    add = declared(builder, "llvm.uadd.sat.v32i8", kind, [kind, kind])
    look_up = declared(builder, "llvm.x86.avx2.pshuf.b", kind, [kind, kind])
    places = builder.call(add, [places, BYTES.filled(0x70)])
    tables = [ir.Constant(kind, 2 * table) for table in (_LOW, _HIGH)]
    return [*(builder.call(look_up, [table, places]) for table in tables), _outside(builder, places, ">=", 0x80)]


def by_tables(builder: Any, places: Any, look_up: Any) -> list[Any]:
    """Look up in a register of 128 bits."""
    halves = [shuffled(builder, places, range(first, first + 16)) for first in (0, 16)]
    looked_up = [
        [builder.call(look_up, [ir.Constant(_REGISTER.lowered, table), half]) for half in halves]
        for table in (_LOW, _HIGH)
    ]
    return [
        *(shuffled(builder, first, range(32), second) for first, second in looked_up),
        _outside(builder, places, ">=", 16),
    ]


def by_tables_of_neon(builder: Any, places: Any) -> list[Any]:
    """Look up by NEON's instruction."""
    kind = _REGISTER.lowered
    return by_tables(builder, places, declared(builder, NEON, kind, [kind, kind]))


def by_stand_in(builder: Any, places: Any) -> list[Any]:
    """Look up by a function in the place of NEON's instruction."""
    kind = _REGISTER.lowered
    known = builder.module.globals.get(STAND_IN)
    look_up = known or declared(builder, STAND_IN, kind, [kind, kind])
    if known is None:
        look_up.linkage = "linkonce_odr"
        look_up.attributes.add("noinline")
        _define_stand_in(look_up)
    return by_tables(builder, places, look_up)


def _define_stand_in(function: Any) -> None:
    builder = ir.IRBuilder(function.append_basic_block())
    table, places = function.args
    result, byte = ir.Constant(_REGISTER.lowered, [0] * 16), ir.IntType(8)
    for i in range(16):
        place = builder.extract_element(places, ir.IntType(32)(i))
        found = builder.extract_element(table, builder.and_(place, byte(15)))
        inside = builder.icmp_unsigned("<", place, byte(16))
        result = builder.insert_element(result, builder.select(inside, found, byte(0)), ir.IntType(32)(i))
    builder.ret(result)


_tuple: Any = types.Tuple  # carries no types
_WAYS = {
    "x86_64": by_shuffles_of_avx2,
    "AMD64": by_shuffles_of_avx2,
    "aarch64": by_tables_of_neon,
    "arm64": by_tables_of_neon,
}
CHOSEN = _WAYS.get(platform.machine(), by_stand_in)


def one_bit_of_16(look_up: Any) -> Any:
    """The intrinsic that sets bit k of two vectors' 16 for a byte k, by a way of looking up.

    It returns the vectors of the lower and the upper eight bits, which are all clear for a byte from 16 on, and for
    which bytes that is so.
    """

    @lowering
    def one_bit(_context: Any, places: Any) -> Any:
        def generate(context: Any, builder: Any, typed: Any, operands: Any) -> Any:
            return context.make_tuple(builder, typed.return_type, look_up(builder, operands[0]))

        result = _tuple([BYTES, BYTES, Vector("bit", 32)])
        return result(places), generate

    return one_bit
