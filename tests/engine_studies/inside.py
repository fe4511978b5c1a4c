"""What comes out of a model at its start: a study that can ask any model, and has a part that cannot."""

import torch

from depthgauge import models
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Findings, Status, Verdict

CLAIMS = (
    Claim("inside/any", "the output of a network has a norm"),
    Claim("inside/activation", "the activation makes a difference"),
    Claim("inside/own", "one and one make two"),
)


def run(cases, context):
    for case in cases:
        if "model" not in case:
            yield case.rows("sum", 2.0)
            continue
        model = models.build(
            case.text("model"),
            preset="small",
            input_shape=(1, 28, 28),
            seed=case.random_seed("seed"),
            **case.given("activation", "norm"),
        )
        x = torch.randn(2, 1, 28, 28, generator=generator(1, Purpose.INPUTS))
        yield case.rows("norm", float(model.eval()(x).double().norm()))


def analyse(frame):
    return Findings(tuple(Verdict(claim.id, claim.text, Status.INCONCLUSIVE, n=len(frame)) for claim in CLAIMS))


def plot(findings):
    return ()


STUDY = Study(
    name="inside",
    question="What comes out?",
    presets={
        "quick": (
            Grid(
                {"model": ("mlp", "lenet5")},
                fixed={"norm": "none", "activation": None},
                seeds=5,
                architecture=("norm", "activation"),
                claims=("inside/any",),
            ),
            Grid(
                {"model": ("vgg11",)},
                fixed={"norm": "batch", "activation": None},
                seeds=5,
                architecture=("norm", "activation"),
                claims=("inside/any",),
            ),
            Grid(
                {"activation": ("relu", "tanh")},
                fixed={"model": "mlp", "norm": None},
                seeds=5,
                architecture=("activation",),
                claims=("inside/activation",),
            ),
            Grid({"part": (1,)}, claims=("inside/own",)),
        ),
    },
    run=run,
    analyse=analyse,
    plot=plot,
    claims=CLAIMS,
)
