"""What a comparison costs beside a step of the same module, and its rates of false alarms and of faults found.

pytest benchmarks/test_precision_band.py --benchmark -k rates -s        # 1,000 modules each: minutes
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from depthgauge import models, precision, stats
from depthgauge.precision import calibration

MODULES = 1000


def test_comparison(benchmark: Any) -> None:
    """LeNet in float32 against itself in bfloat16, 32 images."""
    a, b = models.build("lenet5"), models.build("lenet5").to(torch.bfloat16)
    x = models.example("lenet5", batch=32)
    benchmark.extra_info["rows"] = len(precision.compare(a, b, x).rows)
    assert benchmark(precision.compare, a, b, x).same is True


def test_step(benchmark: Any) -> None:
    """The same forward and backward pass once."""
    module, x = models.build("lenet5"), models.example("lenet5", batch=32)
    benchmark(lambda: module(x).sum().backward())


@pytest.mark.parametrize("kind", ["order", "fault", "cancelling"])
def test_rates(kind: Any, benchmark: Any) -> None:
    """Shares of random modules, exact 95 % intervals: false alarms; faults of 8 ulps in one weight that are found."""
    rows = benchmark.pedantic(calibration.trials, (MODULES, kind), rounds=1)
    for column in ("beyond", "found", "results_beyond", "results_found"):
        effect = stats.coverage(int(rows[column].sum()), len(rows), 0.01).effect
        benchmark.extra_info[column] = f"{effect.value:.4f} [{effect.low:.4f}, {effect.high:.4f}] of {effect.n}"
    benchmark.extra_info["largest"] = float(rows["size"].max())
