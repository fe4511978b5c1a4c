"""The side-by-side table on made-up seconds, and a real step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from depthgauge.studies.precision import operators
from depthgauge.study import Case, Context, Rows


def step(dtype: str, seconds: dict[str, float], direction: str = "operator") -> list[Rows]:
    case = Case.of({"model": "mlp", "dtype": dtype})
    rows = [case.rows("step", 2 * sum(seconds.values()))] if direction == "operator" else []
    return [*rows, case.rows("seconds", np.array([*seconds.values()]), layer=[*seconds], direction=direction)]


def test_formats_stand_side_by_side_the_longest_operator_first(analysed: Callable[..., Any]) -> None:
    rows = [
        *step("float16", {"aten::mm": 8e-3, "aten::relu": 1e-6}),
        *step("float32", {"aten::relu": 2e-6, "aten::mm": 1e-3, "aten::to": 1e-3}),
        *step("float32", {"aten::mm: gemm": 1e-3}, "kernel"),
    ]
    answers = analysed(operators.PART, rows)
    table = answers.tables["operators"]
    assert list(table) == ["model", "operator", "float32_us", "float16_us", "float16_ratio"]
    assert table["operator"].tolist() == ["aten::mm", "aten::to", "aten::relu"]
    assert table["float32_us"].to_numpy() == pytest.approx([1e3, 1e3, 2.0])
    assert table["float16_ratio"].to_numpy() == pytest.approx([8.0, np.nan, 0.5], nan_ok=True)
    assert answers.tables["kernels"]["kernel"].tolist() == ["aten::mm: gemm"]
    assert "16 ms in float16 (aten::mm 8 ms)" in answers.sentences[0]


def test_the_operators_of_a_real_step_are_those_of_an_mlp(analysed: Callable[..., Any]) -> None:
    (grid,) = operators.PART.at("tiny")
    rows = list(operators.run(list(grid.cases()), Context()))
    table = analysed(operators.PART, rows).tables["operators"].set_index("operator")
    assert {"float32_us", "bfloat16_us", "float16_us"} < set(table)
    assert {"aten::mm", "aten::addmm", "aten::relu"} < set(table.index)
    assert (table.loc[["aten::mm", "aten::addmm"], "float32_us"] > 0).all()
    assert operators.PART.at("quick") == ()
