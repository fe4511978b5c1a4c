"""Edge of stability: does training stop sharpening where its learning rate is at the limit of stability?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from depthgauge import curvature, drawing, replicas, stats
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, above, agrees, enumerated, listed
from depthgauge.replicas.optimizers import StackedStep
from depthgauge.studies.learning_rate import descent
from depthgauge.study import Case, Context, Grid, Rows, Value
from depthgauge.verdict import Claim, Sentence

DESCENT = Claim("learning_rate/edge", "full-batch gradient descent sharpens up to 2 / learning rate, and stays there")
MOMENTUM = Claim(
    "learning_rate/edge_momentum",
    "with momentum beta it sharpens up to (2 + 2 beta) / learning rate, and stays there",
)
ADAM = Claim(
    "learning_rate/edge_adam",
    "with Adam the sharpness under its preconditioner rises to 38 / learning rate, and stays there",
)
PROGRESSIVE = Claim(
    "learning_rate/progressive",
    "where the learning rate is too small to reach that limit, training sharpens the loss, too",
)

SLOW = "slow GD"
BETAS = {"GD": 0.0, SLOW: 0.0, "momentum 0.5": 0.5, "momentum 0.9": 0.9}
LIMITS = {**{name: 2 + 2 * beta for name, beta in BETAS.items()}, "Adam": (2 + 2 * 0.9) / (1 - 0.9)}
"""Learning rate times sharpness at which a quadratic ceases to be stable."""
CLAIMS = {"GD": DESCENT, "momentum 0.5": MOMENTUM, "momentum 0.9": MOMENTUM, "Adam": ADAM}
NAMES = {
    DESCENT: "The sharpness under gradient descent",
    MOMENTUM: "The sharpness under momentum",
    ADAM: "The sharpness under Adam's preconditioner",
}
MARGIN = 1.05  # a time mean nearer than 5 % to the limit is at it
SHARPER = 1.1  # a sharpness that changes by less than 10 % is the same
LAST = 0.5  # the part of the steps, at the end, over which the mean is taken
TOLERANCE = 0.01  # of a sharpness, relative: its error is of the order of the square of that

Plan = tuple[tuple[str, tuple[float, ...], int], ...]  # optimizer, learning rates, steps
STANDARD: Plan = (
    ("GD", (2 / 5, 2 / 6, 2 / 7), 2000), (SLOW, (2 / 16,), 2000), ("momentum 0.5", (3 / 5, 3 / 6), 1200),
    ("momentum 0.9", (3.8 / 5, 3.8 / 6), 800), ("Adam", (0.003, 0.005, 0.01), 3000),
)  # fmt: skip
FULL: Plan = (
    ("GD", (2 / 15, 2 / 20, 2 / 40), 8000), (SLOW, (2 / 200,), 8000), ("momentum 0.5", (3 / 20, 3 / 40), 4000),
    ("momentum 0.9", (3.8 / 20, 3.8 / 40), 4000), ("Adam", (0.001, 0.002), 8000),
)  # fmt: skip
TINY: Plan = tuple((name, rates[:1], 8) for name, rates, _ in STANDARD)
SIZES = sizes(
    "net plan seeds points", quick=(("digits", 200, 32), (("GD", (2 / 5,), 500), (SLOW, (2 / 16,), 500)), 5, 8),
    standard=(("digits", 200, 32), STANDARD, 8, 60), full=(("mnist5k", 500, 64), FULL, 8, 200),
    tiny=(("digits", 20, 4), TINY, 5, 4),
)  # fmt: skip


def grids(net: tuple[str, int, int], plan: Plan, seeds: int, points: int) -> Iterator[Grid]:
    """Every optimizer at its learning rates."""
    data, examples, width = net
    for optimizer, rates, steps in plan:
        claim = CLAIMS.get(optimizer, PROGRESSIVE)
        fixed: dict[str, Value] = {
            "optimizer": optimizer,
            "data": data,
            "examples": examples,
            "width": width,
            "steps": steps,
        }
        yield Grid(
            {"lr": rates}, {**fixed, "points": points}, seeds, ("lr", "seed"), chunk=40, claims=(claim.id,),
        )  # fmt: skip


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """Loss and sharpness along training, networks of several seeds and rates at once."""
    shared = cases[0]
    examples = descent.digits(shared.text("data"), shared.integer("examples")).to(context.device)
    seeds = [case.random_seed("seed", "data", "width") for case in cases]  # the same weights at every rate
    stack = descent.networks(shared.integer("width"), examples.x, seeds)
    rates = [case.number("lr") for case in cases]
    name = shared.text("optimizer")
    optimizer = replicas.Adam(rates) if name == "Adam" else replicas.SGD(rates, BETAS[name])
    steps = shared.integer("steps")
    start = 1 if name == "Adam" else 0  # before its first step Adam has no preconditioner
    at = np.unique(np.linspace(start, steps, shared.integer("points") + 1).astype(int)).tolist()
    seen: dict[str, list[Any]] = {"loss": [], "sharpness": [], "residual": []}

    def look(_: int, stack: replicas.Stack, stepped: StackedStep, losses: Tensor) -> None:
        found = curvature.of_replicas(
            stack, examples.x, examples.y, descent.half_squared, preconditioner=descent.preconditioner(stepped),
            tolerance=TOLERANCE,
        )  # fmt: skip
        seen["loss"].append(losses.double().cpu().numpy())
        seen["sharpness"].append([each.value for each in found])
        seen["residual"].append([each.residual for each in found])

    descent.descend(stack, examples, optimizer, at, look)
    for metric, columns in seen.items():
        for case, column in zip(cases, np.array(columns).T, strict=True):
            yield case.rows(metric, column, step=at)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Sharpness against the limit of stability, by optimizer and rate; and how it grows where it does not get there."""
    runs = params_of(rows, "optimizer", "lr", "seed", "steps").astype({"lr": float, "steps": int})
    wide = rows[rows["metric"] == "sharpness"].pivot_table(index="case", columns="step", values="value", dropna=False)
    tracks, asked, grown = [], {}, {}
    further: dict[tuple[Any, ...], dict[str, float]] = {}
    for (optimizer, lr), own in groups(runs, ["optimizer", "lr"]):
        lines, limit = wide.loc[own.index].dropna(axis=1, how="all"), LIMITS[optimizer] / lr
        steps = lines.columns.to_numpy(float)
        ended = lines[np.isfinite(lines).all(axis=1)]  # a diverged training has no sharpness to its end
        line = {"optimizer": optimizer, "lr": lr, "step": steps, "limit": limit, "n": len(ended), "of": len(lines)}
        tracks.append(pd.DataFrame({**line, **stats.band(ended)}))
        late = lines.loc[:, steps >= (1 - LAST) * own["steps"].iloc[0]]
        mean = late.mean(axis=1, skipna=False)
        further[optimizer, lr] = {
            "limit": limit, "lowest": (lines.loc[:, steps < steps.max() / 2].min(axis=1) / limit).median(skipna=False),
            "largest": (lines.max(axis=1) / limit).median(skipna=False),
            "spread": (late.std(axis=1) / mean).median(skipna=False),
            "reached": int((lines.max(axis=1) >= limit).sum()), "diverged": int((~np.isfinite(mean)).sum()),
        }  # fmt: skip
        if optimizer in CLAIMS:
            asked[optimizer, lr] = stats.against((mean / limit).to_numpy(), 1.0, log=True, margin=MARGIN)
        else:
            grown[(lr,)] = stats.paired(lines.iloc[:, -1], lines.iloc[:, 0], log=True, margin=SHARPER, test="t")
            further[(lr,)] = further.pop((optimizer, lr))
    yield "sharpness", pd.concat(tracks, ignore_index=True)
    yield from at_the_limit(asked, further)
    yield from progressive(grown, further)


