"""The bias of clipping: where clipped SGD rests under skewed and heavy-tailed noise, against the exact point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthgauge import drawing, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees, spelled
from depthgauge.seeding import Purpose, generator
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

Array = np.ndarray[Any, Any]
BIAS = Claim(
    "stabilizers/clipping_bias", "where SGD with clipped gradients comes to rest is predicted: off the minimum under "
    "skewed noise, and not under symmetric noise, however heavy its tail",
)  # fmt: skip
SCALED = Claim(
    "stabilizers/clipped_scaled",
    "gradients clipped before they are unscaled are clipped at the bound divided by the loss scale",
)
MARGIN = 0.05  # in units of the noise: a resting point closer to theory than this is the predicted one
EXACT = 1e-3  # relative, of the norm of a step
LEVELS = (0.25, 1.0, 4.0, 16.0)
RATE, CHAINS, DISCARDED = 0.02, 32, 0.5
SCALES = (1.0, 2.0**8, 2.0**16)
FEATURES = 16
SIZES = sizes("steps seeds", quick=(2500, 12), standard=(6000, 24), full=(12000, 40), tiny=(60, 6))


@dataclass(frozen=True)
class Law:
    """A law of mean 0: its distribution function, and its draws from uniform numbers in (0, 1)."""

    cdf: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    symmetric: bool


def _pareto_cdf(y: Array) -> Array:
    return 1 - (1 + np.maximum(y + 2.0, 0.0)) ** -1.5  # Lomax of tail index 1.5, its mean 2 taken off


def _cauchy_like(y: Array) -> Array:
    return np.asarray((1 + y / np.sqrt(2 + y * y)) / 2)  # Student's t of 2 degrees of freedom: no variance


LAWS: Mapping[str, Law] = {
    "Student t, 2": Law(_cauchy_like, lambda u: (2 * u - 1) / np.sqrt(2 * u * (1 - u)), symmetric=True),
    "exponential": Law(lambda y: -np.expm1(-np.maximum(y + 1.0, 0.0)), lambda u: -np.log1p(-u) - 1.0, symmetric=False),
    "Pareto, 1.5": Law(_pareto_cdf, lambda u: (1 - u) ** (-1 / 1.5) - 3.0, symmetric=False),
}


def grids(steps: int, seeds: int) -> Iterator[Grid]:
    """Every law and bound; and every loss scale."""
    yield Grid(
        {"law": tuple(LAWS), "largest": LEVELS}, {"steps": steps, "kind": "rest"}, seeds,
        ("law", "largest", "seed"), 400,
        claims=(BIAS.id,),
    )  # fmt: skip
    yield Grid({"scale": SCALES}, {"kind": "scaled"}, seeds, ("scale", "seed"), 100, claims=(SCALED.id,))


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """The mean of w after its start is forgotten; or steps clipped before and after they are unscaled."""
    del context  # numbers of a location are few
    if cases[0].text("kind") == "scaled":
        for case in cases:
            for metric, value in clipped_scaled(case.random_seed("seed"), case.number("scale")).items():
                yield case.rows(metric, value)
        return
    steps = cases[0].integer("steps")
    draws = []
    for case in cases:  # of all bounds: paired
        given = generator(case.random_seed("seed", "law", "steps"), Purpose.DATA)
        u = torch.rand(steps, CHAINS, generator=given, dtype=torch.float64).clamp(min=1e-15).numpy()
        draws.append(LAWS[case.text("law")].inverse(u))
    noise = np.stack(draws, 1)
    largest = np.array([case.number("largest") for case in cases])[:, None]
    w, total, start = np.zeros((len(cases), CHAINS)), np.zeros((len(cases), CHAINS)), int(DISCARDED * steps)
    for step, y in enumerate(noise):
        w = w - RATE * np.clip(w - y, -largest, largest)
        total += w if step >= start else 0.0
    cut = (np.abs(w - noise[-min(500, steps) :]) > largest).mean((0, 2))
    for case, rest, share in zip(cases, total.mean(1) / (steps - start), cut, strict=True):
        yield case.rows("rest", float(rest))
        yield case.rows("cut", float(share))


def clipped_scaled(seed: int, scale: float, largest: float = 1.0) -> dict[str, float]:
    """Norm of a step of a linear model's, clipped behind the scaled backward pass and behind unscaling, and predicted.

    Args:
        seed: of weights and data.
        scale: loss scale.
        largest: bound of the norm.
    """
    draws = generator(seed, Purpose.DATA)
    x, y = torch.randn(32, FEATURES, generator=draws).double(), 3 * torch.randn(32, 1, generator=draws).double()
    norms = {}
    for order in ("wrong", "right"):
        model = torch.nn.Linear(FEATURES, 1, dtype=torch.float64)
        with torch.no_grad():
            for each in model.parameters():
                each.copy_(torch.randn(each.shape, generator=generator(seed, Purpose.WEIGHTS)))
        before = [each.detach().clone() for each in model.parameters()]
        sgd = torch.optim.SGD(model.parameters(), 1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with torch.enable_grad():
            scaler.scale((model(x) - y).square().mean()).backward()
        if order == "right":
            scaler.unscale_(sgd)
        norms["gradient"] = float(torch.nn.utils.clip_grad_norm_(model.parameters(), largest))
        scaler.step(sgd)
        moved = [now.detach() - was for now, was in zip(model.parameters(), before, strict=True)]
        norms[order] = float(torch.cat([each.flatten() for each in moved]).norm())
    return {**norms, "predicted": min(norms["gradient"], largest / scale)}


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Resting points against theory's, and wrong steps against the predicted ones."""
    wide = params_of(rows, "kind", "law", "largest", "scale", "seed").join(
        rows.pivot_table(index="case", columns="metric", values="value", sort=False)
    )
    rest = wide[wide["kind"] == "rest"]
    if len(rest):
        yield from _rested(rest)
    scaled = wide[wide["kind"] == "scaled"]
    if len(scaled):
        yield from _scaled(scaled)


