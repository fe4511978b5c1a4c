"""SGD where theory is exact: its risk, the rates at which it is stable, and what momentum buys at which batch size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from depthgauge import drawing, stats
from depthgauge.frames import groups, only, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, below
from depthgauge.studies.batch_size.quadratic_runs import (
    AROUND,
    FRACTION,
    GROWING,
    NOISES,
    OPTIMIZERS,
    PROBLEMS,
    REGRESSION,
    best,
    limit_of,
    risk_of,
    run,
)
from depthgauge.study import Case, Grid
from depthgauge.verdict import Claim, Sentence

RISK = Claim(
    "batch_size/quadratic_risk",
    "the risk of SGD is the closed form at every step, on the noisy quadratic and on linear regression",
)
LIMIT = Claim("batch_size/stable_rate", "the largest stable learning rate is the predicted one")
LOWER = Claim(
    "batch_size/noise_lowers_the_limit", "noise that grows with the error lowers the largest stable learning rate"
)
TYPICAL = Claim(
    "batch_size/typical_run", "a single run still converges just beyond the rate at which the mean square diverges"
)
STEPS = Claim(
    "batch_size/quadratic_steps", "on a noisy quadratic exact theory has the steps to a target of every tuned optimizer"
)
MOMENTUM_SMALL = Claim(
    "batch_size/momentum_small_batch", "on a noisy quadratic at a small batch momentum takes as many steps as SGD"
)
MOMENTUM_LARGE = Claim(
    "batch_size/momentum_critical_batch", "on a noisy quadratic momentum has a larger critical batch size than SGD"
)
AVERAGE_SMALL = Claim(
    "batch_size/averaging_small_batch",
    "on a noisy quadratic at a small batch an average of the weights takes as many steps as SGD",
)
AVERAGE_LARGE = Claim(
    "batch_size/averaging_critical_batch",
    "on a noisy quadratic an average of the weights has a larger critical batch size than SGD",
)

SCALING = (STEPS, MOMENTUM_SMALL, MOMENTUM_LARGE, AVERAGE_SMALL, AVERAGE_LARGE)

RISK_MARGIN, LIMIT_MARGIN, STEPS_MARGIN, CRITICAL_MARGIN = 1.05, 1.05, 1.1, 1.5  # factors that do not matter
SIZES = sizes(
    "batches runs steps walkers rated tuned trainings seeds",
    quick=((1, 4), 1200, 60, 120, 130, (1, 16, 4096), 50, 16),
    standard=((1, 4, 16), 2000, 200, 500, 300, (1, 4, 16, 64, 256, 1024, 4096), 200, 16),
    full=((1, 4, 16, 64), 4000, 400, 1000, 600, (1, 4, 16, 64, 256, 1024, 4096), 400, 24),
    tiny=((2,), 20, 8, 20, 8, (256, 4096), 8, 5),
)  # fmt: skip


def grids(
    *, batches: tuple[int, ...], runs: int, steps: int, walkers: int, rated: int, tuned: tuple[int, ...],
    trainings: int, seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """Risks at a fixed rate, limits of stability, and steps to a target at the best rates."""
    yield Grid(
        {"problem": PROBLEMS, "optimizer": tuple(OPTIMIZERS), "batch": batches},
        {"dimensions": 4, "runs": runs, "steps": steps}, seeds, chunk=seeds, claims=(RISK.id,),
        without=(Case.of({"problem": REGRESSION, "optimizer": "averaging"}),),
    )  # fmt: skip
    yield Grid(
        {"noise": NOISES, "momentum": (0.0, 0.9), "batch": batches},
        {"dimensions": 4, "walkers": walkers, "steps": rated}, seeds, chunk=seeds,
        claims=(LIMIT.id, LOWER.id, TYPICAL.id),
    )  # fmt: skip
    yield Grid(
        {"tuned": tuple(OPTIMIZERS), "batch": tuned}, {"runs": trainings}, seeds, chunk=seeds,
        claims=tuple(claim.id for claim in SCALING),
    )  # fmt: skip


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Risks, limits and steps, each against theory."""
    for parameter, answer in (("problem", risks), ("noise", limits), ("tuned", scaling)):
        if parameter in rows and len(own := rows[rows[parameter].notna()]):
            yield from answer(own)