def at_the_limit(asked: Mapping[Any, stats.Comparison], further: Mapping[Any, Mapping[str, float]]) -> Iterator[Answer]:
    """Time means of the sharpness over the limit of stability."""
    question = Question.of("edge", ("optimizer", "lr"), asked, label="{optimizer} at learning rate {lr:.3g}")
    if not question:
        return
    yield question.table(further)
    words = {True: "the sharpness ends at its limit:", False: "elsewhere:", None: "undecided:"}
    for claim, name in NAMES.items():
        if not (some := question.where(optimizer=tuple(key for key, own in CLAIMS.items() if own is claim))):
            continue
        rises = {key: further[key]["lowest"] * SHARPER < 1 for key in some.members}
        answers = {key: agrees(c) if rises[key] else None for key, c in some.members.items()}
        limits = " or ".join(
            f"{limit:g}" for limit in dict.fromkeys(LIMITS[optimizer] for optimizer, _ in some.members)
        )
        yield some.verdict(
            claim, answers, unit="times the limit",
            why=listed({some.words(key): answer for key, answer in answers.items()}, words) + _lost(some, further),
            method=f"largest eigenvalue of the Hessian{' under the preconditioner' * (claim is ADAM)}, mean over the "
            f"last {LAST:.0%} of the steps, over {limits} / learning rate, having been below that; log scale, margin a "
            f"factor of {MARGIN:g}, t over seeds",
        )  # fmt: skip
        means = [c.effect.value for key, c in some.members.items() if not further[key]["diverged"]]
        if means and claim is not MOMENTUM:
            yield Sentence(
                f"{name} ends at {' to '.join(dict.fromkeys(f'{end:.2f}' for end in (min(means), max(means))))} times "
                f"its limit of stability, {limits} / learning rate.",
                "edge_of_stability", (claim.id,),
            )  # fmt: skip


def _lost(question: Question, further: Mapping[Any, Mapping[str, float]]) -> str:
    """Words for the trainings that diverged and have no sharpness at their end."""
    some = [f"{n:g} at {question.words(key)}" for key in question.members if (n := further[key]["diverged"])]
    return f"; diverged, and so without a figure: {enumerated(some)}" if some else ""


