"""A search in two stages: the second looks around the best of what the first has found."""

import os

import torch

from depthgauge.seeding import Purpose, generator
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Findings, Status, Verdict

CLAIM = Claim("refine/best", "the best rate lies inside the grid")


def run(cases, context):
    for case in cases:
        noise = torch.randn((), generator=generator(case.random_seed(), Purpose.INPUTS))
        yield case.rows("loss", (case.number("rate") - 0.3) ** 2 + 1e-3 * float(noise))


def second(preset, rows):
    if os.environ.get("DEPTHGAUGE_TEST_RAISE"):
        raise ValueError("no best")
    loss = rows.groupby("rate")["value"].mean()
    best = float(loss.idxmin())
    rates = tuple(best * (1 + float(rows["value"].abs().min()) + step) for step in (-0.25, 0.0, 0.25))
    yield Grid({"rate": rates}, fixed={"stage": "second"}, seeds=4, chunk=2)


def analyse(frame):
    return Findings((Verdict(CLAIM.id, CLAIM.text, Status.INCONCLUSIVE, n=len(frame)),))


def plot(findings):
    return ()


STUDY = Study(
    method="**Refining.** It is *halved* again and again.",
    name="refine",
    question="Which rate is best?",
    presets={"quick": (Grid({"rate": (0.1, 0.25, 0.5)}, fixed={"stage": "first"}, seeds=4, chunk=2),)},
    run=run,
    analyse=analyse,
    plot=plot,
    claims=(CLAIM,),
    second=second,
)
