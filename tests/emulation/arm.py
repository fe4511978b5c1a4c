"""A function that numba has compiled, as machine code of a 64-bit ARM processor, which an emulator runs.

numba compiles for the processor that it runs on. What it hands to LLVM is made of vectors of any length; of these, LLVM
makes machine code of ARM here instead. What is needed from outside, a logarithm and the like, is done in Python.
"""

import math
import re
import struct

import llvmlite.binding as llvm
import numpy as np

from depthgauge.probe import lookup

TRIPLE = "aarch64-unknown-linux-gnu"


def module_of(dispatcher):
    """LLVM's module of the one signature that was compiled, with NEON's look-up for its stand-in."""
    (text,) = dispatcher.inspect_llvm().values()
    (name,) = (overload.fndesc.llvm_func_name for overload in dispatcher.overloads.values())
    text = re.sub(rf"^define [^\n]*@{lookup.STAND_IN}\(.*?^}}", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace(f"@{lookup.STAND_IN}(", f"@{lookup.NEON}(")
    text = re.sub(
        r'^target (triple|datalayout).*|"target-cpu"="[^"]*"|"target-features"="[^"]*"', "", text, flags=re.MULTILINE
    )
    module = llvm.parse_assembly(f"{text}\ndeclare <16 x i8> @{lookup.NEON}(<16 x i8>, <16 x i8>)\n")
    module.triple = TRIPLE
    for function in module.functions:
        if not function.is_declaration and function.name != name:
            function.linkage = "internal"  # numba's wrappers for Python
    return module, name


def machine():
    """An ARM processor as they all are since ARMv8: with NEON."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    return llvm.Target.from_triple(TRIPLE).create_target_machine(opt=3, reloc="static", codemodel="small")


def optimized(module, target):
    """The module without what nobody calls."""
    target.set_asm_verbosity(False)
    module.data_layout = str(target.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(target, options)
    builder.getModulePassManager().run(module, builder)
    return module


class Elf:
    """The sections, symbols and relocations of an object file."""

    def __init__(self, data):
        self.data = data
        (table,), (size, count) = struct.unpack_from("<Q", data, 40), struct.unpack_from("<HH", data, 58)
        self.headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
        (symbols,) = (header for header in self.headers if header[1] == 2)
        names = self.headers[symbols[6]][4]
        self.symbols = []
        for at in range(symbols[4], symbols[4] + symbols[5], 24):
            name, _info, _other, section, value, _size = struct.unpack_from("<IBBHQQ", data, at)
            start = names + name
            self.symbols.append((data[start : data.index(b"\0", start)].decode(), section, value))

    def relocations(self):
        """Of sections that are loaded: which, where in it, kind, symbol, what is added."""
        for header in self.headers:
            if header[1] == 4 and self.headers[header[7]][2] & 2:
                for at in range(header[4], header[4] + header[5], 24):
                    offset, info, more = struct.unpack_from("<QQq", self.data, at)
                    yield header[7], offset, info & 0xFFFFFFFF, info >> 32, more


CODE, STUBS, STACK, HEAP = 0x100000, 0x400000, 0x600000, 0x1000000
SHIFTS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}  # of ADD and of loads and stores, by the relocation's kind


def relocated(word, kind, place, target):
    """An instruction that refers to an address."""
    if kind in {282, 283}:  # branches
        return word | ((target - place) >> 2 & 0x3FFFFFF)
    if kind == 275:  # the page of an address
        pages = (target >> 12) - (place >> 12)
        return word | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    return word | ((target & 0xFFF) >> SHIFTS[kind]) << 10


class Arm:
    """The processor, with one function and a heap."""

    def __init__(self, code, name):
        import unicorn  # where it is installed
        from unicorn import arm64_const

        self.registers = arm64_const
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        for start, size in ((CODE, 0x200000), (STUBS, 0x10000), (STACK, 0x200000), (HEAP, 0x400000)):
            self.cpu.mem_map(start, size)
        self.used, self.stubs = HEAP, {}
        self._load(Elf(code), name)
        self.cpu.hook_add(unicorn.UC_HOOK_CODE, self._outside, begin=STUBS, end=STUBS + 0x10000)

    def _load(self, elf, name):
        starts, at = {}, CODE
        for i, header in enumerate(elf.headers):
            if header[2] & 2:
                at = -(-at // 64) * 64
                starts[i], at = at, at + header[5]
                self.cpu.mem_write(starts[i], elf.data[header[4] : header[4] + header[5]])
        self.entry = next(starts[section] + value for called, section, value in elf.symbols if called == name)
        for section, offset, kind, symbol, more in elf.relocations():
            called, of, value = elf.symbols[symbol]
            if kind != 261:  # tables for exceptions, which nobody reads
                target = (starts[of] + value if of else self._stub(called)) + more
                place = starts[section] + offset
                (word,) = struct.unpack("<I", self.cpu.mem_read(place, 4))
                self.cpu.mem_write(place, struct.pack("<I", relocated(word, kind, place, target)))

    def _stub(self, name):
        place = self.stubs.setdefault(name, STUBS + 16 * len(self.stubs))
        self.cpu.mem_write(place, struct.pack("<I", 0xD65F03C0))  # ret
        return place

    def _outside(self, cpu, address, _size, _data):
        name = next(name for name, place in self.stubs.items() if place == address)
        x0, x1, x2 = (cpu.reg_read(self.registers.UC_ARM64_REG_X0 + i) for i in range(3))
        if name == "log2":
            (value,) = struct.unpack("<d", struct.pack("<Q", cpu.reg_read(self.registers.UC_ARM64_REG_D0)))
            (bits,) = struct.unpack("<Q", struct.pack("<d", math.log2(value)))
            cpu.reg_write(self.registers.UC_ARM64_REG_D0, bits)
        elif name == "memset":
            cpu.mem_write(x0, bytes([x1 & 255]) * x2)
        elif name in {"memcpy", "memmove"}:
            cpu.mem_write(x0, bytes(cpu.mem_read(x1, x2)))
        else:
            raise AssertionError(name)

    def put(self, array):
        """The address of a copy of an array."""
        place, self.used = self.used, -(-(self.used + array.nbytes) // 64) * 64
        self.cpu.mem_write(place, array.tobytes())
        return place

    def get(self, place, like):
        """An array from memory."""
        return np.frombuffer(bytes(self.cpu.mem_read(place, like.nbytes)), like.dtype)

    def call(self, *arguments):
        """Call the function as numba does: a place for the result, one for an exception, then the arguments."""
        for i, argument in enumerate((HEAP + 0x3FFF00, HEAP + 0x3FFF80, *arguments)):
            self.cpu.reg_write(self.registers.UC_ARM64_REG_X0 + i, argument)
        self.cpu.reg_write(self.registers.UC_ARM64_REG_SP, STACK + 0x1FFF00)
        self.cpu.reg_write(self.registers.UC_ARM64_REG_LR, STUBS + 0xFF00)
        self.cpu.emu_start(self.entry, STUBS + 0xFF00)