def progressive(grown: Mapping[Any, stats.Comparison], further: Mapping[Any, Mapping[str, float]]) -> Iterator[Answer]:
    """Sharpness at the end over that at the start, where the limit is never reached."""
    question = Question.of("progressive", ("lr",), grown, label="learning rate {lr:.3g}", reference="unchanged")
    if not question:
        return
    yield question.table(further)
    below = {key: further[key]["reached"] == 0 for key in question.members}  # in no seed
    effect = next(iter(question.members.values())).effect
    yield question.verdict(
        PROGRESSIVE, {key: above(c) if below[key] else None for key, c in question.members.items()},
        unit="times the sharpness at the start",
        why=f"the sharpness ends at {effect.value:.2f} times that at the start, below the limit throughout"
        if all(below.values()) else "the limit is reached",
        method=f"gradient descent, at its end against its start, log scale, margin a factor of {SHARPER:g}, paired t",
    )  # fmt: skip


def unfinished(sharpness: pd.DataFrame) -> str:
    """Words for the trainings that a figure leaves out as they diverged."""
    ends = sharpness.drop_duplicates(["optimizer", "lr"])
    lost = ends[ends["n"] < ends["of"]]
    some = (
        f"{of - n} of {of} with {optimizer} at rate {lr:.3g}"
        for optimizer, lr, n, of in zip(lost["optimizer"], lost["lr"], lost["n"], lost["of"], strict=True)
    )
    return f" that did not diverge ({enumerated(some, 6)} did)" if len(lost) else ""


@drawing.figure(
    "edge_of_stability", "Sharpness rises toward the limit of stability that the learning rate sets",
    lambda sharpness: "Largest Hessian eigenvalue along full-batch training (for Adam under its preconditioner): "
    f"median and middle 90 % of the seeds{unfinished(sharpness)}, by learning rate. Dashed: 2 / lr, with momentum "
    "(2 + 2 beta) / lr, 38 / lr with Adam. The smallest rate of gradient descent is too small to reach its limit.",
)  # fmt: skip
def draw_sharpness(sharpness: pd.DataFrame) -> Any:
    """Sharpness by step, a panel an optimizer, without the first steps of Adam, whose preconditioner is still young."""
    slow = sharpness["optimizer"] == SLOW
    rank = sharpness.groupby("optimizer")["lr"].rank("dense", ascending=False).astype(int).mask(slow, 4)
    shown = sharpness.assign(
        predicted=sharpness["limit"].mask(slow), optimizer=sharpness["optimizer"].mask(slow, "GD"), rate=rank
    )
    rates = shown.groupby("optimizer", sort=False)["lr"].unique()
    titles = {
        name: f"{name}, rates {enumerated(f'{lr:.3g}' for lr in sorted(own, reverse=True))}"
        for name, own in rates.items()
    }
    shown = shown[shown["median"] < 3 * shown["limit"]].assign(optimizer=shown["optimizer"].map(titles))
    shown = shown.rename(columns={"rate": "rate, largest first"})
    axes = {"ylabel": "sharpness", "xlabel": "step", "yscale": "log"}
    return drawing.panels(shown, "optimizer", drawing.profile, by="rate, largest first", x="step", axes=axes, shared="")


@drawing.figure(
    "edge_means", "Sharpness over the limit of stability late in training",
    lambda edge: f"Sharpness over its limit, mean over the last {LAST:.0%} of the steps and {edge['n'].min()} seeds, "
    "with intervals that hold at once. Theory: 1."
    f"{' Without a point: a training diverged.' * bool(edge['diverged'].any())}",
)  # fmt: skip
def draw_means(edge: pd.DataFrame) -> Any:
    """Time means, a row an optimizer and rate."""
    named = edge.assign(training=edge["optimizer"] + ", rate " + edge["lr"].map("{:.3g}".format))
    axes = {"xlabel": "mean sharpness / limit"}
    return drawing.panels(named, "", drawing.estimates, at="training", by="optimizer", axes=axes)


METHOD = f"""**Edge of stability.** Networks of two hidden tanh layers, weights from N(0, 1 / (3 fan-in)), on the first
digits of a training set (pixels less their mean, of mean square 1), half the squared error to one-hot targets, all of
the examples at every step; seeds vary the weights alone. The sharpness is the largest eigenvalue of the Hessian by
Lanczos' iteration, its residual at most {TOLERANCE:.0%} of it. A quadratic is stable below 2 / learning rate, with
momentum beta below (2 + 2 beta) / learning rate; Cohen et al. (2021, "Gradient Descent on Neural Networks Typically
Occurs at the Edge of Stability", arXiv:2103.00065) saw training stay there. Adam is preconditioned descent with an
averaged gradient, stable below (2 + 2 beta1) / ((1 - beta1) learning rate) = 38 / learning rate of P^-1/2 H P^-1/2,
P = (1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps) (Cohen et al. 2022, arXiv:2207.14484). Mean over the last
{LAST:.0%} of the steps; margin {MARGIN - 1:.0%}. The margins were set before; sizes, rates and the two momenta
with trial runs of other seeds in view."""
PART = Part(
    "edge", (DESCENT, MOMENTUM, ADAM, PROGRESSIVE), SIZES, grids, run, analyse, (draw_sharpness, draw_means), METHOD,
    shown=("edge",),
)  # fmt: skip
