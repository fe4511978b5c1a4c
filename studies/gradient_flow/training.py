"""Depth x sigma_w: which networks learn real digits in a small fixed budget, and whether theory knew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from scipy.special import log_ndtr

from depthgauge import data, drawing, models, replicas, stats, theory
from depthgauge.frames import groups, only, params_of
from depthgauge.initialization import gaussian
from depthgauge.parts import Answer, Part
from depthgauge.questions import Question, above, agrees, below, spelled
from depthgauge.study import Case, Context, Grid, Rows
from depthgauge.verdict import Claim, Status

DEEP = Claim("N03", "shallow networks hardly have stability trouble; with depth, exploding and vanishing appear")
CRITICAL = Claim(
    "gradient_flow/critical", "the networks that train deepest are those of the critical sigma_w of theory"
)
SCALE = Claim(
    "gradient_flow/depth_scale",
    "the depth down to which a network trains is proportional to the depth scale that theory predicts",
)

EVALUATED = 1000  # training examples on which accuracy is taken; they hold each class alike
TRAINED = 0.5  # training accuracy from which a network counts as trained; chance is 0.1
HARDLY = 0.25  # a share of the configurations below this is hardly any
FACTOR = 1.5  # values of sigma_w within this factor of each other are called the same
SLOPE = 1 / 3  # log-log slopes nearer to 1 than this are called proportional
FEWEST = 3  # sigma_w through which a slope is laid
MOST_PRECISE = 12.0  # ln of the largest precision: values without noise leave the likelihood without bound
SCHOENHOLZ = 6  # multiples of xi_c down to which Schoenholz et al. (2017) saw networks train
SIGMAS = {
    "quick": {
        "tanh": (0.5, 0.75, 0.9, 1.0, 1.15, 1.5, 2.0, 2.8), "relu": (0.7, 0.95, 1.2, 2**0.5, 1.65, 1.9, 2.3, 2.8)
    },
    "fine": {
        "tanh": (0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 1.9, 2.15, 2.4, 2.7, 3.0),
        "relu": (0.6, 0.75, 0.9, 1.05, 1.2, 1.3, 2**0.5, 1.55, 1.7, 1.85, 2.0, 2.2, 2.4, 2.7, 3.0),
    },
    "tiny": {"tanh": (1.0, 1.4)},
}  # fmt: skip
DEPTHS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
SIZES: Mapping[str, Mapping[str, Any]] = {
    "quick": {"depths": (2, 4, 8, 12, 20, 32), "seeds": 5, "steps": 100, "width": 32, "sigmas": "quick"},
    "standard": {"depths": DEPTHS, "seeds": 6, "steps": 200, "width": 64, "sigmas": "fine"},
    "full": {"depths": (*DEPTHS, 64, 96, 128), "seeds": 10, "steps": 1000, "width": 128, "sigmas": "fine"},
    "tiny": {"depths": (1, 3), "seeds": 5, "steps": 3, "width": 6, "sigmas": "tiny"},
}


def grids(depths: tuple[int, ...], seeds: int, steps: int, width: int, sigmas: str) -> Iterator[Grid]:
    """Depth x sigma_w for each activation; replicas of a depth train together."""
    recipe = {"width": width, "steps": steps, "batch": 32, "lr": 0.01, "momentum": 0.9}
    for activation, sigma_w in SIGMAS[sigmas].items():
        varied = {"depth": depths, "sigma_w": sigma_w}
        fixed = {**recipe, "activation": activation}
        yield Grid(varied, fixed, seeds, together=("sigma_w", "seed"), chunk=_most_replicas)


def _most_replicas(case: Case) -> int:
    width, depth = case.integer("width"), case.integer("depth")
    return replicas.most_members(784 * width + (depth - 1) * width**2 + 10 * width)


def run(cases: Sequence[Case], context: Context) -> Iterator[Rows]:
    """SGD on the 4,000 training digits of MNIST-5k; replicas differ in sigma_w and seed, trained as one computation."""
    shared = cases[0]
    model = models.build(
        "mlp", depth=shared.integer("depth"), width=shared.integer("width"), activation=shared.text("activation")
    )
    stack = replicas.stack(
        model,
        seeds=[case.random_seed("seed", "width", "depth") for case in cases],  # common to all sigma_w: paired
        initialize=_draw,
        device=context.device,
        sigma_w=[case.number("sigma_w") for case in cases],
    )
    digits = data.load("mnist5k").to(context.device).train
    optimizer = replicas.SGD(lr=shared.number("lr"), momentum=shared.number("momentum"))
    batch, steps = shared.integer("batch"), shared.integer("steps")
    trained = replicas.train(stack, digits.x, digits.y, optimizer, batch=batch, steps=steps)
    result = replicas.evaluate(trained.stack, digits.x[:EVALUATED], digits.y[:EVALUATED])
    for i, case in enumerate(cases):
        yield case.rows("train_accuracy", result.accuracy[i])
        yield case.rows("train_loss", result.loss[i])
        yield case.rows("diverged", float(trained.diverged_at[i] >= 0))


def _draw(module: torch.nn.Module, generator: torch.Generator, sigma_w: float) -> None:
    gaussian(sigma_w)(module, generator)


def analyse(rows: pd.DataFrame) -> Iterator[Answer]:
    """The map, the depth down to which each initialization trains, and how that compares with theory."""
    params = params_of(rows, "activation", "depth", "sigma_w", "seed", "steps", "width")
    params["accuracy"] = only(rows, "train_accuracy")
    params["trained"], params["diverged"] = params["accuracy"] >= TRAINED, only(rows, "diverged")
    yield "training", _cells(params)
    yield "depth_scales", _scales(params)
    reach = reaches(params)
    yield "reach", reach
    yield from cost_of_depth(params)
    yield from deepest(reach)
    yield from proportional(reach, int(params["depth"].min()), int(params["depth"].max()))
    for activation, own in groups(reach, "activation"):
        middle = own.groupby("sigma_w")["reach"].median()
        ends = (f"{middle[at]:.0f} layers at sigma_w = {at:.3g}" for at in (middle.idxmax(), middle.idxmin()))
        yield (
            f"A {activation} network learns MNIST in {params['steps'].max()} steps down to {' and '.join(ends)} (medians "
            f"of {own['seed'].nunique()} runs; theory's critical sigma_w is {own['critical'].iloc[0]:.3g})."
        )


def _cells(params: pd.DataFrame) -> pd.DataFrame:
    cells = []
    for (activation, depth, sigma_w), cell in groups(params, ["activation", "depth", "sigma_w"]):
        at = {"activation": activation, "depth": depth, "sigma_w": sigma_w, "n": len(cell)}
        trained = stats.rate(int(cell["trained"].sum()), len(cell))
        counts = {"diverged": int(cell["diverged"].sum()), "steps": cell["steps"].max(), "width": cell["width"].max()}
        cells.append({**at, "accuracy": cell["accuracy"].mean(), **spelled("trained", trained), **counts})
    return pd.DataFrame(cells)


def correlation_scale(activation: str, sigma_w: float) -> float:
    """xi_c of Schoenholz et al. (2017) at sigma_b = 0, in layers; NaN where theory has no fixed point."""
    try:
        return theory.mean_field(activation, sigma_w, 0.0).xi_c
    except theory.NoFixedPoint:
        return math.nan


def gradient_scale(activation: str, sigma_w: float) -> float:
    """Layers over which the squared gradient changes by a factor e, 1/|ln chi_1|."""
    try:
        chi = theory.mean_field(activation, sigma_w, 0.0).chi_1
    except theory.NoFixedPoint:
        chi = theory.chi(activation, sigma_w, 1.0)  # ReLU and linear: the same at every variance
    return 1 / abs(math.log(chi)) if abs(chi - 1) > 1e-9 else math.inf


def _scales(params: pd.DataFrame) -> pd.DataFrame:
    """Both predicted depth scales on a grid of sigma_w that is dense where they diverge: the lines of the map."""
    lines = []
    for activation, group in groups(params, "activation"):
        critical = theory.critical_sigma_w(activation, 0.0)
        low, high = group["sigma_w"].min() * 0.8, group["sigma_w"].max() * 1.2
        near = np.geomspace(1e-3, 1.0, 16)
        for sigma_w in (*(critical - (critical - low) * near[::-1]), *(critical + (high - critical) * near)):
            at = {"activation": activation, "sigma_w": sigma_w, "critical": critical}
            scales = {"xi_c": correlation_scale(activation, sigma_w), "gradient": gradient_scale(activation, sigma_w)}
            lines.append({**at, **scales})
    return pd.DataFrame(lines)


def reaches(params: pd.DataFrame) -> pd.DataFrame:
    """Trainable depth by activation, sigma_w and seed: where accuracy first falls through TRAINED, in log-depth.

    `censored` is -1 where not even the shallowest trains (the reach is less), 1 where the deepest still does (more).
    """
    lines = []
    for (activation, sigma_w, seed), line in groups(params, ["activation", "sigma_w", "seed"]):
        deepening = line.sort_values("depth")
        depth, accuracy = np.log(deepening["depth"].to_numpy(float)), deepening["accuracy"].to_numpy(float)
        below = np.flatnonzero(accuracy < TRAINED)
        k = int(below[0]) if below.size else len(depth)
        censored = -1 if k == 0 else 1 if k == len(depth) else 0
        if censored:
            reach = depth[0] if censored < 0 else depth[-1]
        else:
            share = (accuracy[k - 1] - TRAINED) / (accuracy[k - 1] - accuracy[k])
            reach = depth[k - 1] + share * (depth[k] - depth[k - 1])
        at = {"activation": activation, "sigma_w": sigma_w, "seed": seed}
        scale = {"xi_c": correlation_scale(activation, sigma_w), "critical": theory.critical_sigma_w(activation, 0.0)}
        lines.append({**at, "reach": float(np.exp(reach)), "censored": censored, **scale})
    return pd.DataFrame(lines)


def cost_of_depth(params: pd.DataFrame) -> Iterator[Answer]:
    """N03: in how many configurations do most shallow networks train, and in how many do most deep ones fail?"""
    shallow, deep = int(params["depth"].min()), int(params["depth"].max())
    share = params.pivot_table(index=["activation", "sigma_w"], columns="depth", values="trained", aggfunc="mean")
    share = share[sorted({shallow, deep})].dropna()
    trains, fails, n = share[shallow] > 0.5, share[deep] <= 0.5, len(share)
    trouble = f"most networks of depth {shallow} fail"
    lost = f"most networks of depth {shallow} train and most of depth {deep} fail"
    counts = {(trouble,): int((~trains).sum()), (lost,): int((trains & fails).sum())}
    question = Question.of(
        "cost_of_depth", ("configurations in which",),
        {key: stats.coverage(count, n, HARDLY) for key, count in counts.items()},
        label="configurations in which {configurations in which}", reference="hardly any", counted="configurations",
    )  # fmt: skip
    yield question.table()
    quiet = below(question.members[(trouble,)])
    verdict = question.verdict(
        DEEP, above, shown=(lost,), unit="share of configurations",
        why=f"of {n} configurations (activation and sigma_w), {counts[lost,]} lose most of their networks between "
        f"depth {shallow} and depth {deep}, and {counts[trouble,]} train few even at depth {shallow}",
        method=f"exact binomial intervals; hardly any: fewer than {HARDLY:.0%} of the configurations; a network "
        f"trains that reaches an accuracy of {TRAINED:g}",
    )  # fmt: skip
    appears = above(question.members[(lost,)])
    yield replace(verdict, status=Status(stats.combine([appears] if quiet else [appears, quiet])))


def deepest(reach: pd.DataFrame) -> Iterator[Answer]:
    """The sigma_w that trains deepest, seed by seed, over the critical one; no finer than the grid of sigma_w.

    Of several that train equally deep (down to the last depth tried) the geometric mean counts; a seed with which no
    network trains has none.
    """
    asked = {}
    for activation, own in groups(reach, "activation"):
        table = own.pivot_table(index="seed", columns="sigma_w", values="reach")
        sigmas, values = table.columns.to_numpy(float), table.to_numpy()
        best = np.where(values == values.max(axis=1, keepdims=True), np.log(sigmas), np.nan)
        alive = own.groupby("seed")["censored"].max().loc[table.index] > -1
        at = np.where(alive, np.exp(np.nanmean(best, axis=1)), np.nan)
        critical = np.full(len(at), own["critical"].iloc[0])
        step = float((sigmas[1:] / sigmas[:-1]).max()) if len(sigmas) > 1 else math.inf
        asked[(activation,)] = stats.paired(at, critical, log=True, margin=FACTOR, resolution=step, test="t")
    question = Question.of("deepest", ("activation",), asked, label="{activation}", reference="critical")
    yield question.table()
    listed = question.listed(agrees, {True: "the same for", False: "another for", None: "undecided for"})
    yield question.verdict(
        CRITICAL, agrees, unit="sigma_w over the critical sigma_w",
        why=f"the sigma_w that trains deepest is, within a factor of {FACTOR:g}, the critical one: {listed}",
        method=f"argmax over the grid of sigma_w by seed, ties averaged; t interval over seeds of the log-ratio, margin "
        f"a factor of {FACTOR:g}; the largest step of the grid is the resolution",
    )  # fmt: skip


def proportional(reach: pd.DataFrame, shallow: int, deep: int) -> Iterator[Answer]:
    """Slope of ln reach on ln xi_c, over the sigma_w for which theory puts 6 xi_c inside the depths tried.

    Which are used follows from theory and the depths alone; a reach beyond the depths tried stays in, as censored. The
    interval is that of pseudo-values, leaving out each seed in turn (jackknife).
    """
    chosen = reach[(SCHOENHOLZ * reach["xi_c"]).between(shallow, deep)]
    asked, used = {}, {}
    for activation, own in groups(chosen, "activation"):
        if own["sigma_w"].nunique() >= FEWEST:
            asked[(activation,)] = stats.against(pseudo_slopes(own), 1.0, margin=SLOPE)
            used[(activation,)] = {"sigma_w used": own["sigma_w"].nunique(), "censored": (own["censored"] != 0).mean()}
    if not asked:
        return
    question = Question.of("depth_scale", ("activation",), asked, label="{activation}", reference="proportional")
    yield question.table(used)
    slopes = ", ".join(f"{name} {value:.2g}" for name, value in question.read(lambda c: c.effect.value).items())
    listed = question.listed(agrees, {True: "proportional for", False: "not proportional for", None: "undecided for"})
    yield question.verdict(
        SCALE, agrees, unit="log-log slope (1: proportional)",
        why=f"trainable depth against the depth scale xi_c of Schoenholz et al. (2017): {listed} (slopes: {slopes})",
        method=f"censored normal regression of ln depth on ln xi_c, over the sigma_w with {shallow} <= {SCHOENHOLZ} xi_c "
        f"<= {deep}; jackknife over seeds, t; margin {SLOPE:.2g}",
    )  # fmt: skip


def pseudo_slopes(reach: pd.DataFrame) -> np.ndarray:
    """Jackknife pseudo-values of the censored slope, one a seed; their mean and its t interval are the slope's."""
    columns = [reach[name].to_numpy(float) for name in ("xi_c", "reach", "censored")]
    x, y, end = np.log(columns[0]), np.log(columns[1]), columns[2]
    seeds = reach["seed"].to_numpy()
    every = np.unique(seeds)
    if len(every) < 2:
        return np.full(len(every), math.nan)
    without = np.array([censored_slope(x[seeds != seed], y[seeds != seed], end[seeds != seed]) for seed in every])
    return len(every) * censored_slope(x, y, end) - (len(every) - 1) * without


