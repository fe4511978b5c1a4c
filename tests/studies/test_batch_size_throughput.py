"""Verdicts on made-up durations and memories, and the passes of a real model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from depthgauge import timing
from depthgauge.studies.batch_size import memory, throughput
from depthgauge.study import Case, Context, Rows
from depthgauge.verdict import Status

ROUNDS = 20
SIZES = (1, 4, 16, 64, 256, 1024)


def timed(model: str, seconds: Callable[[int], float], noise: float = 0.01) -> list[Rows]:
    draws = np.random.default_rng(0)
    return [
        Case.of({"model": model, "batch": size, "rounds": ROUNDS}).rows(
            "seconds", seconds(size) * np.exp(noise * draws.standard_normal(ROUNDS)), direction=name,
            step=np.arange(ROUNDS),
        )
        for size in SIZES for name in ("forward", "step")
    ]  # fmt: skip


def held(model: str, peak: Callable[[int], float]) -> list[Rows]:
    return [
        Case.of({"model": model, "batch": size, "rounds": ROUNDS}).rows("peak_bytes", float(peak(size)))
        for size in SIZES
    ]


def test_the_batch_at_which_time_stops_falling(analysed: Callable[..., Any]) -> None:
    """a + b B: examples a second grow by 10 % a doubling where b B = 4.1 a: between 64 and 256 for b = a / 32."""
    answers = analysed(throughput.PART, timed("mlp", lambda size: 1e-3 * (1 + size / 32)))
    assert answers.statuses["saturation"] is Status.HOLDS
    assert answers.statuses["overhead"] is Status.HOLDS
    stops = answers.tables["stops"].iloc[0]
    assert stops["batch"] == stops["up to"] == 256
    assert "mlp gains little from 256 on" in answers.sentences[0]
    gains = answers.tables["gains"].set_index(["pass", "batch"])
    growth = math.sqrt(4 * (1 + 1 / 32) / (1 + 4 / 32))
    assert gains.loc[("step", 4), "value"] == pytest.approx(growth, rel=0.01)


def test_time_that_never_stops_falling_and_never_falls(analysed: Callable[..., Any]) -> None:
    grows = analysed(throughput.PART, timed("mlp", lambda _: 1e-3))
    assert grows.statuses["saturation"] is Status.FAILS
    assert math.isinf(grows.tables["stops"].iloc[0]["batch"])
    assert "mlp still gains at 1024" in grows.sentences[0]
    flat = analysed(throughput.PART, timed("mlp", lambda size: 1e-3 * size))
    assert flat.statuses["saturation"] is Status.HOLDS
    assert flat.statuses["overhead"] is Status.FAILS
    assert flat.tables["stops"].iloc[0]["batch"] == 1
    noisy = analysed(throughput.PART, timed("mlp", lambda size: 1e-3 * size, noise=1.0))
    assert noisy.statuses["saturation"] is Status.INCONCLUSIVE
    assert "may still gain at 1024" in noisy.sentences[0]


@pytest.mark.parametrize(
    ("grows", "ends"),
    [
        ([True, False, False], (2, 2)),
        ([True, None, False], (2, 4)),
        ([False, False, None], (1, math.inf)),
        ([False, True, False], (4, 4)),
        ([True, True, True], (math.inf, math.inf)),
        ([False, False, False], (1, 1)),
    ],
)
def test_ends_of_where_it_stops(grows: list[bool | None], ends: tuple[float, float]) -> None:
    assert throughput.stop([1, 2, 4, 8], grows) == ends


def test_memory_that_is_a_line_and_memory_that_is_none(analysed: Callable[..., Any]) -> None:
    line = analysed(throughput.PART, held("mlp", lambda size: max(2e6, 1000 + 5e4 * size)))
    assert line.statuses["memory"] is Status.HOLDS
    table = line.tables["memory"].set_index("batch")
    assert list(table["answer"]) == ["off the line"] * 3 + ["fitted", "fitted", "on the line"]
    assert "off the line: mlp at 1, mlp at 4" in line.verdicts["memory"].why
    bent = analysed(throughput.PART, held("mlp", lambda size: 1e3 + 10 * size**2))
    assert bent.statuses["memory"] is Status.FAILS
    assert bent.verdicts["memory"].observed == pytest.approx((1e3 + 10 * 1024**2) / (1e3 - 10 * 64 * 256 + 3200 * 1024))


def found(model: str, **metrics: float) -> list[Rows]:
    case = Case.of({"model": model, "most": memory.MOST})
    return [case.rows(name, value) for name, value in metrics.items()]


def test_the_largest_batch_is_held_against_the_line(analysed: Callable[..., Any]) -> None:
    rows = held("mlp", lambda size: 1e6 + 1e4 * size)
    right = analysed(throughput.PART, [*rows, *found("mlp", largest=95_000, refused=96_000, limit_bytes=1e9)])
    assert right.statuses["largest"] is Status.HOLDS
    assert right.verdicts["largest"].observed == pytest.approx(95_000 / 99_900)
    wrong = analysed(throughput.PART, [*rows, *found("mlp", largest=50_000, refused=51_000, limit_bytes=1e9)])
    assert wrong.statuses["largest"] is Status.FAILS
    none = analysed(throughput.PART, [*rows, *found("mlp", largest=math.nan)])
    assert none.statuses["largest"] is Status.NOT_APPLICABLE
    assert "a CPU does not refuse memory" in none.verdicts["largest"].why


def test_the_search_of_the_largest_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device that refuses memory above 100 examples; the passes are real ones."""

    def refusing(case: Case, batch: int, device: str) -> dict[str, Any]:
        if batch > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return throughput_passes(case, batch, device)

    throughput_passes = throughput._passes
    device = timing.Device("fake", synchronize=lambda: None)
    monkeypatch.setattr(throughput, "_passes", refusing)
    monkeypatch.setattr(timing.Device, "named", staticmethod(lambda _: device))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"total_memory": 1 << 30}))
    case = Case.of({"model": "mlp", "most": 4096})
    rows = {row.metric: row.value for row in throughput.run([case], Context())}
    assert 98 <= rows["largest"] <= 100 < rows["refused"]
    assert rows["limit_bytes"] == pytest.approx(0.1 * 2**30)


def test_a_step_leaves_the_weights_and_is_counted() -> None:
    case = Case.of({"model": "mlp", "batch": 8, "rounds": 6})
    rows = list(throughput.run([case, case.but(batch=16)], Context()))
    seconds = {(row.case.integer("batch"), row.direction): row.value for row in rows if row.metric == "seconds"}
    assert set(seconds) == {(8, "forward"), (8, "step"), (16, "forward"), (16, "step")}
    assert all(len(each) == 6 and (each > 0).all() for each in seconds.values())
    peaks = [row.value for row in rows if row.metric == "peak_bytes"]
    assert 0 < peaks[0] < peaks[1]
