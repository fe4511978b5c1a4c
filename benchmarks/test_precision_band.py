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


@pytest.mark.parametrize(("kind", "column"), [("order", "beyond"), ("fault", "found"), ("fault", "results_found")])
def test_rates(kind: Any, column: str, benchmark: Any) -> None:
    """Rates over random modules, with exact 95 % intervals: of false alarms, and of faults of 8 ulps in one weight."""
    rows = benchmark.pedantic(calibration.trials, (MODULES, kind), rounds=1)
    effect = stats.coverage(int(rows[column].sum()), len(rows), 0.01).effect
    benchmark.extra_info.update({"rate": effect.value, "low": effect.low, "high": effect.high, "modules": effect.n})
