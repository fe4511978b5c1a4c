"""Dropout as an adaptive L2 penalty: exactly in linear regression, and how far in deep networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthgauge import data, drawing, stats, theory
from depthgauge.frames import groups, params_of
from depthgauge.parts import Answer, Part, sizes
from depthgauge.questions import Question, agrees
from depthgauge.seeding import Purpose, generator
from depthgauge.studies.regularization import penalty
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Sentence

EXACTLY = Claim(
    "regularization/adaptive_l2", "in linear regression dropout is a ridge penalty of p / (1 - p) times each input's "
    "sum of squares, and SGD with dropout arrives at its solution",
)  # fmt: skip
DEEP = Claim(
    "regularization/adaptive_l2_deep", "in deep networks the gradient that dropout adds is that of its second-order "
    "penalty, p / (2 - 2 p) times the sum of squared activation times curvature",
)  # fmt: skip
EXACT = 1e-9  # relative: all masks are summed over, in float64
ALL = "the minimum over all masks"
PLACES = 12  # that count: the last bits of least squares depend on where in memory it is solved
WAY = 0.05  # of the way from least squares to the predicted solution
SHARE = 0.01  # of the squared length of the gradient that dropout adds: 10 % of its length
FLOOR = SHARE / 10  # lower end of the figure
KEYS = ("activation", "state", "depth", "width", "p")
STATES = {"drawn": 0, "trained": 100}  # steps of gradient descent
INPUTS, EXAMPLES, IMAGES, BATCH = 8, 64, 32, 16
SIZES = sizes(
    "rates steps added depths widths masks seeds",
    quick=((0.1, 0.5), 4000, (0.1, 0.5), (1, 3), (16,), 64, 6),
    standard=((0.1, 0.2, 0.5, 0.8), 40_000, (0.02, 0.1, 0.5), (1, 3), (8, 128), 512, 10),
    full=((0.05, 0.1, 0.2, 0.5, 0.8), 60_000, (0.02, 0.1, 0.5), (1, 3, 6), (8, 32, 128), 512, 20),
    tiny=((0.5,), 20, (0.5,), (1,), (4,), 8, 5),
)  # fmt: skip


def grids(
    *, rates: tuple[float, ...], steps: int, added: tuple[float, ...], depths: tuple[int, ...], widths: tuple[int, ...],
    masks: int, seeds: int,
) -> Iterator[Grid]:  # fmt: skip
    """Linear regression, and networks of every depth and width, at every rate of dropout."""
    yield Grid({"p": rates}, {"depth": 0, "steps": steps}, 2 * seeds, ("p", "seed"), 1000, claims=(EXACTLY.id,))
    yield Grid(
        {"activation": tuple(penalty.CURVED), "state": tuple(STATES), "depth": depths, "width": widths, "p": added},
        {"masks": masks}, seeds, ("p", "seed"), 5 * len(added), claims=(DEEP.id,),
    )  # fmt: skip


def run(cases: Sequence[Case], _: Context) -> Iterator[Rows]:
    """Distances from the predicted weights, or from the predicted gradient."""
    digits = data.load("digits").train
    if cases[0].integer("depth"):
        yield from _deep(cases, digits)
    else:
        yield from _linear(cases, digits)


def _linear(cases: Sequence[Case], digits: data.Examples) -> Iterator[Rows]:
    """Minimizer over all masks against the formula, and the way that SGD goes to it from least squares."""
    problems = [_problem(digits, case.random_seed("seed")) for case in cases]
    x, y = (torch.stack(each) for each in zip(*problems, strict=True))
    rates = torch.tensor([case.number("p") for case in cases], dtype=torch.float64)
    predicted, least = (
        torch.stack([torch.from_numpy(theory.dropout_ridge(*both, p)) for both, p in zip(problems, each, strict=True)])
        for each in (rates.tolist(), [0.0] * len(cases))
    )  # fmt: skip
    average = descended(
        (x, y), rates, least, cases[0].integer("steps"), [case.random_seed("seed", "p") for case in cases]
    )
    toward = predicted - least
    way = ((average - least) * toward).sum(1) / toward.square().sum(1)
    for i, case in enumerate(cases):
        exact = over_all_masks(x[i], y[i], float(rates[i]))
        yield case.rows("exact", round(float((exact - predicted[i]).norm() / predicted[i].norm()), PLACES))
        yield case.rows("way", round(float(way[i]), PLACES))


def _problem(digits: data.Examples, seed: int) -> tuple[Tensor, Tensor]:
    """INPUTS of the pixels that vary most, of EXAMPLES digits; whether a digit is above 4, as 1 and -1."""
    draws, pixels = generator(seed, Purpose.SAMPLE), digits.x.flatten(1).double()
    busy = pixels.var(0).topk(4 * INPUTS).indices
    chosen = busy[torch.randperm(len(busy), generator=draws)[:INPUTS]]
    rows = torch.randperm(len(pixels), generator=draws)[:EXAMPLES]
    return pixels[rows][:, chosen], (digits.y[rows] > 4).double() * 2 - 1


def over_all_masks(x: Tensor, y: Tensor, p: float) -> Tensor:
    """Weights that minimize the squared loss over all masks by their chances: least squares of 2^d times the rows."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x.shape[1])), dtype=x.dtype)
    kept = masks.sum(1)
    weight = ((1 - p) ** kept * p ** (x.shape[1] - kept)).sqrt()
    rows = (weight[:, None, None] * masks[:, None] * x / (1 - p)).flatten(0, 1)
    solved: Tensor = torch.linalg.lstsq(rows, (weight[:, None] * y).flatten()[:, None]).solution
    return solved[:, 0]


