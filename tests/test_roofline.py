"""The roofline's arithmetic, and what is measured for it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from depthgauge import roofline, timing
from depthgauge.operations import Operation
from depthgauge.roofline import Ceilings

LEVELS = ((1000, 5e10), (2000, 1e11), (4000, 2e10), (8000, 3e10))  # the first is short against the call itself
BARE = Ceilings("cpu", 1, {"float32": 1e11, "bfloat16": 4e11}, bandwidth=2e10, cached_bandwidth=1e11)
TOP = replace(BARE, levels=LEVELS, bandwidth=3e10)


def test_the_slower_of_the_two_ceilings_counts():
    assert BARE.ridge() == 5.0
    assert BARE.attainable(1.0) == 2e10
    assert BARE.attainable(50.0) == 1e11
    assert TOP.least(1e9, 1e6) == pytest.approx(1e-2)  # computing takes 10 ms, moving 33 us
    assert TOP.least(1e6, 1.5e9) == pytest.approx(5e-2)
    assert TOP.fraction(1e9, 1e6, 0.02) == pytest.approx(0.5)
    assert TOP.fraction(1e9, 1e6, 0.02, "bfloat16") == pytest.approx(0.125)
    assert TOP.fraction(0, 1.5e9, 0.1, "int64") == pytest.approx(0.5)  # nothing is computed: no format is asked for


@pytest.mark.parametrize(
    ("memory", "rate"), [(0, 1e11), (999, 1e11), (1000, 1e11), (3999, 1e11), (4000, 3e10), (1e9, 3e10)]
)
def test_a_bandwidth_is_the_best_of_all_sizes_that_are_no_smaller(memory, rate):
    assert TOP.bandwidth_within(memory) == rate
    assert BARE.bandwidth_within(memory) == BARE.fastest == 1e11  # sizes were not measured: a bound wherever it lies


def test_what_could_lie_in_a_cache_is_held_against_it():
    assert TOP.least(0, 6000) == pytest.approx(6e-8)  # 3000 bytes of memory, read and written
    assert TOP.least(0, 8000) == pytest.approx(8000 / 3e10)
    assert TOP.least(0, 6000, within=math.inf) == pytest.approx(2e-7)


def test_operators_add_up_each_at_its_own_size_and_format():
    copy, product = Operation("aten::copy_", (), 0, 6000, "int64"), Operation("aten::mm", (), 1000, 60, "float32")
    alone = TOP.least(0, 6000), TOP.least(1000, 60, "bfloat16")
    assert TOP.least_of([copy, product, product], "bfloat16") == pytest.approx(alone[0] + 2 * alone[1])
    assert TOP.least_of(1000 * [copy]) < TOP.least(0, 1000 * 6000)  # a thousand small ones may stay in the cache
    assert TOP.least_of([]) == 0


def test_at_the_ridge_both_take_the_same_time():
    flops = 1e9
    moved = flops / TOP.ridge()
    assert flops / TOP.peak("float32") == pytest.approx(moved / TOP.bandwidth)


def test_what_a_user_can_get_wrong():
    with pytest.raises(LookupError, match="no ceiling for 'float8' on cpu; there is float32, bfloat16"):
        TOP.fraction(1.0, 1.0, 1.0, "float8")
    with pytest.raises(ValueError, match="a duration is positive"):
        TOP.fraction(1.0, 1.0, 0.0)


def test_sizes_grow_while_the_rate_does_and_slow_layouts_are_left_out(monkeypatch):
    """A device whose rate grows up to a side of 192, three times as fast where the second factor is transposed."""
    asked = []

    def best(works, _device):
        n = works[0].args[0].shape[0]
        asked.append((n, len(works)))
        rate = 1e9 * min(n, 192)
        return [2 * n**3 / (rate * (3 if work.args[1].stride(0) == 1 else 1)) for work in works]

    monkeypatch.setattr(roofline, "_ENOUGH", 1e-6)
    monkeypatch.setattr(roofline, "_best", best)
    assert roofline._products("cpu", "float32") == pytest.approx(3 * 192e9)
    assert asked == [(64, 3), (96, 1), (128, 1), (192, 1), (256, 1)]
    monkeypatch.setattr(roofline, "_LONGEST", 1e-6)
    asked.clear()
    assert roofline._products("cpu", "bfloat16") == pytest.approx(3 * 64e9)  # what takes too long is the last
    assert asked == [(64, 3)]


def test_bandwidth_is_that_of_the_fastest_way_to_move(monkeypatch):
    monkeypatch.setattr(roofline, "_best", lambda works, _device: [1e-6, 1e-6, 4e-6][: len(works)])
    sizes = [roofline._LEAST, 2 * roofline._LEAST]
    assert list(roofline._levels("cpu", sizes[-1])) == [(size, pytest.approx(1.5 * size / 1e-6)) for size in sizes]


@pytest.mark.alone
def test_this_machines_are_measured_once(monkeypatch):
    monkeypatch.setattr(roofline, "_LONGEST", 1e-9)  # of each format the smallest product, not the best
    monkeypatch.setattr(roofline, "_MEMORY", 1 << 15)
    monkeypatch.setattr(roofline, "_measured", cache(roofline._measured.__wrapped__))
    with timing.pinned(1):
        here = roofline.ceilings("cpu")
        assert roofline.ceilings("cpu") is here
    assert (here.device, here.threads) == ("cpu", 1)
    assert set(here.flops) == {"float64", "float32", "bfloat16", "float16"}
    assert all(math.isfinite(rate) and rate > 0 for rate in (*here.flops.values(), here.bandwidth))
    assert [size for size, _ in here.levels] == [1 << 14, 1 << 15]
    assert here.bandwidth == here.levels[-1][1] <= here.cached_bandwidth
    assert torch.get_float32_matmul_precision() == "highest"
