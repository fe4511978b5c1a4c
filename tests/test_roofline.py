"""The roofline's arithmetic, and what is measured for it."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from depthgauge import roofline, timing
from depthgauge.roofline import Ceilings

TOP = Ceilings("cpu", 1, {"float32": 1e11, "bfloat16": 4e11}, bandwidth=2e10, cached_bandwidth=1e11)


def test_the_slower_of_the_two_ceilings_counts():
    assert TOP.ridge() == 5.0
    assert TOP.attainable(1.0) == 2e10
    assert TOP.attainable(50.0) == 1e11
    assert TOP.least(1e9, 1e6) == pytest.approx(1e-2)  # computing takes 10 ms, moving 50 us
    assert TOP.least(1e6, 1e9) == pytest.approx(5e-2)
    assert TOP.least(1e6, 1e9, cached=True) == pytest.approx(1e-2)
    assert TOP.fraction(1e9, 1e6, 0.02) == pytest.approx(0.5)
    assert TOP.fraction(1e9, 1e6, 0.02, "bfloat16") == pytest.approx(0.125)
    assert TOP.fraction(0, 1e9, 0.1, "int64") == pytest.approx(0.5)  # nothing is computed: no format is asked for


def test_at_the_ridge_both_take_the_same_time():
    flops = 1e9
    moved = flops / TOP.ridge()
    assert flops / TOP.peak("float32") == pytest.approx(moved / TOP.bandwidth)


def test_what_a_user_can_get_wrong():
    with pytest.raises(LookupError, match="no ceiling for 'float8' on cpu; there is float32, bfloat16"):
        TOP.fraction(1.0, 1.0, 1.0, "float8")
    with pytest.raises(ValueError, match="a duration is positive"):
        TOP.fraction(1.0, 1.0, 0.0)


def test_sizes_grow_until_a_product_takes_long_enough(monkeypatch):
    """A device of 1e9 operations a second, five times as many at 256 where the second factor is transposed."""
    asked = []

    def measure(work, _device, **_settings):
        work()
        n, rate = [(256, 1e9), (256, 5e9), (256, 1e9), (512, 1e9), (512, 1e9), (512, 1e9)][len(asked)]
        asked.append(n)
        return timing.Timing((2 * n**3 / rate,) * 5, 1, 1.0, "host", "warm")

    monkeypatch.setattr(roofline, "_ENOUGH", 0.02)
    monkeypatch.setattr(roofline.timing, "measure", measure)
    assert roofline._products("cpu", "float32") == pytest.approx(5e9)  # the best of all, not the last
    assert asked == [256] * 3 + [512] * 3


@pytest.mark.alone
def test_this_machines_are_measured_once(monkeypatch):
    monkeypatch.setattr(roofline, "_ENOUGH", 1e-6)  # of each format the smallest product, not the best
    monkeypatch.setattr(roofline, "_measured", cache(roofline._measured.__wrapped__))
    with timing.pinned(1):
        here = roofline.ceilings("cpu")
        assert roofline.ceilings("cpu") is here
    assert (here.device, here.threads) == ("cpu", 1)
    assert set(here.flops) == {"float64", "float32", "bfloat16", "float16"}
    assert all(math.isfinite(rate) and rate > 0 for rate in (*here.flops.values(), here.bandwidth))
    assert torch.get_float32_matmul_precision() == "highest"
