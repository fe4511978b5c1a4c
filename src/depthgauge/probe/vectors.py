"""Vectors of numbers inside of numba's compiled functions: loaded, combined by operators, reduced.

numba vectorizes loops where LLVM finds out how; a histogram in vector registers it does not find. Here a vector is a
type of its own, so that such a loop is written down as it is meant, in Python's operators. Lengths are those of the
method that uses them; LLVM makes as many registers of a vector as the processor needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist
from numba import types
from numba.core.datamodel import models
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

_ELEMENTS = {
    "f32": ir.FloatType(),
    "f64": ir.DoubleType(),
    "u8": ir.IntType(8),
    "u16": ir.IntType(16),
    "u32": ir.IntType(32),
    "u64": ir.IntType(64),
    "bit": ir.IntType(1),
}
_INDEX = ir.IntType(32)
# These carry no types.
_register: Any = register_model
_infer: Any = infer_global
_lower: Any = lower_builtin
_signature: Any = signature
_tuple: Any = types.UniTuple


class Vector(types.Type):
    """A vector type: `length` elements of one machine type."""

    def __init__(self, element: str, length: int) -> None:
        self.element, self.length = element, length
        super().__init__(name=f"vector({element}, {length})")

    @property
    def lowered(self) -> Any:
        """The same type in LLVM."""
        return ir.VectorType(_ELEMENTS[self.element], self.length)

    def filled(self, value: int) -> Any:
        """The LLVM constant with that value in each place."""
        return ir.Constant(self.lowered, [value] * self.length)


@_register(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.lowered)  # type: ignore[no-untyped-call] # numba carries no types


FLOATS = Vector("f32", 32)
HALVES, HALVES_OF_32, MASK = Vector("u16", 64), Vector("u16", 32), Vector("bit", 32)
PLANES = Vector("u16", 128)
"""Four sets of 32 numbers, one after the other."""


def lowering(function: Callable[..., Any]) -> Any:
    """Type numba's decorator, which carries no types."""
    return intrinsic(function)


def shuffled(builder: Any, value: Any, places: Iterable[int], more: Any = None) -> Any:
    """Elements of one vector, or of two of the same type, by their places."""
    order = list(places)
    return builder.shuffle_vector(
        value, value if more is None else more, ir.Constant(ir.VectorType(_INDEX, len(order)), order)
    )


def _splat(builder: Any, scalar: Any, vector: Vector) -> Any:
    element = _ELEMENTS[vector.element]
    if scalar.type != element:
        scalar = builder.trunc(scalar, element)
    nothing = ir.Constant(vector.lowered, ir.Undefined)
    return shuffled(builder, builder.insert_element(nothing, scalar, _INDEX(0)), [0] * vector.length)


