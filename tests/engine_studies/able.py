"""One step of training of any model: a study that says which case is its smallest."""

import os
from pathlib import Path

import torch

from depthgauge import models
from depthgauge.study import Grid, Study
from depthgauge.verdict import Claim, Findings, Status, Verdict

CLAIMS = (
    Claim("able/activation", "the activation makes a difference"),
    Claim("able/norm", "normalization makes a difference"),
)


def run(cases, context):
    for case in cases:
        if counter := os.environ.get("DEPTHGAUGE_TEST_COUNTER"):
            with Path(counter).open("a") as file:
                print(case.id, file=file)
        parts = case.given("activation", "norm")
        model = models.build(case.text("model"), input_shape=(3,), classes=2, seed=case.integer("seed"), **parts)
        loss = model(torch.ones(case.integer("batch"), 3)).square().mean()
        loss.backward()
        yield case.rows("loss", float(loss))


def analyse(frame):
    asked = {case for case, status in zip(frame["case"], frame["status"], strict=True) if status == "ok"}
    return Findings(tuple(Verdict(claim.id, claim.text, Status.INCONCLUSIVE, n=len(asked)) for claim in CLAIMS))


def plot(findings):
    return ()


def grid(varied, values, claim):
    return Grid(
        {varied: values},
        fixed={"model": "mlp", "batch": 8},
        seeds=4,
        chunk=2,
        architecture=(varied,),
        claims=(claim,),
    )


STUDY = Study(
    name="able",
    question="What can it do?",
    presets={
        "quick": (
            grid("activation", ("relu", "tanh", "gelu"), "able/activation"),
            grid("norm", ("none", "batch"), "able/norm"),
        )
    },
    run=run,
    analyse=analyse,
    plot=plot,
    claims=CLAIMS,
    preflight=lambda case: case.but(batch=2, seed=0),
)
