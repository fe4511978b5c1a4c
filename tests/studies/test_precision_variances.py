"""Part `variances` of the study precision: its errors against numpy's, its answers on errors made to measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from depthgauge import formats
from depthgauge.studies.precision import variances
from depthgauge.study import Context, Grid
from depthgauge.verdict import Status

RATIOS = 2.0 ** np.arange(11)


def cases(fmt, formula, **more):
    fixed = {"features": 256, "rows": 16, "ratios": 11, "part": "variances", **more}
    return tuple(Grid({"format": (fmt,), "formula": (formula,)}, fixed, 6).cases())


def test_the_rows_are_relative_errors():
    (case, *_) = cases("float32", "torch.var", ratios=3)
    (row,) = variances.run((case,), Context())
    assert list(row.step) == [1, 2, 4]
    assert (np.asarray(row.value) < 2.0**-23).all()  # the library rounds once
    assert (np.asarray(row.value) > 2.0**-28).all()


def test_layer_norm_is_that_of_columns():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    expected = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(variances.normed(x), expected)


def test_a_format_has_no_ratio_beyond_its_grid():
    for fmt in variances.FORMATS:
        (case, *_) = cases(fmt, "two-pass")
        (row,) = variances.run((case,), Context())
        assert max(row.step) <= 0.25 / variances.unit_roundoff(fmt)
        assert np.isfinite(row.value).all()


def made(exponents):
    rng = np.random.default_rng(0)
    for fmt in variances.FORMATS:
        u = 2.0 ** -(formats.get(fmt).mantissa_bits + 1)
        for formula, exponent in exponents.items():
            ratios = RATIOS[0.25 / u >= RATIOS]
            for case in cases(fmt, formula):
                rms = u * np.hypot(1, ratios) ** exponent * np.exp(0.01 * rng.standard_normal(len(ratios)))
                yield case.rows("rms", rms, step=ratios.astype(int))


GOOD = {"one-pass": 2.0, "two-pass": 0.0, "welford": 0.0, "torch.var": 0.0, "layer_norm": 0.0}


def test_exponents_decide(analysed):
    found = analysed(variances.PART, made(GOOD))
    assert {found.statuses[name] for name in ("variance", "welford", "layer_norm")} == {Status.HOLDS}
    other = analysed(variances.PART, made(GOOD | {"two-pass": 1.0, "layer_norm": 1.0, "welford": 1.0}))
    assert other.statuses["variance"] == other.statuses["layer_norm"] == Status.DEPENDS
    assert other.statuses["welford"] == Status.FAILS


@pytest.mark.parametrize(("factor", "status"), [(1.0, Status.HOLDS), (2.0, Status.FAILS)])
def test_the_law_is_held_against_the_errors(analysed, factor, status):
    rows = []
    for formula in variances.PASSES:
        law = factor * variances.predicted(formula, "float32", 256, RATIOS)
        for case in cases("float32", formula):
            rms = law * (1 + 0.01 * case.integer("seed"))
            rows.append(case.rows("rms", rms, step=RATIOS.astype(int)))
    assert analysed(variances.PART, rows).statuses["variance_law"] == status