def risks(rows: pd.DataFrame) -> Iterator[Answer]:
    """Mean loss at some steps."""
    asked = {}
    for key, own in groups(rows, ["problem", "optimizer", "batch", "dimensions", "step"]):
        (problem, optimizer), (batch, dimensions, step) = key[:2], map(int, key[2:])
        predicted = float(risk_of(problem, optimizer, batch, dimensions, np.array(step)))
        asked[problem, optimizer, batch, step] = stats.against(own["value"], predicted, log=True, margin=RISK_MARGIN)
    label = "{optimizer} on {problem} at batch {batch} and step {step}"
    question = Question.of("quadratic_risk", ("problem", "optimizer", "batch", "step"), asked, label=label)
    yield question.table()
    yield question.prediction(RISK, "risks", within=f"a factor of {RISK_MARGIN:g}", unit="excess loss")


def limits(rows: pd.DataFrame) -> Iterator[Answer]:
    """Largest stable rates, in units of the inverse of the largest curvature."""
    params = params_of(rows, "noise", "momentum", "batch", "dimensions", "seed")
    params["limit"], params["typical"] = only(rows, "limit"), only(rows, "typical")
    asked, lowered, typical = {}, {}, {}
    for (noise, momentum, batch, dimensions), own in groups(params, ["noise", "momentum", "batch", "dimensions"]):
        predicted = limit_of(noise, momentum, int(batch), int(dimensions))
        found, key = own["limit"] * predicted, (momentum, int(batch))
        asked[noise, *key] = stats.against(found, predicted, log=True, margin=LIMIT_MARGIN)
        if noise == GROWING:
            lowered[key] = stats.against(found, 2 * (1 + momentum), log=True, margin=LIMIT_MARGIN)
            typical[key] = stats.against(own["typical"], 0.0)
    label, unit = "momentum {momentum:g} and batch {batch}", "times 1 / largest curvature"
    question = Question.of("stability", ("noise", "momentum", "batch"), asked, label=label + " with {noise} noise")
    yield question.table()
    yield question.prediction(LIMIT, "limits", within=f"a factor of {LIMIT_MARGIN:g}", unit=unit)
    if lowered:
        lower = Question.of("lowered", ("momentum", "batch"), lowered, label=label, reference="independent noise")
        yield lower.table()
        said = lower.listed(below, {True: "is below 2 (1 + momentum) at", False: "is not at", None: "undecided at"})
        yield lower.verdict(
            LOWER, below, unit=unit, why=f"on linear regression the limit {said}",
            method=f"rate of no growth of the mean square, margin a factor of {LIMIT_MARGIN:g}; t over seeds",
        )  # fmt: skip
        single = Question.of("typical", ("momentum", "batch"), typical, label=label, reference="standing still")
        yield single.table()
        said = single.listed(below, {True: "shrinks at", False: "grows at", None: "does neither clearly at"})
        yield single.verdict(
            TYPICAL, below, unit="ln of the squared error a step",
            why=f"at {1 + AROUND:g} times the limit a single run {said}",
            method="mean of ln of the growth of single runs, linear regression without label noise",
        )  # fmt: skip
        (momentum, least), member = min(lowered.items(), key=lambda pair: pair[1].effect.value)
        yield Sentence(
            "Noise that grows with the error lowers the largest stable learning rate by a factor of "
            f"{2 * (1 + momentum) / member.effect.value:.0f} (linear regression, batch {least}, momentum "
            f"{momentum:g}).",
            claims=(LOWER.id, LIMIT.id),
        )


def scaling(rows: pd.DataFrame) -> Iterator[Answer]:
    """Steps to the target at the best rate of every optimizer and batch size, and critical batches."""
    rows = rows.astype({"batch": int})
    asked, further = {}, {}
    for key, own in groups(rows, ["tuned", "batch"]):
        chosen = best(*key)
        asked[key] = stats.against(own["value"], chosen.steps, log=True, margin=STEPS_MARGIN)
        further[key] = {"examples": own["value"].mean() * key[1], "rate": chosen.rate, "decay": chosen.decay[1]}
    question = Question.of("scaling", ("optimizer", "batch"), asked, label="{optimizer} at batch {batch}")
    yield question.table(further)
    yield question.prediction(STEPS, "steps", within=f"a factor of {STEPS_MARGIN:g}", unit="steps")
    steps = rows.pivot_table(index="seed", columns=["tuned", "batch"], values="value", sort=False)
    ends = rows["batch"].min(), rows["batch"].max()
    for name, small, large in (
        ("momentum", MOMENTUM_SMALL, MOMENTUM_LARGE), ("averaging", AVERAGE_SMALL, AVERAGE_LARGE),
    ):  # fmt: skip
        if all((optimizer, end) in steps for optimizer in (name, "SGD") for end in ends):
            yield from against_sgd(steps, name, ends, (small, large))


