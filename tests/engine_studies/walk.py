"""A random walk in a number format: small, quick, and random in every way that a study may be."""

import numpy as np
import torch

from depthgauge.seeding import Purpose, generator
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Findings, Status, Verdict

CLAIM = Claim("walk/spread", "a walk's end spreads with the square root of its steps")


def run(cases, context):
    for case in cases:
        steps = torch.randn(case.integer("steps"), generator=generator(case.random_seed(), Purpose.INPUTS))
        where = steps.cumsum(0) * case.number("scale")
        yield case.rows("position", where.double().numpy(), step=range(len(where)), layer="walk", direction="forward")
        yield case.rows("end", float(where[-1]))
        # The global states too, as a careless study would.
        legacy = np.random.random()  # noqa: NPY002 - carelessness is what this tests
        yield case.rows("careless", [float(torch.rand(())), legacy, float("nan"), float("inf")])


def analyse(frame):
    ends = frame[frame["metric"] == "end"]["value"]
    return Findings((Verdict(CLAIM.id, CLAIM.text, Status.INCONCLUSIVE, observed=float(ends.std()), n=len(ends)),))


def plot(findings):
    return ()


STUDY = Study(
    name="walk",
    question="How far does a random walk get?",
    presets={
        "quick": (Grid({"steps": (4, 16), "scale": (1.0, 0.5), "kind": ("plain", None)}, seeds=6, chunk=3),),
        "standard": (Grid({"steps": (4, 16, 64), "scale": (1.0, 0.5), "kind": ("plain", None)}, seeds=6, chunk=3),),
    },
    run=run,
    analyse=analyse,
    plot=plot,
    claims=(CLAIM,),
)