def _rested(rest: pd.DataFrame) -> Iterator[Answer]:
    asked, further, lines = {}, {}, []
    for (law, largest), own in groups(rest, ["law", "largest"]):
        predicted = theory.clipped_rest(LAWS[law].cdf, float(largest))
        asked[law, largest] = stats.against(own["rest"].to_numpy(), predicted, margin=MARGIN)
        further[law, largest] = {"cut": own["cut"].mean()}
        value = spelled("value", stats.mean(own["rest"].to_numpy()))
        value = {name.replace("value_", ""): each for name, each in value.items()}
        lines.append({
            "law": law, "largest": largest, "n": len(own), **value, "predicted": predicted, "cut": own["cut"].mean()
        })  # fmt: skip
    question = Question.of("clip_rest", ("law", "largest"), asked, label="{law}, bound {largest:g}")
    yield question.table(further)
    yield "clip_bias", pd.DataFrame(lines)
    yield question.prediction(BIAS, "resting points", within=f"{MARGIN:g}", unit="distance from the minimum")
    far = max(lines, key=lambda line: abs(line["value"]))
    even = [abs(line["value"]) for line in lines if LAWS[line["law"]].symmetric]
    if question.read(agrees) and not math.isnan(far["value"]) and even:
        yield Sentence(
            f"Clipped at {far['largest']:g}, SGD under {far['law'].split(',')[0]} noise rests {abs(far['value']):.2f} "
            f"off the minimum, where theory has {abs(far['predicted']):.2f}, and {far['cut']:.0%} of its gradients are "
            f"cut; under symmetric noise of infinite variance it rests within {max(even):.2g} of it at every bound.",
            figure="clip_bias", claims=(BIAS.id,),
        )  # fmt: skip


def _scaled(scaled: pd.DataFrame) -> Iterator[Answer]:
    asked = {
        (scale,): stats.against((own["wrong"] / own["predicted"]).to_numpy(), 1.0, margin=EXACT)
        for scale, own in groups(scaled, "scale")
    }
    further = {
        (scale,): {"slower": float((own["right"] / own["wrong"]).median())} for scale, own in groups(scaled, "scale")
    }
    question = Question.of("clip_scaled", ("scale",), asked, label="loss scale {scale:g}")
    yield question.table(further)
    yield question.prediction(SCALED, "steps", within=f"{EXACT:g}", unit="norm of the step over the predicted")
    scale, slower = max((key[0], row["slower"]) for key, row in further.items())
    yield Sentence(
        f"Clipped at norm 1 before they are unscaled, gradients of a loss scale of {scale:.0f} make steps "
        f"{slower:,.0f} times shorter than clipped after it.", claims=(SCALED.id,),
    )  # fmt: skip


@drawing.figure(
    "clip_bias", "Where SGD rests with clipped gradients, under skewed and under symmetric noise",
    lambda clip_bias: f"SGD on (w - y)²/2, minimum 0, each gradient clipped; mean of {clip_bias['n'].min()} seeds with "
    "95 % intervals. Dashed: the root of the expected clipped gradient.",
)  # fmt: skip
def draw_bias(clip_bias: pd.DataFrame) -> Any:
    """Resting points by bound, a line a law."""
    axes = {"xscale": "log", "xlabel": "bound of the gradient", "ylabel": "point of rest"}
    return drawing.panels(clip_bias, "", drawing.estimates, at="largest", by="law", axes=axes)


METHOD = f"""**The bias of clipping.** SGD at rate {RATE:g} on a location: loss (w - y)² / 2, y of mean 0, one example a
step, its gradient clipped. A Lomax law of tail index 1.5 and Student's t of 2 degrees of freedom have no variance. The
mean of w over {CHAINS} chains after the first {DISCARDED:.0%} of the steps, against `theory.clipped_rest`. Loss scale:
one step of a linear model with `torch.amp.GradScaler`, its gradient clipped to norm 1 before `unscale_` or after it."""
PART = Part("clip_bias", (BIAS, SCALED), SIZES, grids, run, analyse, (draw_bias,), METHOD)