def censored_slope(x: np.ndarray, y: np.ndarray, end: np.ndarray) -> float:
    """Slope of a normal regression of which some values are known to one side only (Tobin 1958, Econometrica 26, 24).

    Maximum likelihood in Olsen's parameters (1978, Econometrica 46, 1211), in which it has one maximum; NaN where
    fewer than three values are known, which bounds no spread.

    Args:
        x: shape (n,).
        y: shape (n,), each value or the bound that it lies beyond.
        end: shape (n,), -1 where the value is below `y`, 1 where it is above, 0 where it is `y`.
    """
    if np.count_nonzero(end == 0) < 3 or np.ptp(x[end == 0]) == 0:
        return math.nan
    known, centre, unit = end == 0, x.mean(), np.std(y) or 1.0
    x, y = x - centre, (y - y.mean()) / unit

    def loss(parameters: np.ndarray) -> float:
        intercept, slope, log_precision = parameters
        precision = math.exp(min(log_precision, MOST_PRECISE))
        z = precision * y - intercept - slope * x
        beyond = log_ndtr(-end[~known] * z[~known]).sum()
        return float(0.5 * np.square(z[known]).sum() - known.sum() * math.log(precision) - beyond)

    fit = minimize(loss, (0.0, 0.0, 0.0), method="BFGS")
    return float(fit.x[1] / math.exp(min(fit.x[2], MOST_PRECISE)) * unit)


