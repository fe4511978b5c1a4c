"""Part `exponentials` of the study precision: thresholds and shares against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from depthgauge import formats
from depthgauge.studies.precision import exponentials
from depthgauge.studies.precision.thresholds import EXPONENTIALS, least, softmax, vanishes
from depthgauge.study import Context, Grid
from depthgauge.verdict import Status


def rows_of(size="tiny"):
    chunks = [chunk for grid in exponentials.PART.at(size) for chunk in grid.chunks("precision")]
    return [row for chunk in chunks for row in exponentials.run(chunk.cases, Context())]


def test_bisection_finds_a_value_between_its_neighbours():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2):
        found = least(dtype, "cpu", lambda x: x.double() >= 3)
        assert found == 3  # a value of every one of them
    assert least(torch.float16, "cpu", lambda x: x < 0) == math.inf


@pytest.mark.parametrize("fmt", exponentials.FORMATS)
def test_definitions_of_the_thresholds_hold_in_float64(fmt):
    form = formats.get(fmt)
    x = vanishes(form)
    assert math.exp(-x) <= form.zero_below < math.exp(-(x - form.spacing(x)))
    dtype = getattr(torch, fmt)
    for happens, defined in EXPONENTIALS.values():
        at = torch.tensor(defined(form), dtype=dtype)
        before = at.nextafter(torch.zeros_like(at)) if dtype == torch.float32 else at - form.spacing(float(at) * 0.999)
        assert (bool(happens(at)), bool(happens(before))) == (True, False)


def test_a_softmax_without_a_shift_is_the_definition():
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(softmax(x), torch.softmax(x, 1))
    assert softmax(torch.tensor([[12.0, 0.0]], dtype=torch.float16))[0].isnan().tolist() == [True, False]


def test_the_chance_to_overflow_is_that_of_a_maximum():
    edge = formats.get("float16").exp_overflows_from() - 2.0**-8  # values of float16 there are 2^-7 apart
    expected = 1 - scipy.stats.norm.cdf(edge / 5) ** 10
    assert exponentials.overflowing("float16", 5) == pytest.approx(expected, rel=1e-12)


def test_scores_have_the_spread_that_is_asked_for():
    for kind in ("gaussian", "digits"):
        z, y = exponentials.scores(kind, 500, 3)
        assert z.std().item() == pytest.approx(1, rel=0.05)
        assert len(z) == len(y) == 500
        if kind == "digits":
            assert (z.argmax(1) == y).float().mean() > 0.75  # trained, not drawn


def test_this_device_is_judged(analysed):
    found = analysed(exponentials.PART, rows_of())
    assert found.statuses["exp_thresholds"] == Status.HOLDS
    table = found.tables["exp_thresholds"]
    assert set(table["answer"]) == {"equal"}
    assert table.groupby("format")["value"].min().round(2).to_dict() == {
        "float16": 4.18, "bfloat16": 82.0, "float32": 81.82
    }  # fmt: skip


def test_a_threshold_elsewhere_is_told(analysed):
    rows = [row for row in rows_of() if row.metric == "threshold"]
    moved = [row.case.rows("threshold", 2 * row.value, layer=row.layer) for row in rows[:1]] + rows[1:]
    found = analysed(exponentials.PART, moved)
    assert found.statuses["exp_thresholds"] == Status.FAILS
    assert "in float16 from 22.1875" in found.verdicts["exp_thresholds"].why


@pytest.mark.parametrize(("stable", "status"), [(0.0, Status.HOLDS), (0.5, Status.DEPENDS)])
def test_care_is_needed_where_the_naive_form_loses_what_the_stable_keeps(analysed, stable, status):
    rng, rows = np.random.default_rng(0), []
    varied = {"format": exponentials.FORMATS, "scores": ("gaussian",)}
    for case in Grid(varied, {"part": "exponentials", "measured": "shares", "examples": 4000}, 8).cases():
        naive = [exponentials.overflowing(case.text("format"), scale) for scale in exponentials.SCALES]
        nan = rng.binomial(4000, naive) / 4000
        kept = [stable] * len(naive)
        rows += [
            case.rows(name, x, step=exponentials.SCALES) for name, x in (("naive", nan), ("nan", nan), ("stable", kept))
        ]
        rows.append(case.rows("examples", 4000))
    found = analysed(exponentials.PART, rows)
    assert found.statuses["N29"] == status
    assert found.statuses["lost_scores"] == Status.HOLDS
