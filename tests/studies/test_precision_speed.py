"""Verdicts on made-up durations, and the bytes and steps of a real model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from depthgauge.studies.precision import speed
from depthgauge.study import Case, Context, Rows
from depthgauge.timing import rows_of
from depthgauge.verdict import Status

BLOCKS = 15


def timed(case: Case, times: float) -> list[Rows]:
    """A call that takes so many times a reference of 1 ms, with noise of a thousandth."""
    noise = np.random.default_rng(0).normal(1.0, 1e-3, (BLOCKS, 2, 2))
    return list(rows_of(case, 1e-3 * np.array([times, 1.0])[:, None] * noise, "call"))


def operations(factors: dict[tuple[str, str], float]) -> list[Rows]:
    return [
        row
        for (operation, fmt), factor in factors.items()
        for row in timed(Case.of({"operation": operation, "side": 100, "format": fmt, "blocks": BLOCKS}), factor)
    ]


def test_products_are_told_faster_slower_and_the_same(analysed: Callable[..., Any]) -> None:
    factors = {("product", "float32"): 1.0, ("product", "bfloat16"): 0.5, ("product", "float16"): 20.0}
    answers = analysed(speed.PART, operations(factors))
    assert answers.statuses["products"] is Status.DEPENDS
    assert "20.0 times as long" in answers.sentences[0]
    table = answers.tables["operations"].set_index("format")
    assert table.loc["bfloat16", "gigaflops"] == pytest.approx(2 * 100**3 / 0.5e-3 / 1e9, rel=0.01)
    moved = analysed(speed.PART, operations({("sum", "float32"): 1.0, ("sum", "float16"): 0.52}))
    assert "0.52 in float16" in moved.sentences[0]
    same = analysed(speed.PART, operations({**factors, ("product", "bfloat16"): 1.01}))
    assert same.statuses["products"] is Status.FAILS


def test_nothing_is_said_without_the_reference(analysed: Callable[..., Any]) -> None:
    answers = analysed(speed.PART, operations({("product", "bfloat16"): 0.5}))
    assert not answers.tables
    assert not answers.verdicts


def test_a_step_is_timed_and_its_bytes_are_counted(analysed: Callable[..., Any]) -> None:
    grid = next(grid for grid in speed.PART.at("tiny") if "model" in grid.varied)
    rows = list(speed.run(list(grid.cases()), Context()))
    held = {row.case.text("recipe"): row.value for row in rows if row.metric == "bytes"}
    assert held["bfloat16"] / held["float32"] == pytest.approx(0.5, abs=0.01)
    table = analysed(speed.PART, rows).tables["steps"].set_index("recipe")
    assert table.loc["bfloat16", "memory"] == held["bfloat16"] / held["float32"]
