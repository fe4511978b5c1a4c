"""Elements of two vectors in turns, and halves of their parts: what becomes few instructions on each processor."""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped] # no stubs exist

from depthgauge.probe.vectors import lowering, shuffled

# Whether registers are blended rather than shuffled, where both would do: x86 has fewer units that shuffle.
BLENDS = platform.machine() in {"x86_64", "AMD64"}


def _every_second(first: int) -> Any:
    @lowering
    def chosen(_context: Any, left: Any, _right: Any) -> Any:
        length = left.length

        def generate(_context: Any, builder: Any, _typed: Any, operands: Any) -> Any:
            if not BLENDS:
                places = [place for k in range(first, length, 2) for place in (k, length + k)]
                return shuffled(builder, operands[0], places, operands[1])
            # Move one of the two by one place, in elements of twice the size, and take turns.
            size = operands[0].type.element.width
            twice = ir.VectorType(ir.IntType(2 * size), length // 2)
            move = builder.shl if first == 0 else builder.lshr
            moved = builder.bitcast(operands[1 - first], twice)
            moved = builder.bitcast(move(moved, ir.Constant(twice, [size] * (length // 2))), operands[0].type)
            pair = (operands[0], moved) if first == 0 else (moved, operands[1])
            if size > 8:
                return shuffled(builder, pair[0], [k + length * (k & 1) for k in range(length)], pair[1])
            masks = [ir.Constant(pair[0].type, [255 * (k & 1 == turn) for k in range(length)]) for turn in (0, 1)]
            return builder.or_(*(builder.and_(each, mask) for each, mask in zip(pair, masks, strict=True)))

        return left(left, left), generate

    return chosen


# Every second element of two vectors in turns: places 0, 2, ... of both, or 1, 3, ... of both.
even_places, odd_places = _every_second(0), _every_second(1)


def halves_of(size: int) -> tuple[Any, Any]:
    """Two intrinsics: the left and the right halves of all parts of `size` elements of two vectors."""

    def halves(first: int) -> Any:
        @lowering
        def chosen(_context: Any, left: Any, _right: Any) -> Any:
            places = [k for k in range(2 * left.length) if k % size // (size // 2) == first]
            return left(left, left), lambda _context, builder, _typed, operands: shuffled(
                builder, operands[0], places, operands[1]
            )

        return chosen

    return halves(0), halves(1)
