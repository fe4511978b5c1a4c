"""A study's tables as a reader sees them."""

from __future__ import annotations

import math

import pandas as pd

from depthgauge.reports.tables import Table


def of(**columns: object) -> Table:
    return Table.of("t", "s.t", pd.DataFrame(columns), shown=True)


def test_an_estimate_and_its_interval_are_one_column() -> None:
    table = of(
        net=["a", "b"], value=[0.51234, math.nan], low_95=[0.4991, math.nan], high_95=[0.5257, math.nan],
        rate=[1.5, 2.5], rate_low_99=[1.4, 2.4], rate_high_99=[1.6, 2.6],
    )  # fmt: skip
    assert [column.name for column in table.columns] == ["net", "value [95 %]", "rate [99 %]"]
    assert table.rows == (("a", "0.512 [0.499, 0.526]", "1.50 [1.40, 1.60]"), ("b", "NaN", "2.50 [2.40, 2.60]"))
    assert table.csv.startswith(b"net,value,low_95,high_95,rate,rate_low_99,rate_high_99\n")


def test_ends_without_their_estimate_stay_columns() -> None:
    table = of(net=["a"], low_95=[1.0], high_95=[2.0], rate_low_95=[1.0])
    assert [column.name for column in table.columns] == ["net", "low_95", "high_95", "rate_low_95"]


def test_a_wide_table_is_split_and_every_part_names_its_rows() -> None:
    names = ["net", "depth", "n", *(f"x{i}" for i in range(15))]
    table = of(**{name: [1] for name in names})
    assert all(len(block) <= 10 and block[:2] == (0, 1) for block in table.blocks)
    assert [place for block in table.blocks for place in block[2:]] == list(range(2, 18))
    assert of(**{name: [1] for name in names[:10]}).blocks == (tuple(range(10)),)
    assert Table.of("t", "s", pd.DataFrame({"x": [1]}), shown=False).blocks == ()
