"""Vector registers that numba compiles for, whatever the machine has: LLVM tells by what it makes of an addition."""

from __future__ import annotations

import re
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped] # no stubs exist
from numba.core.registry import cpu_target

_ADDITION = """
define <64 x i8> @add(<64 x i8> %left, <64 x i8> %right) {
  %sum = add <64 x i8> %left, %right
  ret <64 x i8> %sum
}
"""
# What the instruction looks like that adds bytes, the widest first.
_MARKS = {
    "avx512bw": r"vpaddb\s.*%zmm",
    "avx2": r"vpaddb\s.*%ymm",
    "neon": r"add\s.*v\d+\.16b",
}
_target: Any = cpu_target  # carries no types


def vectors_of(triple: str, processor: str, features: str) -> str | None:
    """The widest registers that add bytes on a processor, as LLVM names both: "avx512bw", "avx2", "neon", or None."""
    module = llvm.parse_assembly(_ADDITION)
    module.triple = triple
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, features=features)
    assembly = machine.emit_assembly(module)
    return next((name for name, mark in _MARKS.items() if re.search(mark, assembly)), None)


def vectors() -> str | None:
    """Name those of the processor that numba compiles for: this one, or that of `NUMBA_CPU_NAME` and its like."""
    return vectors_of(*_target.target_context.codegen().magic_tuple())
