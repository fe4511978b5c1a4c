"""Part `sums` of the study precision: its rows against sums made by numpy, its answers on errors made to measure."""

from __future__ import annotations

import numpy as np
import pytest

from depthgauge import theory
from depthgauge.studies.precision import sums
from depthgauge.study import Case, Context, Grid
from depthgauge.verdict import Status

LENGTHS = np.array([16, 64, 256, 1024, 4096])


def cases(fmt, order, rows=32, longest=4096):
    varied = {"format": (fmt,), "summation": (order,)}
    return tuple(Grid(varied, {"longest": longest, "rows": rows, "part": "sums"}, 6).cases())


def test_the_rows_are_errors_against_float64():
    (case, *_) = cases("float16", "naive", longest=64)
    rows = list(sums.run((case,), Context()))
    operands = sums.drawn("float16", (64, 32), case.random_seed("format", "seed"))
    for data, (a, b) in operands.items():
        x = (a * b).numpy()
        if data != "products":  # numpy rounds a product before it adds it
            computed = np.cumsum(x.astype(np.float16), axis=0, dtype=np.float16)[[15, 31, 63]].astype(float)
            rms = np.sqrt(np.square(computed - np.cumsum(x.astype(float), axis=0)[[15, 31, 63]]).mean(1))
            (row,) = (row for row in rows if row.layer == data and row.metric == "rms")
            np.testing.assert_allclose(row.value, rms, rtol=1e-12)
    assert (operands["equal"][0][0] == operands["equal"][0][-1]).all()


@pytest.mark.parametrize("fmt", sums.FORMATS)
def test_the_library_adds_no_worse_than_one_by_one(fmt):
    operands = sums.drawn(fmt, (256, 32), 1)
    a, b = operands["products"]
    found = sums.matmul(a, b, fmt, [64, 256], "cpu")
    exact = np.stack([(a * b)[:n].double().sum(0) for n in (64, 256)])
    magnitude = (a * b).abs().sum(0).double().numpy()
    assert (np.abs(found.numpy() - exact) <= theory.worst_case(fmt, 256) * magnitude).all()


def made(exponents):
    """Rows of the errors u * n^exponent of the sum's size, by format and order, spread by 1 %."""
    rng = np.random.default_rng(0)
    for (fmt, order), exponent in exponents.items():
        for case in cases(fmt, order):
            for data, mean in list(sums.DATA.items())[: 4 if order == "naive" else 3]:
                n = LENGTHS.astype(float)
                size = np.sqrt(n**2 * mean**2 + (n**2 if data == "equal" else n) * sums.STD**2)
                u = theory.summation.unit_roundoff(fmt)
                rms = u * size * n**exponent * np.exp(0.01 * rng.standard_normal(len(n)))
                yield case.rows("rms", rms, layer=data, step=LENGTHS)
                yield case.rows("inside", 0 if exponent == 1 else 32, layer=data)


def test_the_exponent_decides(analysed):
    root = {(fmt, order): 0.5 for fmt in sums.FORMATS for order in ("naive", "stochastic")}
    flat = {(fmt, order): 0.0 for fmt in sums.FORMATS for order in ("pairwise", "compensated")}
    found = analysed(sums.PART, made(root | flat))
    assert found.statuses["root_n"] == found.statuses["sum_order"] == found.statuses["stochastic_sum"] == Status.HOLDS
    assert found.statuses["sum_bound"] == Status.HOLDS
    assert found.statuses["sum_law"] != Status.HOLDS  # u sqrt(n) is three times the law's error
    grown = analysed(sums.PART, made(root | flat | {("bfloat16", "naive"): 1.0, ("float32", "compensated"): 1.0}))
    assert grown.statuses["root_n"] == grown.statuses["sum_order"] == Status.DEPENDS
    assert "faster for zero mean (naive, bfloat16)" in grown.verdicts["root_n"].why


def test_errors_of_the_law_are_the_laws(analysed):
    rows = []
    for fmt in sums.FORMATS:
        for case in cases(fmt, "naive"):
            for data in sums.DATA:
                law = sums.predicted(data, fmt, "naive", LENGTHS.tolist()) * (1 + 0.01 * case.integer("seed"))
                rows += [case.rows("rms", law, layer=data, step=LENGTHS), case.rows("inside", 32, layer=data)]
    assert analysed(sums.PART, rows).statuses["sum_law"] == Status.HOLDS


def test_float32_is_not_rounded_stochastically():
    """Its sums are made in float32 itself, where there is nothing to round."""
    wide = Case.of({"format": "float32", "summation": "stochastic"})
    for grid in sums.PART.at("tiny"):
        assert not any(set(wide.spelled) <= set(case.spelled) for case in grid.cases())
