"""The kernel for ARM's NEON: its machine code looks bytes up in registers, and counts what the other kernels count."""

import re

import arm
import numpy as np
import pytest
import torch

from depthgauge.probe import blocks, lookup, pairs, processor, shuffles, turns, window
from depthgauge.probe.binades import BLOCK
from depthgauge.probe.compiled import CompiledKernel
from depthgauge.probe.rows import KEYS, MAX, MIN, SUM, SUM_OF_LOG2, SUM_OF_SQUARES, WORDS, ZEROS

N = 4096 + 512 + 77
CASES = {
    "normal": lambda draw: draw.standard_normal(N),
    "rectified": lambda draw: np.maximum(draw.standard_normal(N), 0),
    "far apart": lambda draw: np.exp(8 * draw.standard_normal(N)),
    "subnormal": lambda draw: draw.standard_normal(N) * 1e-38,
    "quantized": lambda draw: np.round(8 * draw.standard_normal(N)) / 8,
    "few": lambda draw: draw.standard_normal(7),
}


@pytest.fixture(scope="module")
def kernel():
    """Count a tensor's numbers, `n` of them, with the stand-in for NEON's look-up."""
    block32, finish = window.block_functions(
        "stand-in", 16, window.GROUP, shuffles.counts_by(lookup.by_stand_in), shuffles._place_of
    )

    @blocks.compiled
    def observe(state, row, data, n):
        for start in range(0, n, BLOCK):
            block32(state, row, data + 4 * start, min(BLOCK, n - start), data, 0)
        finish(state, row)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "BLENDS", False)
        observe.compile("void(int64, int64, int64, int64)")
    return observe


def counted(values, call, put, get):
    """A tensor's row by a function, as integers and as numbers, and its counts, in memory that `put` gives out."""
    buffers = {blocks.DENSE_AT: np.zeros(KEYS, np.int64), **shuffles._buffers()}
    state = np.zeros(shuffles.METHOD.words, np.int64)
    state[blocks.LOW], state[blocks.HIGH] = 2000, -2000
    places = {word: put(buffer) for word, buffer in buffers.items()}
    for word, place in places.items():
        state[word] = place
    row = np.zeros(WORDS)
    row[MIN], row[MAX] = np.inf, -np.inf
    state_at, row_at, data_at = put(state), put(row), put(values)
    call(state_at, row_at, data_at, len(values))
    row = get(row_at, row)
    return row.view(np.int64), row, get(places[blocks.DENSE_AT], buffers[blocks.DENSE_AT])


def here(kernel, values):
    """By this processor."""
    held = {}

    def put(array):
        held[array.ctypes.data] = array
        return array.ctypes.data

    return counted(values, kernel, put, lambda place, _like: held[place])


def by_reference(values):
    """By the kernel that counts pairs."""
    kernel = CompiledKernel(pairs.METHOD)
    kernel.observe(torch.from_numpy(values), 0, 0, 0)
    rows = kernel.read()
    counts = np.zeros(KEYS, np.int64)
    counts[rows.keys] = rows.counts
    return rows.words[0], rows.words[0].view(np.float64), counts


def agree(one, other):
    """The same histogram, zeros and extremes; sums to rounding."""
    assert np.array_equal(one[2], other[2])
    assert one[0][ZEROS] == other[0][ZEROS]
    assert np.array_equal(one[1][[MIN, MAX]], other[1][[MIN, MAX]])
    assert one[1][SUM_OF_SQUARES] == pytest.approx(other[1][SUM_OF_SQUARES], rel=1e-12)
    assert one[1][SUM] == pytest.approx(other[1][SUM], rel=1e-10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_stand_in_counts_what_pairs_count(kernel, case):
    values = case(np.random.default_rng(1)).astype(np.float32)
    agree(here(kernel, values), by_reference(values))


@pytest.fixture(scope="module")
def code(kernel):
    """The assembly and the object file for ARM, and the function's name."""
    module, name = arm.module_of(kernel)
    target = arm.machine()
    module = arm.optimized(module, target)
    return target.emit_assembly(module), target.emit_object(module), name


def test_bytes_are_looked_up_in_registers(code):
    assembly, _, _ = code
    # 32 numbers are two registers of bytes, each looked up twice; they come from eight registers by trn1 and trn2.
    assert len(re.findall(r"\ttbl\t", assembly)) >= 4
    assert len(re.findall(r"\ttrn[12]\t", assembly)) >= 12
    assert lookup.STAND_IN not in assembly


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_emulated_arm_processor_counts_the_same(kernel, code, case):
    pytest.importorskip("unicorn")
    _, binary, name = code
    emulated = arm.Arm(binary, name)
    values = case(np.random.default_rng(1)).astype(np.float32)
    got = counted(values, emulated.call, emulated.put, emulated.get)
    want = here(kernel, values)
    agree(got, want)
    assert got[1][SUM_OF_LOG2] == pytest.approx(want[1][SUM_OF_LOG2], rel=1e-12, abs=1e-9)


def test_vectors_are_those_that_llvm_adds_bytes_in():
    arm.machine()  # makes LLVM know ARM
    assert processor.vectors_of(arm.TRIPLE, "", "") == "neon"
    for name, widest in {"x86-64": None, "ivybridge": None, "znver3": "avx2", "znver5": "avx512bw"}.items():
        assert processor.vectors_of("x86_64-unknown-linux-gnu", name, "") == widest
    assert processor.vectors_of("x86_64-unknown-linux-gnu", "znver5", "-avx512bw") == "avx2"
