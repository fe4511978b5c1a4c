"""The Triton kernel's logic, by Triton's interpreter on the processor, against the plain definitions."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="triton is not installed")

# Triton reads this variable when it is imported, and compiles for a device where it is not set.
CHECK = """
import sys
import numpy as np
import torch
from depthgauge.probe.fused import FusedKernel
from depthgauge.probe.plain import PlainKernel
from depthgauge.probe import rows

torch.manual_seed(0)
bits = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)).view(torch.float32)
tensors = [
    torch.randn(5000),
    torch.randn(2048 * 512 + 3),
    torch.randn(64, 64).relu(),
    bits,
    torch.randn(3000) * 1e-41,
    torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1.0, 1e-45]),
    torch.tensor([float("nan")]),
    torch.zeros(0),
    torch.randn(999).half(),
    torch.randn(999).bfloat16(),
    torch.randn(999, dtype=torch.float64),
]
fused, plain = FusedKernel("cpu"), PlainKernel()
for number, tensor in enumerate(tensors):
    fused.observe(tensor, number, 2, 3)
    plain.observe(tensor.double(), number, 2, 3)
found, expected = fused.read(), plain.read()
np.testing.assert_array_equal(found.words[:, :9], expected.words[:, :9])
np.testing.assert_array_equal(found.keys, expected.keys)
np.testing.assert_array_equal(found.counts, expected.counts)
for word in (rows.MIN, rows.MAX):
    np.testing.assert_array_equal(found.number(word), expected.number(word))
count = np.maximum(expected.words[:, rows.COUNT], 1)
largest = np.nan_to_num(np.maximum(abs(expected.number(rows.MIN)), abs(expected.number(rows.MAX))))
rounding = count * 2.0**-52
assert (abs(found.number(rows.SUM) - expected.number(rows.SUM)) <= rounding * count * largest).all()
np.testing.assert_allclose(
    found.number(rows.SUM_OF_SQUARES), expected.number(rows.SUM_OF_SQUARES), rtol=rounding.max(), atol=0
)
# A logarithm in float32 is off by 2^-23 at most; there are at most `count` of them.
assert (abs(found.number(rows.SUM_OF_LOG2) - expected.number(rows.SUM_OF_LOG2)) <= count * 2.0**-22).all()
fused.clear()
assert len(fused.read().words) == 0
for i in range(600):
    fused.observe(torch.full((3,), float(i)), 0, i, 0)
assert fused.read().words[:, rows.STEP].tolist() == list(range(600))
fused.trim(50)
assert fused.read().words[:, rows.STEP].tolist() == list(range(550, 600))
assert len(fused.nonfinite()) == 0
fused.observe(torch.tensor([1.0, float("inf")]), 7, 600, 0)
fused.observe(torch.tensor([1.0, float("nan")], dtype=torch.float64), 8, 600, 0)
assert fused.nonfinite()[:, rows.SLOT].tolist() == [8]  # the other one is on the device until it is read
assert len(fused.read().words) == 52
assert fused.nonfinite()[:, rows.SLOT].tolist() == [7, 8]
"""


@pytest.mark.slow
def test_fused_rows_are_those_of_the_reference():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHECK], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