def declared(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """An intrinsic of LLVM, declared once."""
    return builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _vectors(builder: Any, operands: Iterable[Any], kinds: Iterable[Any], vector: Vector) -> list[Any]:
    """Operands as vectors: a scalar is repeated."""
    return [
        value if kind == vector else _splat(builder, value, vector) for value, kind in zip(operands, kinds, strict=True)
    ]


def _define(symbol: Any, of_integers: str, of_floats: str | None = None, *, comparison: bool = False) -> None:
    """Teach numba a binary operator: vector with vector, or vector with integer; integers are unsigned."""

    @_infer(symbol)
    class _Typing(AbstractTemplate):
        def generic(self, kinds: Any, _keywords: Any) -> Any:
            vector = next((kind for kind in kinds if isinstance(kind, Vector)), None)
            if vector is None or not all(kind == vector or isinstance(kind, types.Integer) for kind in kinds):
                return None
            return _signature(Vector("bit", vector.length) if comparison else vector, *kinds)

    def generate(_context: Any, builder: Any, typed: Any, operands: Any) -> Any:
        vector = next(kind for kind in typed.args if isinstance(kind, Vector))
        left, right = _vectors(builder, operands, typed.args, vector)
        if comparison:
            return builder.icmp_unsigned(of_integers, left, right)
        name = of_floats if of_floats and vector.element in {"f32", "f64"} else of_integers
        return getattr(builder, name)(left, right)

    for pair in ((Vector, Vector), (Vector, types.Integer), (types.Integer, Vector)):
        _lower(symbol, *pair)(generate)


_define(operator.add, "add", "fadd")
_define(operator.sub, "sub", "fsub")
_define(operator.mul, "mul", "fmul")
_define(operator.and_, "and_")
_define(operator.or_, "or_")
_define(operator.xor, "xor")
_define(operator.lshift, "shl")
_define(operator.rshift, "lshr")
for _symbol, _name in ((operator.lt, "<"), (operator.ge, ">="), (operator.gt, ">"), (operator.ne, "!=")):
    _define(_symbol, _name, comparison=True)


@lowering
def load(_context: Any, address: Any, vector: Any) -> Any:
    """The vector at an address that is a multiple of 4."""

    def generate(_context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        value = builder.load(builder.inttoptr(operands[0], vector.instance_type.lowered.as_pointer()))
        value.align = 4
        return value

    return vector.instance_type(address, vector), generate


@lowering
def store(_context: Any, address: Any, value: Any) -> Any:
    """Write a vector to an address that is a multiple of 4."""

    def generate(context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        builder.store(operands[1], builder.inttoptr(operands[0], operands[1].type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(address, value), generate


@lowering
def store_past_caches(_context: Any, address: Any, value: Any) -> Any:
    """Write a vector to an address that is a multiple of 64, without fetching what was there first."""

    def generate(context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        place = builder.inttoptr(operands[0], operands[1].type.as_pointer())
        written = builder.store(operands[1], place, align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(address, value), generate


@lowering
def splat(_context: Any, scalar: Any, vector: Any) -> Any:
    """The scalar in each place of a vector."""
    return vector.instance_type(scalar, vector), lambda _context, builder, _typed, operands: _splat(
        builder, operands[0], vector.instance_type
    )


@lowering
def bits_as(_context: Any, value: Any, vector: Any) -> Any:
    """The same bits as another vector type."""
    return vector.instance_type(value, vector), lambda _context, builder, _typed, operands: builder.bitcast(
        operands[0], vector.instance_type.lowered
    )


@lowering
def majority(_context: Any, first: Any, second: Any, third: Any) -> Any:
    """Bit by bit, what at least two of three planes hold."""

    def generate(_context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        # One instruction, which LLVM does not find: a fifth of the time that a histogram takes.
        longs, part = ir.VectorType(ir.IntType(64), 32), ir.VectorType(ir.IntType(64), 8)
        table = ir.IntType(32)
        logic = declared(builder, "llvm.x86.avx512.pternlog.q.512", part, [part, part, part, table])
        whole = [builder.bitcast(operand, longs) for operand in operands]
        parts = [
            builder.call(logic, [*(shuffled(builder, each, range(at, at + 8)) for each in whole), table(0b11101000)])
            for at in range(0, 32, 8)
        ]
        halves = [shuffled(builder, parts[i], range(16), parts[i + 1]) for i in (0, 2)]
        return builder.bitcast(shuffled(builder, halves[0], range(32), halves[1]), PLANES.lowered)

    return PLANES(first, second, third), generate


@lowering
def widened(_context: Any, value: Any) -> Any:
    """float32 as float64."""
    doubles = Vector("f64", value.length)
    return doubles(value), lambda _context, builder, _typed, operands: builder.fpext(operands[0], doubles.lowered)


@lowering
def low_and_high(_context: Any, value: Any) -> Any:
    """Split 32 numbers of 32 bits into the lower and the upper halves."""

    def generate(context: Any, builder: Any, typed: Any, operands: Any) -> Any:
        low, high = (shuffled(builder, operands[0], range(first, 64, 2)) for first in (0, 1))
        return context.make_tuple(builder, typed.return_type, (low, high))

    return _tuple(HALVES_OF_32, 2)(value), generate


@lowering
def with_sticky_bit(_context: Any, value: Any, rest: Any) -> Any:
    """The value, with bit 0 set where the rest is not zero; bit 0 was clear."""

    def generate(_context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        # All ones but the last, plus the rest, without overflow: two instructions, where comparing takes four.
        kind = HALVES_OF_32.lowered
        add = declared(builder, "llvm.uadd.sat.v32i16", kind, [kind, kind])
        sticky = builder.call(add, [operands[1], HALVES_OF_32.filled(0xFFFE)])
        return builder.or_(operands[0], builder.and_(sticky, HALVES_OF_32.filled(1)))

    return HALVES_OF_32(value, rest), generate


@lowering
def where(_context: Any, mask: Any, left: Any, right: Any) -> Any:
    """Element by element, one or the other; one of them may be a scalar."""
    vector = left if isinstance(left, Vector) else right

    def generate(_context: Any, builder: Any, typed: Any, operands: Any) -> Any:
        return builder.select(operands[0], *_vectors(builder, operands[1:], typed.args[1:], vector))

    return vector(mask, left, right), generate


def _lesser(builder: Any, left: Any, right: Any) -> Any:
    if isinstance(left.type.element, ir.IntType):
        return builder.select(builder.icmp_unsigned("<", left, right), left, right)
    return builder.select(builder.fcmp_ordered("<", left, right), left, right)


def _greater(builder: Any, left: Any, right: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


@lowering
def lesser(_context: Any, left: Any, right: Any) -> Any:
    """Element by element, the lesser; of floating numbers, the right one where one of them is NaN."""
    return left(left, right), lambda _context, builder, _typed, operands: _lesser(builder, *operands)


@lowering
def greater(_context: Any, left: Any, right: Any) -> Any:
    """Element by element, the greater; the other where one of them is NaN."""
    return left(left, right), lambda _context, builder, _typed, operands: _greater(builder, *operands)


@lowering
def plus_square(_context: Any, total: Any, value: Any) -> Any:
    """Total + value * value, which for float32 as float64 is the same fused or not, as the square is exact."""

    def generate(_context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        square = builder.fmul(operands[1], operands[1], flags=("contract",))
        return builder.fadd(operands[0], square, flags=("contract",))

    return total(total, value), generate


def _reduction(combine: Callable[[Any, Any, Any], Any]) -> Any:
    """An intrinsic that combines all elements, halves at a time."""

    @lowering
    def reduced(_context: Any, value: Any) -> Any:
        def generate(_context: Any, builder: Any, typed: Any, operands: Any) -> Any:
            (rest,) = operands
            length = typed.args[0].length
            while length > 1:
                length //= 2
                upper = shuffled(builder, rest, range(length, 2 * length))
                rest = combine(builder, shuffled(builder, rest, range(length)), upper)
            return builder.extract_element(rest, _INDEX(0))

        scalars: dict[str, Any] = {"f32": types.float32, "f64": types.float64, "u16": types.uint16, "u64": types.uint64}
        return scalars[value.element](value), generate

    return reduced


total_of = _reduction(
    lambda builder, left, right: (
        builder.add(left, right) if isinstance(left.type.element, ir.IntType) else builder.fadd(left, right)
    )
)
product_of = _reduction(lambda builder, left, right: builder.fmul(left, right))
least_of = _reduction(_lesser)
greatest_of = _reduction(_greater)


@lowering
def bits_of(_context: Any, mask: Any) -> Any:
    """A mask as a number of as many bits."""
    scalar: Any = {16: types.uint16, 32: types.uint32}[mask.length]
    return scalar(mask), lambda _context, builder, _typed, operands: builder.bitcast(
        operands[0], ir.IntType(mask.length)
    )


@lowering
def side_by_side(_context: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Four vectors as planes."""

    def generate(_context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
        front = shuffled(builder, operands[0], range(64), operands[1])
        back = shuffled(builder, operands[2], range(64), operands[3])
        return shuffled(builder, front, range(128), back)

    return PLANES(first, second, third, fourth), generate


@lowering
def column_counts(_context: Any, digits: Any) -> Any:
    """For each of the 16 bits of each plane, in how many of its numbers it is set, as 64 counts.

    The numbers are given as sums, digit by digit: bit k of element j of `digits[i]` is digit i, from the lowest, of
    the binary number of times that bit k was set in place j. The 32 places of a plane are added here.
    """
    counts = HALVES

    def generate(_context: Any, builder: Any, typed: Any, operands: Any) -> Any:
        numbers = [builder.extract_value(operands[0], i) for i in range(typed.args[0].count)]
        places = 32
        while places > 1:
            places //= 2
            left = [plane * 2 * places + j for plane in range(4) for j in range(places)]
            numbers = _sum_of_digits(
                builder,
                [shuffled(builder, number, left) for number in numbers],
                [shuffled(builder, number, [j + places for j in left]) for number in numbers],
            )
        total = counts.filled(0)
        for i, number in enumerate(numbers):
            is_set = builder.bitcast(builder.bitcast(number, ir.IntType(64)), Vector("bit", 64).lowered)
            total = builder.add(total, builder.select(is_set, counts.filled(1 << i), counts.filled(0)))
        return total

    return counts(digits), generate


def _sum_of_digits(builder: Any, left: list[Any], right: list[Any]) -> list[Any]:
    """Add binary numbers that lie across vectors, digit by digit."""
    total: list[Any] = []
    carry = ir.Constant(left[0].type, [0] * left[0].type.count)
    for a, b in zip(left, right, strict=True):
        total.append(builder.xor(builder.xor(a, b), carry))
        carry = builder.or_(builder.and_(a, b), builder.and_(carry, builder.or_(a, b)))
    return [*total, carry]
