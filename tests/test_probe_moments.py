"""Moments of float64 wherever they lie: a mean of finite numbers is finite, however large their sum."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from depthgauge.probe import pairs, planes, shuffles
from depthgauge.probe.compiled import VECTORS, CompiledKernel
from depthgauge.probe.plain import PlainKernel
from depthgauge.probe.record import Record, Slot

needs_planes = pytest.mark.skipif(VECTORS != "avx512bw", reason="not on this processor")
needs_shuffles = pytest.mark.skipif(VECTORS is None, reason="not on this processor")
KERNELS = [
    pytest.param(PlainKernel, id="plain"),
    pytest.param(lambda: CompiledKernel(pairs.METHOD), id="pairs"),
    pytest.param(lambda: CompiledKernel(planes.METHOD), id="planes", marks=needs_planes),
    pytest.param(lambda: CompiledKernel(shuffles.METHOD), id="shuffles", marks=needs_shuffles),
]
MOST = np.finfo(np.float64).max
VALUES = {
    "the largest": [MOST] * 777,
    "opposite": [MOST, MOST, -MOST, -MOST],
    "squares that fit, not their sum": [1e154] * 1000,
    "one square that does not fit, the mean of all does": [1e155] + [0.0] * 99_999,
    "both signs": [3e307, -1e308, 1.5e308, 1.7e308, 1e308] * 999,
    "the smallest": [5e-324, 1e-310, 2.0**-1022] * 7,
    "a large one that cancels": [1e160, -1e160, 1e-150],
    "not finite beside the largest": [MOST, MOST, float("inf"), float("nan")],
}


def moment(values: list[float], power: int) -> float:
    finite = [Fraction(value) ** power for value in values if np.isfinite(value)]
    mean = sum(finite) / len(finite)
    return float(mean) if mean <= MOST else np.inf


@pytest.mark.parametrize("make", KERNELS)
@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_moments_of_float64_do_not_overflow_on_the_way(make, values):
    kernel = make()
    kernel.observe(torch.tensor(values, dtype=torch.float64), 0, 0, 0)
    row = Record([Slot("activation", "layer")], {}, [kernel]).to_frame().iloc[0]
    finite = [value for value in values if np.isfinite(value)]
    slack = len(finite) * np.finfo(np.float64).eps * max(abs(value / len(finite)) for value in finite)
    assert row["mean"] == pytest.approx(moment(values, 1), rel=1e-12, abs=slack)
    assert row["second_moment"] == pytest.approx(moment(values, 2), rel=1e-12)
    assert row["min"] <= row["mean"] <= row["max"]
