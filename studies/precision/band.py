"""The band that rounding predicts: how often it is wrong, and how small a fault it sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from depthgauge import drawing, stats
from depthgauge.frames import only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.precision import calibration
from depthgauge.questions import Question, below
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

ALARM = Claim("precision/false_alarms", "the rounding band raises a false alarm for less than one module in a hundred")

FALSE = 0.01  # share of modules
ULPS = 8  # of the fault in one weight
TRIAL = ("beyond", "found", "results_found", "size", "terms")
RESULTS = "found by results alone"
CANCELLING = "false alarm, operators that cancel"
LENGTHS = (0, 32, 128, 512, 10**6)  # terms of a sum, by which faults are sorted
SIZES = sizes("modules", quick=(0,), standard=(1000,), full=(1000,), tiny=(5,))


def grids(modules: int) -> Iterator[Grid]:
    """Random modules with and without a fault; at quick there are none."""
    if modules:
        yield Grid({"kind": ("order", "cancelling", "fault")}, {"ulps": ULPS}, modules, ("seed",), 25)


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """A random module against one that adds up in another order, with or without a fault."""
    for case in cases:
        kind: Any = case.text("kind")
        trial = calibration.trials(1, kind, ulps=case.integer("ulps"), start=case.integer("seed"))
        for metric in TRIAL:
            yield case.rows(metric, float(trial[metric].iloc[0]))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """False alarms and faults found, with exact intervals."""
    params = params_of(rows, "kind", "seed")
    for metric in TRIAL:
        params[metric] = only(rows, metric)
    order, cancelling, fault = (params[params["kind"] == kind] for kind in ("order", "cancelling", "fault"))
    counted = {"false alarm": order["beyond"], CANCELLING: cancelling["beyond"]}
    counted |= {"fault found": fault["found"], RESULTS: fault["results_found"]}
    for low, high in pairwise(LENGTHS):
        inside = fault[fault["terms"].between(low, high, inclusive="right")]
        terms = f"over {low}" if high == LENGTHS[-1] else f"{low} to {high}"
        counted[f"{RESULTS}, {terms} terms"] = inside["results_found"]
    some = {name: hits for name, hits in counted.items() if len(hits)}
    shares = {(name,): stats.coverage(int(hits.sum()), len(hits), FALSE) for name, hits in some.items()}
    about: dict[str, Any] = {"label": "{what}", "reference": "share", "counted": "random modules"}
    question = Question.of("band", ("what",), shares, family=lambda what: what, **about)
    yield question.table()
    if alarms := question.where(what="false alarm"):
        yield alarms.verdict(
            ALARM, below, unit="share of modules",
            why=f"{order['beyond'].sum():.0f} of {len(order)} modules that add up in another order were called "
            f"different; the largest difference was {order['size'].max():.2g} of its band",
            method=f"held against {FALSE:g}; random dense and convolutional modules in float32",
        )  # fmt: skip
    if len(fault):
        found, results = (fault[column].sum() for column in ("found", "results_found"))
        yield Sentence(
            f"A fault of {ULPS} units in the last place of one weight was found in its layer in {found:.0f} of "
            f"{len(fault)} random modules; by their results alone in {results:.0f}.",
            claims=(ALARM.id,),
        )


@drawing.figure(
    "rounding_band", "How often the rounding band is wrong, and how small a fault it sees",
    f"Random modules, exact 95 % intervals. The fault is {ULPS} ulps in one weight; results alone: parameters are not "
    "compared; terms: of a sum of the faulty layer.",
)  # fmt: skip
def draw_band(band: pd.DataFrame) -> Any:
    """Rates, by what was done."""
    axes = {"xlabel": "share of modules", "xlim": (-0.03, 1.03)}
    return drawing.panels(band, "", drawing.estimates, at="what", axes=axes)


METHOD = f"""
**The band.** A random module against the same one that adds up in another order (features permuted, reversed, halved or
one by one; the batch in two), and against that one with {ULPS} ulps in one weight; and a module with a layer whose
operators cancel (an offset and its mean, E[x²] - E[x]², a sharp softmax and others) against its copy in another order,
batch or format (`precision.compare`).
"""
PART = Part("band", (ALARM,), SIZES, grids, run, analyse, (draw_band,), METHOD)