@drawing.figure(
    "training_map", "How deep a network trains goes with its initialization",
    lambda training, _: f"Each cell: mean training accuracy over {training['n'].min()} seeds after "
    f"{training['steps'].max()} steps of SGD on MNIST (chance is 0.1). Lines: multiples of the gradient's depth scale "
    "1/|ln chi_1| and of the correlation's, xi_c (Schoenholz et al. 2017; not for ReLU), which mean-field theory predicts "
    "from the activation and sigma_w alone. They diverge at the critical sigma_w: to its left gradients vanish, to its "
    "right they explode.",
)  # fmt: skip
def training_map(training: pd.DataFrame, depth_scales: pd.DataFrame) -> Any:
    """Depth x sigma_w, colour = training accuracy, lines = multiples of the predicted depth scales."""
    top = training["depth"].max()
    curves = []
    for name, column, multiple in (
        ("1 / |ln χ₁|", "gradient", 1),
        ("6 / |ln χ₁|", "gradient", 6),
        ("6 ξ_c", "xi_c", 6),
    ):
        own = depth_scales if column == "gradient" else depth_scales[depth_scales["activation"] != "relu"]
        curves.append(own.assign(line=name, depth=np.minimum(multiple * own[column], 1e3 * top)))
    return drawing.panels(
        training, "activation", drawing.heat, x="sigma_w", y="depth", value="accuracy",
        over=pd.concat(curves), axes={"yscale": "log"},
    )  # fmt: skip


PART = Part(
    "training",
    claims=(DEEP, CRITICAL, SCALE),
    sizes=SIZES,
    grids=grids,
    run=run,
    analyse=analyse,
    figures=(training_map,),
    method="""
**Training.** Networks that differ in sigma_w and seed train side by side on the same mini-batches. How deep one trains,
its *reach*, is the depth at which its accuracy falls through 0.5. The predicted depth scale is xi_c of Schoenholz et
al. (2017), the layers over which the correlation of two inputs settles, at sigma_b = 0. Proportional means a log-log
slope of 1: by a regression in which a reach beyond the depths tried is censored, over the sigma_w for which theory puts
6 xi_c inside the depths tried. Nothing is chosen by its outcome.
""",
)
