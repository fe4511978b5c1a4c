"""Random ReLU networks without training: the second moment of the signal, layer by layer."""

import math

import torch

from depthgauge import drawing, seeding, stats
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Part, sizes
from depthgauge.questions import Question
from depthgauge.seeding import Purpose
from depthgauge.study import Grid
from depthgauge.verdict import Claim, Sentence

RATE = Claim("rectified/rate", "a ReLU layer with weights of variance 1 / width halves the signal's second moment")
MARGIN = 0.1  # ln a layer: rates closer to the prediction than this are called the same
SIZES = sizes("width depths seeds", quick=(256, (2, 8), 40), standard=(256, (2, 8, 32), 40), tiny=(8, (2,), 5))


def grids(width, depths, seeds):
    """Every depth, with so many networks."""
    yield Grid({"depth": depths}, {"width": width}, seeds)


def run(cases, context):
    """The rate: ln of the factor that a layer multiplies the second moment by, on average over the layers."""
    for case in cases:
        seed, width = case.random_seed(), case["width"]
        x = torch.randn(width, generator=seeding.generator(seed, Purpose.INPUTS), dtype=torch.float64)
        draws = seeding.generator(seed, Purpose.WEIGHTS)
        start, x = x.square().mean(), x.to(context.device)
        for _ in range(case["depth"]):
            weight = torch.randn(width, width, generator=draws, dtype=torch.float64) / math.sqrt(width)
            x = torch.relu(weight.to(context.device) @ x)
        yield case.rows("rate", math.log(float(x.square().mean()) / float(start)) / case["depth"])


def analyse(rows):
    """Is the rate ln 1/2, whatever the depth?"""
    params = params_of(rows, "depth").assign(rate=only(rows, "rate"))
    asked = {
        (depth,): stats.against(networks["rate"], math.log(1 / 2), margin=MARGIN)
        for depth, networks in groups(params, "depth")
    }
    question = Question.of("rates", ("depth",), asked, label="{depth} layers")
    yield question.table()
    yield question.prediction(RATE, "rates", within=f"{MARGIN:g} a layer", unit="ln a layer")
    passed = math.exp(question.members[question.furthest].effect.value)
    yield Sentence(f"A ReLU layer lets {passed:.0%} of the signal through.", "rates", (RATE.id,))


@drawing.figure(
    "rates", "A ReLU layer halves what it is given", "Mean of the seeds with 95 % intervals; dashed: ln 1/2."
)
def plot_rates(rates):
    """Measured and predicted rates, by depth."""
    return drawing.panels(rates, "", drawing.estimates, at="depth")


METHOD = "**Signal.** The rate is ln of the factor by which a layer multiplies the second moment of the signal."
PART = Part("signal", (RATE,), SIZES, grids, run, analyse, (plot_rates,), METHOD)
