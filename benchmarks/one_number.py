"""A study whose chunks are one number each, so that a run of it is the driver's own time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from depthgauge.study import Case, Context, Grid, Rows, Study
from depthgauge.verdict import Findings


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    for case in cases:
        yield case.rows("number", float(case.integer("seed")))


def analyse(_: pd.DataFrame) -> Findings:
    return Findings(())


STUDY = Study(
    name="one_number",
    question="What does a chunk cost?",
    presets={"quick": (Grid({}, {"width": 1}, seeds=100, chunk=1),)},
    run=run,
    analyse=analyse,
    plot=lambda _: (),
    claims=(),
)