def against_sgd(steps: pd.DataFrame, name: str, ends: tuple[int, int], claims: tuple[Claim, Claim]) -> Iterator[Answer]:
    """Steps at the smallest batch, and the critical batch, over those of SGD."""
    least, most = ends
    critical = {one: least * steps[one, least] / steps[one, most] for one in (name, "SGD")}
    pairs = {
        "steps": stats.paired(steps[name, least], steps["SGD", least], log=True, margin=STEPS_MARGIN),
        "critical batch": stats.paired(critical[name], critical["SGD"], log=True, margin=CRITICAL_MARGIN),
    }
    label = f"{name}'s {{figure}} over that of SGD"
    for (figure, pair), claim, reading in zip(pairs.items(), claims, (agrees, above), strict=True):
        table = f"{name}_{figure.replace(' ', '_')}"
        question = Question.of(table, ("figure",), {(figure,): pair}, label=label, reference="SGD")
        values = [
            f"{(steps[one, least] if figure == 'steps' else critical[one]).mean():.4g} with {one}" for one in critical
        ]
        yield question.table()
        yield question.verdict(
            claim, reading, unit="times that of SGD",
            why=f"{figure} {'at batch ' + str(least) if figure == 'steps' else '(least examples over least steps)'}: "
            + ", ".join(values),
            method="rates and decays chosen by exact theory, steps measured; sign flips of pairs of seeds, margin a "
            f"factor of {STEPS_MARGIN if figure == 'steps' else CRITICAL_MARGIN:g}",
        )  # fmt: skip


@drawing.figure(
    "quadratic_risk", "The risk of SGD where theory is exact",
    lambda quadratic_risk: f"Loss above its least, {quadratic_risk['n'].min()} seeds of many runs each, intervals that "
    f"hold at once; dashed: closed form. Rates: {FRACTION:g} of the largest stable one.",
)  # fmt: skip
def draw_risk(quadratic_risk: pd.DataFrame) -> Any:
    """Loss by step."""
    shown = quadratic_risk.assign(training=quadratic_risk["problem"] + ", " + quadratic_risk["optimizer"])
    axes = {"xscale": "log", "yscale": "log", "ylabel": "excess loss"}
    return drawing.panels(shown, "training", drawing.estimates, at="step", by="batch", axes=axes)


@drawing.figure(
    "stability", "The largest stable learning rate against the batch size, by kind of noise",
    "Largest rate at which the mean square stays bounded, times the largest curvature. Independent noise: the noisy "
    "quadratic; growing: linear regression on Gaussian inputs. Dashed: theory.",
)  # fmt: skip
def draw_stability(stability: pd.DataFrame) -> Any:
    """Limit by batch size."""
    shown = stability.assign(noise=stability["noise"] + " noise")
    axes = {"xscale": "log", "yscale": "log", "xlabel": "batch size", "ylabel": "largest rate x curvature"}
    return drawing.panels(shown, "noise", drawing.estimates, at="batch", by="momentum", axes=axes)


@drawing.figure(
    "scaling", "Steps to the target of a noisy quadratic against the batch size, by optimizer",
    "Steps to the target of a noisy quadratic, rate and decay tuned at every batch size; points measured, with "
    "intervals that hold at once; dashed: exact theory.",
)  # fmt: skip
def draw_scaling(scaling: pd.DataFrame) -> Any:
    """Steps by batch size."""
    axes = {"xscale": "log", "yscale": "log", "ylabel": "steps to the target", "xlabel": "batch size"}
    shown = scaling.replace({"optimizer": {"averaging": "averaged", "SGD": "sgd"}})  # names that have colours
    return drawing.panels(shown, "", drawing.estimates, at="batch", by="optimizer", axes=axes)


METHOD = f"""
**Quadratics.** Exact theory against simulation in float64, curvatures 1, 1/2, 1/3, 1/4, from weights of 1. Risk:
constant rate, {FRACTION:g} of the largest stable one, momentum 0.9 or an average of decay 0.9. Limits: where noise is
independent of the error, the first of rates in steps of 0.5 % at which the loss goes on growing; where it grows with
the error, the rate of no growth between {1 - AROUND:g} and {1 + AROUND:g} of the prediction. There the mean square is
that of rare runs, so that runs are drawn again after each step in proportion to their squared error. Steps: curvatures
1 / i² for i up to 12, gradient noise of 0.03 h an example, target 0.3 % of the loss at the start; rate (grid of a
quarter octave) and decay are those of the fewest steps by theory; the measured loss is averaged over 3 % of the steps
to both sides. Critical batch: examples at the smallest batch over steps at the largest.
"""
PART = Part(
    "quadratic", (RISK, LIMIT, LOWER, TYPICAL, *SCALING), SIZES, grids, run, analyse,
    (draw_risk, draw_stability, draw_scaling), METHOD,
)  # fmt: skip
