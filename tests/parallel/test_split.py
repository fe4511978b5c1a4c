"""The split of a step, on planted events whose seconds are known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from depthgauge import trace
from depthgauge.parallel.split import split

MICRO = 1e-6


def event(kind: str, name: str, start: float, end: float, *, thread: int = 1, **given: Any) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": kind,
        "name": name,
        "ts": start,
        "dur": end - start,
        "pid": 1,
        "tid": thread,
        "args": given,
    }


HOST = (
    event("user_annotation", "ProfilerStep#1", 0, 100),
    event("user_annotation", "ProfilerStep#2", 100, 150),
    event("cpu_op", "aten::linear", 10, 30),
    event("cpu_op", "aten::addmm", 12, 28),  # within the former: counted once
    event("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", 30, 60),
    event("cpu_op", "AddmmBackward0", 31, 59),
    event("cpu_op", "aten::mm", 35, 55),
    event("cpu_op", "torch::distributed::reducer::mul_out", 60, 70),  # a copy into a bucket
    event("cpu_op", "aten::mul", 61, 69),
    event("cpu_op", "c10d::allreduce_", 70, 72),
    event("user_annotation", "gloo:all_reduce", 50, 80, thread=2),
    event("user_annotation", "gloo:all_reduce", 75, 90, thread=3),  # two at once
    event("cpu_op", "aten::add_", 85, 95),
)


def test_a_step_is_what_computes_what_only_communicates_and_the_rest() -> None:
    first, second = split(trace.parse(HOST))
    assert first.computing == pytest.approx((20 + 20 + 10) * MICRO)
    assert first.hidden == pytest.approx((5 + 5) * MICRO)  # 50 to 55 and 85 to 90
    assert first.exposed == pytest.approx(30 * MICRO)  # 55 to 85
    assert first.rest == pytest.approx(20 * MICRO)
    assert first.seconds == pytest.approx(100 * MICRO)
    assert first.hidden_share == pytest.approx(0.25)
    assert first.collectives == 2
    assert (second.computing, second.communicating, second.collectives) == (0, 0, 0)
    assert second.rest == pytest.approx(50 * MICRO)
    assert math.isnan(second.hidden_share)


def test_a_collective_is_cut_where_the_step_ends() -> None:
    late = event("user_annotation", "gloo:all_reduce", 90, 120, thread=2)
    first, second = split(trace.parse([*HOST, late]))
    assert first.exposed == pytest.approx(35 * MICRO)  # and 95 to 100
    assert second.exposed == pytest.approx(20 * MICRO)
    assert (first.collectives, second.collectives) == (3, 0)


def test_on_a_device_kernels_count_and_the_host_does_not() -> None:
    kernels = (
        event("kernel", "ampere_sgemm_128x64", 20, 50, thread=7, correlation=1),
        event("kernel", "ncclDevKernel_AllReduce_Sum_f32_RING_LL", 40, 80, thread=9, correlation=2),
        event("gpu_memcpy", "Memcpy HtoD", 5, 15, thread=7, correlation=3),
    )
    host = [each for each in HOST if each["name"] != "gloo:all_reduce"]
    first, _ = split(trace.parse([*host, *kernels]))
    assert first.computing == pytest.approx(30 * MICRO)
    assert (first.hidden, first.exposed) == pytest.approx((10 * MICRO, 30 * MICRO))
    assert first.rest == pytest.approx(40 * MICRO)
    assert first.collectives == 1


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(trace.TraceError, match="schedule"):
        split(trace.parse(HOST[2:]))
