"""Part `limits` of the study precision: thresholds against each format's values, casts against one that is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from depthgauge import formats
from depthgauge.studies.precision import limits, thresholds
from depthgauge.study import Context, Grid
from depthgauge.verdict import Status


@pytest.fixture(scope="module")
def rows():
    chunks = [chunk for grid in limits.PART.at("tiny") for chunk in grid.chunks("precision")]
    return [row for chunk in chunks for row in limits.run(chunk.cases, Context())]


def test_every_threshold_is_where_its_definition_has_it(rows, analysed):
    table = analysed(limits.PART, rows).tables["limits"]
    other = table[table["answer"] == "other"]
    saturates = torch.full((64,), 1e4).to(torch.float8_e4m3fn).float().isfinite().all()
    assert set(other["format"]) == ({"float8_e4m3fn"} if saturates else set())
    half = table[(table["format"] == "float16") & (table["threshold"] == "rounds to zero up to")]["value"].item()
    assert half == 2.0**-25  # half the smallest value, itself included
    stops = table[table["threshold"] == "a sum of ones stops at"].set_index("format")["value"]
    assert stops.to_dict() == {
        "float32": 2.0**24, "tf32": 2048, "bfloat16": 256, "float16": 2048, "float8_e4m3fn": 16, "float8_e5m2": 8
    }  # fmt: skip


def test_bit_patterns_meet_every_midpoint():
    fmt = formats.get("float8_e5m2")
    x = limits.patterns(fmt, 2**12).numpy()
    x = np.abs(x[np.isfinite(x)]).astype(float)
    values = np.array([*np.arange(4) * 2.0**-16, *np.outer(2.0 ** np.arange(-14, 15), [1, 1.25, 1.5, 1.75]).ravel()])
    middles = (values[1:] + values[:-1]) / 2
    assert np.isin(middles[middles < fmt.max], x).all()


def test_a_cast_that_is_wrong_is_counted(rows, analysed):
    moved = [
        row.case.rows("different", 3) if row.metric == "different" and row.case.text("format") == "bfloat16" else row
        for row in rows
    ]
    verdict = analysed(limits.PART, moved).verdicts["casts"]
    assert verdict.status == Status.DEPENDS
    assert "3 of" in verdict.why
    assert "in bfloat16" in verdict.why


def test_subnormal_numbers_that_are_flushed_are_told(rows, analysed):
    assert analysed(limits.PART, rows).statuses["subnormal_numbers"] == Status.HOLDS
    (case, *_) = Grid({"format": ("float32",)}, {"patterns": 8, "part": "limits"}, 0).cases()
    flushed = [*rows, case.rows("kept", [0.0], layer=["product"], direction=limits.ORDINARY)]
    verdict = analysed(limits.PART, flushed).verdicts["subnormal_numbers"]
    assert verdict.status == Status.DEPENDS
    assert "float32 (product)" in verdict.why


def test_the_mode_is_put_back():
    tiny = torch.tensor(torch.finfo(torch.float32).tiny)
    for flush in (True, False):
        torch.set_flush_denormal(flush)
        dict(limits.subnormals(formats.get("float32"), "cpu"))
        assert bool(tiny / 2 == 0) == flush


def test_windows_end_at_the_formats_ends():
    for name in limits.FORMATS:
        window = limits.window(formats.get(name))
        assert window["spacing"].iloc[0] == 1
        assert (window["spacing"].iloc[1:] == formats.get(name).epsilon).all()
    assert limits.window(formats.get("nvfp4"))["magnitude"].iloc[-1] == 1
    assert thresholds.zero_defined(formats.get("mxfp8_e4m3")) == 2.0**-18
    assert math.isnan(thresholds.overflow(formats.get("nvfp4"), "cpu"))