def descended(examples: tuple[Tensor, Tensor], p: Tensor, start: Tensor, steps: int, seeds: Sequence[int]) -> Tensor:
    """Mean of the weights (R, d) over the second half of SGD with dropout; constant rate, fresh examples and masks."""
    (x, y), streams = examples, [generator(seed, Purpose.DROPOUT) for seed in seeds]
    rate = (1 - p) / (3 * x.square().sum(2).mean(1))
    weights, total = start.clone(), torch.zeros_like(start)
    block = 500
    rows = torch.arange(len(x))[:, None]
    for step in range(steps):
        if step % block == 0:
            drawn = torch.stack([torch.rand(block, BATCH, 1 + x.shape[2], generator=each) for each in streams])
        fields = drawn[:, step % block]
        chosen = (fields[:, :, 0] * x.shape[1]).long().clamp(max=x.shape[1] - 1)
        masked = x[rows, chosen] * (fields[:, :, 1:] >= p[:, None, None]) / (1 - p)[:, None, None]
        missing = y[rows, chosen] - (masked @ weights[:, :, None])[:, :, 0]
        weights = weights + rate[:, None] / BATCH * (masked * missing[:, :, None]).sum(1)
        if step >= steps // 2:
            total += weights
    return total / (steps - steps // 2)


def _deep(cases: Sequence[Case], digits: data.Examples) -> Iterator[Rows]:
    """Share of the squared gradient that dropout adds which its second-order penalty does not account for."""
    x, y = digits.x[:IMAGES].flatten(1).double(), digits.y[:IMAGES]
    found: dict[int, tuple[penalty.Network, Tensor, Tensor]] = {}
    for case in cases:
        curve, seed = penalty.CURVED[case.text("activation")], case.random_seed("seed", "depth", "width", "activation")
        if seed not in found:
            layers = [case.integer("width")] * case.integer("depth")
            network = penalty.Network.draw(x, y, layers=layers, curve=curve, seed=seed)
            network.descend(STATES[case.text("state")])
            found[seed] = network, *network.gradients()
        network, plain, curvature = found[seed]
        p, draws = case.number("p"), generator(seed, Purpose.DROPOUT, f"{case.number('p'):g}")
        halves = [network.noisy(p, case.integer("masks") // 2, draws) - plain for _ in range(2)]
        predicted = p / (1 - p) / 2 * curvature
        size = halves[0] @ halves[1]  # of independent draws: the noise has no part in its mean
        yield case.rows("left", float((halves[0] - predicted) @ (halves[1] - predicted) / size))
        yield case.rows("length", float(size / (predicted @ predicted)))


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """Linear regression against the formula; deep networks against the penalty."""
    params = params_of(rows, *KEYS)
    exact, left, further = {}, {}, {}
    for p, cases in groups(params[params["depth"] == 0], "p"):
        own = rows[rows["case"].isin(cases.index)]
        for what, metric, aim, margin in ((ALL, "exact", 0.0, EXACT), ("SGD with dropout", "way", 1.0, WAY)):
            exact[what, p] = stats.against(_values(own, metric), aim, margin=margin, test="t")
    for key, cases in groups(params[params["depth"] > 0].astype({"width": int, "depth": int}), list(KEYS)):
        own = rows[rows["case"].isin(cases.index)]
        left[key] = stats.against(
            penalty.missed(_values(own, "left"), _values(own, "length")), 0.0, margin=SHARE, test="t"
        )
        further[key] = {"length": float(np.sqrt(np.median(_values(own, "length"))))}
    if exact:
        linear = Question.of("adaptive_linear", ("what", "p"), exact, label="{what} at p = {p:g}")
        yield linear.table()
        yield from _said_of_linear(linear)
    if left:
        label = "{activation} {state}, hidden layers: {depth} of {width}, p = {p:g}"
        deep = Question.of("adaptive_deep", KEYS, left, label=label, reference="nothing left")
        yield deep.table(further)
        yield from _said_of_deep(deep)


def _values(rows: pd.DataFrame, metric: str) -> NDArray[np.float64]:
    return rows.loc[rows["metric"] == metric, "value"].to_numpy()


def _said_of_linear(linear: Question) -> Iterator[Answer]:
    yield linear.verdict(
        EXACTLY, agrees, unit="relative distance, and share of the way",
        why=linear.listed(agrees, {True: "as predicted:", False: "not as predicted:", None: "undecided:"}, 8),
        method=f"the minimum of the squared loss over all masks of {INPUTS} inputs against the formula, within "
        f"{EXACT:g}; the mean of SGD's weights over the second half of its steps, as a share of the way from least "
        f"squares to the predicted solution, within {WAY:g} of 1",
    )  # fmt: skip
    ways = [c.effect.value for (what, _), c in linear.members.items() if what != ALL]
    if all(c.inside for c in linear.members.values()):
        yield Sentence(
            "In linear regression dropout is ridge regression: the minimum over all masks is the predicted one to "
            f"rounding, and SGD with dropout goes {min(ways):.3f} to {max(ways):.3f} times the way from least "
            "squares to it.", figure="adaptive_linear", claims=(EXACTLY.id,),
        )  # fmt: skip


def _said_of_deep(deep: Question) -> Iterator[Answer]:
    yield deep.verdict(
        DEEP, agrees, shown=max(deep.members, key=lambda key: deep.members[key].effect.low),
        unit="squared error of the penalty's gradient over the squared gradient added",
        why=deep.listed(agrees, {True: "as predicted:", False: "not as predicted:", None: "undecided:"}, 12),
        method="mean gradient over masks of every example minus the gradient without dropout, against that of the "
        "second-order penalty; the squared distance over the squared length added, each the product of two independent "
        "halves of the masks, so that their noise adds nothing, and summed over networks in units of each one's "
        f"penalty, jackknife; 1 is as far off as no penalty; within {SHARE:g}, 10 % of the length",
    )  # fmt: skip
    depth, width, p = (pick(key[i] for key in deep.members) for i, pick in ((2, max), (3, max), (4, min)))
    asked = {
        name: deep.where(activation=name, depth=depth, width=width, p=p).members.values()
        for name in dict.fromkeys(key[0] for key in deep.members)
    }
    told = {name: [c.effect.value for c in own] for name, own in asked.items() if all(c.beyond for c in own)}
    if not told:
        return
    spans = [f"{min(each):.2f} to {max(each):.2f} in {name}" for name, each in told.items()]
    worse = sum(c.effect.low > 1 for c in deep.members.values())
    yield Sentence(
        "The squared error of dropout's second-order penalty, over the squared gradient that dropout adds, is "
        f"{' and '.join(spans)} networks, as drawn and trained ({depth} hidden layers of {width}, p = {p:g}); where it "
        f"is above 1, as in {worse} of {len(deep)} settings, the penalty is further off than none.",
        figure="adaptive_deep", claims=(DEEP.id,),
    )  # fmt: skip


@drawing.figure(
    "adaptive_linear", "How far SGD with dropout goes to the ridge solution",
    lambda adaptive_linear: "Share of the way from least squares to the predicted solution; mean of "
    f"{adaptive_linear['n'].min()} problems of {INPUTS} pixels, intervals of 95 % at once; dashed: arrived.",
)  # fmt: skip
def draw_linear(adaptive_linear: pd.DataFrame) -> Any:
    """The way gone, by rate."""
    axes = {"xlabel": "share p dropped", "ylabel": "share of the way"}
    shown = adaptive_linear[adaptive_linear["what"] != ALL]
    return drawing.panels(shown, "", drawing.estimates, at="p", axes=axes, size=(5, 3))


@drawing.figure(
    "adaptive_deep", "How far dropout's second-order penalty is off its gradient",
    lambda adaptive_deep: "Squared error of the penalty's gradient over the squared gradient that dropout adds; sums "
    f"over {adaptive_deep['n'].min()} networks, jackknife intervals of 95 % at once, cut at {FLOOR:g}; 1: as far off "
    "as no penalty is; layers: hidden ones.",
)  # fmt: skip
def draw_deep(adaptive_deep: pd.DataFrame) -> Any:
    """Error over what is added by rate, a panel an activation, state and width, a colour a depth."""
    axes = {"xlabel": "share p dropped", "xscale": "log", "yscale": "log", "ylabel": "error over added"}
    network = adaptive_deep["activation"] + " " + adaptive_deep["state"] + ", width "
    figures = [name for name in adaptive_deep if name == "value" or str(name).startswith(("low_", "high_"))]
    shown = adaptive_deep.assign(network=network + adaptive_deep["width"].astype(str))
    shown = shown.assign(**shown[figures].clip(lower=FLOOR)).rename(columns={"depth": "layers"})
    return drawing.panels(shown, "network", drawing.estimates, at="p", by="layers", joined=True, most=8, axes=axes)


METHOD = f"""**Dropout as a penalty.** Linear regression: {INPUTS} pixels of {EXAMPLES} digits, target 1 above 4 and -1
else, no bias; SGD of batches of {BATCH} drawn with replacement, with fresh masks, from least squares on. Deep: dense
networks on {IMAGES} digits, as drawn and after {STATES["trained"]} steps of gradient descent without dropout; it stands
behind every hidden layer. The penalty is the second-order expansion of the expected loss in the noise (Wager, Wang and
Liang 2013; Wei, Kakade and Ma 2020); a unit's curvature is the loss's second derivative along it, in which a ReLU's
kink is not seen."""
PART = Part("adaptive_l2", (EXACTLY, DEEP), SIZES, grids, run, analyse, (draw_linear, draw_deep), METHOD)
